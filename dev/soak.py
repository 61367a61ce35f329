#!/usr/bin/env python3
"""Runs a command for a while and watches its memory: a leak shows as a slope.

    dev/soak.py --minutes 120 -- ./train_gpt -x 1000000000 -n 1000 -v 500 -s 500 -o soak/model.bin
    dev/soak.py --minutes 120 -- ./infer folded.bin -n 1000000000

Samples the resident set (VmRSS), open files and threads at regular intervals, then ends the command with SIGTERM. Prints
a line per tenth of the time and, from the samples after the first tenth (start-up), the least-squares slope in KiB an
hour with its standard error. Exit status 1 where the slope is above --limit or the command ended by itself. Standard
output of the command goes to --output.
"""
import argparse
import os
import signal
import subprocess
import sys
import time


def sample(pid):
    fields = {}
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            key, _, value = line.partition(":")
            fields[key] = value.split()
    return int(fields["VmRSS"][0]), len(os.listdir(f"/proc/{pid}/fd")), int(fields["Threads"][0])


def slope(points):
    """Least squares of y over x, and the slope's standard error."""
    n = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    sxx = sum((x - mean_x) ** 2 for x, _ in points)
    b = sum((x - mean_x) * (y - mean_y) for x, y in points) / sxx
    residual = sum((y - mean_y - b * (x - mean_x)) ** 2 for x, y in points)
    return b, (residual / (n - 2) / sxx) ** 0.5


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--limit", type=float, default=256, help="largest slope, KiB an hour (default 256)")
    parser.add_argument("--output", default=os.devnull)
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    if args.samples < 20:
        parser.error("--samples: expected at least 20")
    seconds = args.minutes * 60
    points = []  # hours, KiB
    with open(args.output, "wb") as output:
        start = time.monotonic()
        process = subprocess.Popen(args.command, stdout=output)
        for i in range(1, args.samples + 1):
            time.sleep(max(0, start + seconds * i / args.samples - time.monotonic()))
            if process.poll() is not None:
                sys.exit(f"soak: {args.command[0]} ended by itself with status {process.returncode}")
            rss, files, threads = sample(process.pid)
            points.append(((time.monotonic() - start) / 3600, rss))
            if i % max(1, args.samples // 10) == 0:
                print(f"{points[-1][0] * 60:7.1f} min   {rss:9d} KiB   {files} files   {threads} threads", flush=True)
        process.send_signal(signal.SIGTERM)
        process.wait()
    settled = points[len(points) // 10:]
    growth, error = slope(settled)
    low, high = min(y for _, y in settled), max(y for _, y in settled)
    print(f"after start-up: {low} to {high} KiB, slope {growth:+.1f} +- {error:.1f} KiB an hour")
    sys.exit(growth > args.limit)


if __name__ == "__main__":
    main()
