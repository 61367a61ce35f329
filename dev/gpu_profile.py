#!/usr/bin/env python3
"""Kernels of a program by Nsight Compute: time, and how much of the SMs' and the memory's rate each uses. Prints a table.

    dev/gpu_profile.py NCU SKIP COUNT PROGRAM ...       COUNT kernels after the first SKIP
"""
import collections
import contextlib
import csv
import subprocess
import sys

METRICS = {"gpu__time_duration.sum": "us", "sm__throughput.avg.pct_of_peak_sustained_elapsed": "SMs, %",
           "dram__throughput.avg.pct_of_peak_sustained_elapsed": "memory, %", "sm__warps_active.avg.pct_of_peak_sustained_active": "warps, %"}


def parse(text):
    """{(kernel, grid, block): [{metric: value}]}, one for each launch, from ncu's CSV: a row for each metric of each launch."""
    lines = text.splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    launches = collections.defaultdict(dict)
    for row in csv.DictReader(line for line in lines[begin:] if line.startswith('"')):
        launch = launches[row["ID"], row["Kernel Name"], row["Grid Size"], row["Block Size"]]
        with contextlib.suppress(ValueError):  # n/a: a metric that this GPU does not have
            launch[row["Metric Name"]] = float(row["Metric Value"].replace(",", ""))
    kernels = collections.defaultdict(list)
    for (_, *kernel), metrics in launches.items():
        kernels[tuple(kernel)].append(metrics)
    return kernels


def main():
    if len(sys.argv) < 5:
        sys.exit(__doc__)
    ncu, skip, count, *command = sys.argv[1:]
    # Clocks as they are: its own are lower, and setting them may not be allowed.
    flags = ["--clock-control", "none", "--csv", "--print-units", "base", "--print-kernel-base", "function", "--metrics", ",".join(METRICS)]
    try:
        done = subprocess.run([ncu, *flags, "--launch-skip", skip, "--launch-count", count, *command], capture_output=True, text=True, check=False)
    except OSError as error:
        sys.exit(f"gpu_profile: {error}")
    kernels = parse(done.stdout)
    if done.returncode or not kernels:
        sys.exit(f"gpu_profile: {ncu}: exit status {done.returncode}, {len(kernels)} kernels: {(done.stderr or done.stdout).strip()[-300:]}")
    rows = []
    for (name, grid, block), launches in kernels.items():
        sums = {metric: sum(launch.get(metric, 0) for launch in launches) for metric in METRICS}
        us = sums["gpu__time_duration.sum"] / 1e3  # base units: ns
        rows.append([us, name, grid, block, len(launches), f"{us:.1f}", *(f"{sums[m] / len(launches):.0f}" for m in list(METRICS)[1:])])
    header = ["kernel", "grid", "block", "launches", *METRICS.values()]
    for row in (header, ["---"] * len(header), *(row[1:] for row in sorted(rows, key=lambda row: -row[0]))):
        print("| " + " | ".join(map(str, row)) + " |")


main()
