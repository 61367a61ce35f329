#!/usr/bin/env python3
"""Norms against tapers on tinyshakespeare, at nanoGPT's CPU recipe: 4 layers, 4 heads, 128 channels, context 64, batch 12,
2000 updates, learning rate 1e-3 to 1e-4, bytes, the last 10% as validation.

    dev/experiments/shakespeare.py CORPUS.txt [--out FOLDER] [--seeds 3] [--threads N] [--program ./train_gpt]

Runs what is not there yet (a finished run is its log), then prints the table of final validation losses: the mean over
seeds, and the mean relative gap to `norm` of the same seed. Arithmetic: 768 tokens x 5 MFLOP = 4 GFLOP an update.
"""
import argparse
import json
import pathlib
import re
import statistics
import subprocess

RECIPE = ("--n-layer 4 --n-head 4 --n-embd 128 -t 64 -b 12 -x 2000 -l 1e-3 -q 0.1 -u 100 --beta2 0.99 -c 0.1 --clip 1 "
          "-v 500").split()
RUNS = {  # name: flags
    "norm": ["-g", "norm"],
    "taper (defaults)": ["-g", "taper"],
    "taper 5% 40%, no scale loss": ["-g", "taper", "--gate-warmup", "5%", "--gate-end", "40%", "--scale-loss", "0"],
    "taper 20% 80%, no scale loss": ["-g", "taper", "--gate-warmup", "20%", "--gate-end", "80%", "--scale-loss", "0"],
    "taper-all (defaults)": ["-g", "taper-all"],
    "norm + scale loss": ["-g", "norm", "--gate-warmup", "5%", "--scale-loss", "0.1"],
    "rmsnorm: norm": ["-g", "norm", "--norm", "rmsnorm"],
    "rmsnorm: taper (defaults)": ["-g", "taper", "--norm", "rmsnorm"],
}


def run(program, corpus, out, name, flags, seed, threads):
    """The final validation loss and the largest s(h) of one run; trains it unless its result is there."""
    stem = out / (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + f"-seed{seed}")
    result = stem.with_suffix(".json")
    if not result.exists():
        command = [program, "-i", str(corpus), "-o", str(stem) + ".bin", "--seed", str(seed), *RECIPE, *flags]
        command += ["--threads", str(threads)] if threads else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        match = re.search(r"validation loss ([0-9.]+) \(", done.stdout)
        log = [json.loads(line) for line in open(str(stem) + ".log.jsonl")]
        result.write_text(json.dumps({
            "command": " ".join(command), "val_loss": float(match[1]) if match else None, "error": done.stderr.strip(),
            "largest_scale": max(e["stream_scale"] or 0 for e in log), "last_scale": log[-1]["stream_scale"]}))
        print(f"{stem.name}: {match[1] if match else done.stderr.strip()}", flush=True)
    return json.loads(result.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("scratch/shakespeare"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--program", default="./train_gpt")
    parser.add_argument("--only", default="", help="run names that contain this")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results = {}
    for seed in range(1, args.seeds + 1):
        for name, flags in RUNS.items():
            if args.only in name:
                results.setdefault(name, []).append(
                    run(args.program, args.corpus, args.out, name, flags, seed, args.threads))
    print("| run | flags | validation loss, by seed | mean | gap to norm | s(h) at the end |\n| --- | --- | --- | --- | --- | --- |")
    for name, rows in results.items():
        losses = [r["val_loss"] for r in rows]
        base = [r["val_loss"] for r in results["rmsnorm: norm" if name.startswith("rmsnorm") else "norm"]] \
            if "norm" in results else losses
        shown = " ".join("diverged" if loss is None else f"{loss:.4f}" for loss in losses)
        if None in losses or len(base) != len(losses):
            print(f"| {name} | `{' '.join(RUNS[name])}` | {shown} | | | |")
            continue
        gap = statistics.mean(a / b - 1 for a, b in zip(losses, base))
        print(f"| {name} | `{' '.join(RUNS[name])}` | {shown} | {statistics.mean(losses):.4f} | {100 * gap:+.2f}% "
              f"| {statistics.mean(r['last_scale'] for r in rows):.2f} |")


if __name__ == "__main__":
    main()
