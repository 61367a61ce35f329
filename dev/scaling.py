#!/usr/bin/env python3
"""Time of an update on 1 to 1024 GPUs, on paper: from FLOPs, bytes and link speeds. Nothing here was measured on a GPU.

    dev/scaling.py                 the tables, and dev/results/scaling.png where matplotlib is installed
    dev/scaling.py --measure       first the check on CPU ranks of this machine (train_gpt, build/bench_ranks, mpirun; 3 minutes),
                                   kept in dev/results/scaling-cpu.json

The model is of what train_gpt does (train/ranks/data_parallel.cuh): gradients accumulate over micro-batches, and are summed by buckets
during the backward pass of the last one; the embeddings' bucket comes when all is computed and hides behind nothing.
"""
import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHECK = ROOT / "dev/results/scaling-cpu.json"

# Assumptions. Peak and link speeds are NVIDIA's published ones (H100 SXM, DGX H100: 8 GPUs and 8 x 400 Gb/s a node); the
# fractions that are reached are guesses, as others have reported for such machines.
PEAK = 989e12             # bf16 FLOP/s
REACHED = 0.40            # of it, in a whole update
MEMORY = 3.35e12 * 0.8    # bytes/s
NVLINK = 450e9 * 0.8      # bytes/s of a GPU, each direction, inside a node
NETWORK = 50e9 * 0.8      # bytes/s of a GPU, each direction, between nodes
NODE = 8
HOP = 10e-6               # s, one step of a tree between nodes
LAUNCH = 3e-6             # s, one kernel at least
KERNELS = 40              # of a block, forward and backward
MESSAGE = 5e-6            # s, rank 0 receives and answers one rank's sums over TCP
BUCKET = 16 << 20         # bytes

# GPT-2's shapes; tokens of an update as GPT-3 chose them for these sizes.
MODELS = {"124M": (12, 768, 1 << 19), "350M": (24, 1024, 1 << 19), "774M": (36, 1280, 1 << 19), "1.5B": (48, 1600, 1 << 20)}
T, V = 1024, 50304
RANKS = [1 << i for i in range(11)]


def parameters(L, C):
    return V * C, T * C + L * (12 * C * C + 17 * C)  # wte, the rest


def all_reduce(nbytes, ranks):
    """Inside the node, then each GPU's eighth between nodes, then inside again."""
    inside, nodes = min(ranks, NODE), max(1, ranks // NODE)
    t = 2 * (inside - 1) / inside * nbytes / NVLINK
    if nodes > 1:
        t += 2 * (nodes - 1) / nodes * nbytes / NODE / NETWORK
    hops = 2 * math.log2(nodes) * HOP + (inside > 1) * 20e-6
    return t + hops * max(1, nbytes / BUCKET)


def update(model, ranks, zero=False):
    """Seconds by part, or None where a rank has less than one sequence. A micro-batch is 16 sequences, or what there is."""
    L, C, batch = MODELS[model]
    wte, rest = parameters(L, C)
    tokens = batch / ranks
    if tokens < T:
        return None
    micro = min(tokens, 16 * T)
    flops = 6 * (wte + L * 12 * C * C) + 6 * L * T * C  # a token, causal attention
    floor = L * KERNELS * LAUNCH
    one = max(micro * flops / (PEAK * REACHED), floor)
    compute = tokens / micro * one
    hidden = all_reduce(2 * rest, ranks) if ranks > 1 else 0
    last = all_reduce(2 * wte, ranks) if ranks > 1 else 0
    exposed = max(0, hidden - 2 / 3 * one) + last
    # Moments and master weights in fp32, weights and gradients in bf16: read and written once.
    optimizer = (wte + rest) * (24 / (ranks if zero else 1) + 6) / MEMORY
    control = 2 * (ranks - 1) * MESSAGE
    return {"compute": compute, "gradients": exposed, "optimizer": optimizer, "sums": control}


def seconds(model, ranks):
    parts = update(model, ranks)
    return sum(parts.values()) if parts else None


def last_that_pays(model):
    """The most ranks that were worth doubling to: the update at least 1.5 times as fast."""
    best = 1
    for ranks in RANKS[1:]:
        now, before = seconds(model, ranks), seconds(model, ranks // 2)
        if now is None or before / now < 1.5:
            break
        best = ranks
    return best


def ms(t):
    return f"{1e3 * t:,.0f} ms" if t >= 0.1 else f"{1e3 * t:.3g} ms"


def gpu_table():
    lines = ["| GPUs | " + " | ".join(MODELS) + " |", "| --- |" + " --- |" * len(MODELS)]
    for ranks in RANKS:
        cells = []
        for model in MODELS:
            t = seconds(model, ranks)
            cells.append(f"{ms(t)}, {100 * seconds(model, 1) / t / ranks:.0f}%" if t else "less than a sequence a GPU")
        lines.append(f"| {ranks} | " + " | ".join(cells) + " |")
    lines.append("| pays up to | " + " | ".join(str(last_that_pays(m)) for m in MODELS) + " |")
    return "\n".join(lines)


def parts_table(ranks):
    lines = ["| model | compute | gradients, not hidden | optimizer | with `-z 1` | sums through rank 0 |", "| --- |" + " --- |" * 5]
    for model in MODELS:
        parts = update(model, ranks)
        if not parts:
            continue
        cells = [parts["compute"], parts["gradients"], parts["optimizer"], update(model, ranks, True)["optimizer"], parts["sums"]]
        lines.append(f"| {model} | " + " | ".join(ms(c) for c in cells) + " |")
    return "\n".join(lines)


# ---- the check: CPU ranks of this machine

SHAPE = "--n-layer 4 --n-embd 256 --n-head 4 -t 128 -b 4 --threads 1 -v 0 --device cpu".split()
MICRO = 6


def mpirun(ranks, command):
    flags = ["--oversubscribe", "--bind-to", "none"] + (["--allow-run-as-root"] if os.geteuid() == 0 else [])
    return ["mpirun", *flags, "-np", str(ranks), *command]


def measured_update(folder, ranks, micro, updates=12):
    flags = [*SHAPE, "-d", str(micro * 4 * 128), "-x", str(updates), "-o", f"{folder}/m.bin"]
    subprocess.run(mpirun(ranks, [str(ROOT / "train_gpt"), *flags]), check=True, stdout=subprocess.DEVNULL)
    updates = [r for r in map(json.loads, open(f"{folder}/m.log.jsonl")) if "step" in r]
    return statistics.median(micro * 4 * 128 / r["tokens_per_second"] for r in updates[2:])


def measure():
    cores = len(os.sched_getaffinity(0))
    L, C = 4, 256
    mib = 4 * (256 * C + 128 * C + L * (12 * C * C + 17 * C) + 4 * C) / 2**20
    with tempfile.TemporaryDirectory() as folder:
        a, b = measured_update(folder, 1, MICRO), measured_update(folder, 1, 2 * MICRO)
        result = {"cores": cores, "gradient_mib": mib, "seconds_a_micro_batch": (b - a) / MICRO, "seconds_fixed": 2 * a - b,
                  "ranks": []}
        for ranks in 1, 2, 3:
            out = subprocess.run(mpirun(ranks, [str(ROOT / "build/bench_ranks"), "16"]), check=True, capture_output=True, text=True)
            reduce_s = float(out.stdout) / 16 * mib
            result["ranks"].append({"ranks": ranks, "sum_seconds": reduce_s, "update_seconds": measured_update(folder, ranks, MICRO)})
    CHECK.write_text(json.dumps(result, indent=1) + "\n")


def cpu_table():
    r = json.loads(CHECK.read_text())
    lines = [f"| ranks on {r['cores']} cores | predicted | measured | measured / predicted |", "| --- | --- | --- | --- |"]
    for row in r["ranks"]:
        n = row["ranks"]
        share = max(1, n / r["cores"])  # ranks that share a core
        # The thread that sums has no core of its own: nothing hides.
        predicted = share * (r["seconds_fixed"] + MICRO / n * r["seconds_a_micro_batch"]) + row["sum_seconds"]
        lines.append(f"| {n} | {1e3 * predicted:.0f} ms | {1e3 * row['update_seconds']:.0f} ms | {row['update_seconds'] / predicted:.2f} |")
    return "\n".join(lines)


def plot():
    try:
        import plot_style
        plt, colors = plot_style.load()
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for color, model in zip(colors, MODELS):
        ranks = [n for n in RANKS if seconds(model, n)]
        times = [seconds(model, n) for n in ranks]
        left.loglog(ranks, times, "o-", color=color, markersize=3, label=model)
        left.loglog(ranks, [times[0] / n for n in ranks], ":", color=color, linewidth=0.8)
        right.semilogx(ranks, [100 * times[0] / t / n for t, n in zip(times, ranks)], "o-", color=color, markersize=3, label=model)
        n = last_that_pays(model)
        right.plot(n, 100 * seconds(model, 1) / seconds(model, n) / n, "o", color=color, markersize=8, fillstyle="none")
    left.set(title="Computed, not measured: seconds of an update (dotted: perfect)", xlabel="GPUs")
    right.set(title="Efficiency, % (circle: the last doubling that gave 1.5 x)", xlabel="GPUs", ylim=(0, 105))
    left.legend(), right.legend()
    for axis in left, right:
        axis.set_xticks(RANKS[::2], [str(n) for n in RANKS[::2]]), axis.minorticks_off()
    plot_style.save(figure, ROOT / "dev/results/scaling", ("png",))


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--measure", action="store_true")
    if arguments.parse_args().measure:
        measure()
    print("Seconds of an update and efficiency, estimated:\n\n" + gpu_table())
    for count in 8, 256:
        print(f"\nParts on {count} GPUs, estimated:\n\n" + parts_table(count))
    if CHECK.exists():
        print("\nCPU ranks, measured:\n\n" + cpu_table())
    plot()
