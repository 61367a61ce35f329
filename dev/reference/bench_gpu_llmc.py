#!/usr/bin/env python3
"""llm.c on a GPU, as dev/gpu_day.py sets it beside ours: trains 124M on random tokens, 32 sequences of 1024; prints a table row.

    dev/reference/bench_gpu_llmc.py PATH/train_gpt2cu [its flags]
"""
import pathlib
import random
import re
import statistics
import struct
import subprocess
import sys
import tempfile

HEADER = ["update", "tokens/s", "ms", "against `norm`", "TFLOP/s", "MFU", "of the limit", "GPU memory, GiB"]  # bench_gpu's
B, T, V = 32, 1024, 50257


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    program, flags = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2:]
    with tempfile.TemporaryDirectory() as name:
        tokens = pathlib.Path(name) / "tokens.bin"
        count, rng = 8 * B * T + 1, random.Random(1)
        ids = [int(V ** rng.random()) - 1 for _ in range(count)]  # as frequent as words, as in bench_gpu
        tokens.write_bytes(struct.pack("<256i", 20240520, 1, count, *[0] * 253) + struct.pack(f"<{count}H", *ids))
        command = [program, "-i", tokens, "-j", tokens, "-e", "d12", "-b", str(B), "-t", str(T), "-d", str(B * T), "-x", "30", "-v", "1000", "-m", "1",
                   "-s", "0", "-h", "0", "-n", "0", *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=name)
    times = [float(x) for x in re.findall(r"^step.*\| ([\d.]+) ms \|", done.stdout, re.M)][5:]
    if done.returncode or not times:
        sys.exit(f"llm.c: exit status {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}")
    ms = statistics.median(times)
    attention = "cuDNN's attention" if b"cudnn" in program.read_bytes() else "its own attention"
    row = [f"llm.c, {' '.join(flags) or 'its default flags'}, {attention}", f"{B * T * 1e3 / ms:.0f}", f"{ms:.2f}", "", "", "", "", ""]
    for cells in (HEADER, ["---"] * len(HEADER), row):
        print("| " + " | ".join(cells) + " |")


main()
