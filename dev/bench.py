#!/usr/bin/env python3
"""make bench: speed and memory of the CPU path, as ratios to peers and limits measured in the same run.

    dev/bench.py [--rounds N] [--quick] [--only PART] [--llmc PATH] [--torch PYTHON] [--llamacpp PROGRAM --gguf FILES]

Peers that are not there are left out and named: oneDNN (libdnnl-dev), PyTorch (make dev-env), llm.c (--llmc, a local
clone), llama.cpp (--llamacpp, its llama-bench; --gguf, files of dev/reference/gguf_gpt2.py). Ours and the peers run in
turn; every figure is a median.
"""
import argparse
import contextlib
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile

from reference.peer_gpt2 import places

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = ["train_gpt", "infer", "make_stories", "bench_infer", "build/bench_train", "build/bench_matmul"]
SHAPES = {"the default: L4 H4 C128 T256 B4 V256": (4, 4, 128, 256, 4, 256),
          "small: L6 H6 C384 T256 B16 V256": (6, 6, 384, 256, 16, 256), "124M: T256 B4": (12, 12, 768, 256, 4, 50257)}


def output(command, **kwargs):
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, **kwargs)
    if done.returncode:
        print(f"bench: {' '.join(map(str, command))} failed: {done.stderr.strip()[-300:]}", file=sys.stderr)
        return None
    return done.stdout


def last_json(text):
    return json.loads(text.strip().splitlines()[-1]) if text else None


def cpu_name():
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
        return next(line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def torch_rate(python, shape, steps):
    L, NH, C, T, B, V = map(str, shape)
    best = None
    for variant in ([], ["--compile"]):
        row = last_json(output([python, "dev/reference/bench_train_torch.py", "--n-layer", L, "--n-head", NH, "--n-embd", C,
                                "--seq-len", T, "--batch", B, "--vocab", V, "--steps", str(steps), *variant]))
        if row and (best is None or row["tokens_per_s"] > best["tokens_per_s"]):
            best = row | {"variant": " ".join(variant) or "eager"}
    return best


def llmc_rate(path, shape):
    L, NH, C, T, B, V = map(str, shape)
    return last_json(output(["dev/bench_llmc.sh", path, "-L", L, "-H", NH, "-C", C, "-T", T, "-B", B, "-V", V, "-n", "2"]))


def training(args):
    print("\n## Training, one update (forward, backward, clipping, AdamW), fp32\n")
    print("| shape | tokens/s | of the matmul floor | over PyTorch | over llm.c | blend / norm | g = 0 / norm | own matmuls "
          "/ oneDNN's | parallel loops, waiting | memory: held, peak |\n|" + " --- |" * 10)
    for name, shape in SHAPES.items():
        rounds = args.rounds if shape[0] < 12 else max(2, args.rounds // 3)
        ours = last_json(output(["build/bench_train", *map(str, shape), str(rounds)]))
        if not ours:
            continue
        rate = ours["tokens"] / ours["norm"]
        torch = torch_rate(args.torch, shape, max(2, rounds // 2)) if os.path.exists(args.torch) else None
        llmc = llmc_rate(args.llmc, shape) if args.llmc else None
        floor = f"{100 * ours['floor_over_norm']:.0f}%" if "floor_over_norm" in ours else "no oneDNN"
        if ours.get("floor_over_norm", 0) > 1:
            floor += " (above 100%: noise, or other programs held oneDNN's products up)"
        library = f"{ours['library_matmuls'] / ours['our_matmuls']:.2f}" if "library_matmuls" in ours else "no oneDNN"
        cells = [name, f"{rate:,.0f}", floor,
                 f"{rate / torch['tokens_per_s']:.2f} ({torch['variant']}, {torch['tokens_per_s']:,.0f})" if torch else "none",
                 f"{rate / llmc['tokens_per_s']:.1f} ({llmc['tokens_per_s']:,.0f})" if llmc else "none",
                 f"{ours['taper_blend_over_norm']:.3f}", f"{ours['taper_g0_over_norm']:.3f}", library,
                 f"{ours['parallel_loops']}, {100 * ours['waiting']:.0f}%",
                 f"{ours['held_bytes_one_model'] / 2**20:,.0f}, {ours['peak_kib_two_models'] / 2**10:,.0f} MiB (two models)"]
        print("| " + " | ".join(cells) + " |", flush=True)
    print("\nThe floor is all FLOPs of the update (matrix products and causal attention) at the rate that oneDNN reaches on the "
          "update's own matrix products in the same rounds. blend, g = 0: time over `norm`, neighbours in time.")


def along_a_run(args):
    """A model that has learned may be slower to train: processors are slow on denormal numbers, which a run makes more of."""
    print("\n## Training along a run\n\nThe default run of train_gpt; tokens/s (medians) in its first twentieth, at its half and in "
          "its last.\n\n| | 5% | 50% | 100% | last over first |\n| --- | --- | --- | --- | --- |")

    def row(name, rates):
        print(f"| {name} | " + " | ".join(f"{rate:,.0f}" for rate in rates) + f" | {rates[-1] / rates[0]:.2f} |", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        if output(["./train_gpt", "-g", "taper", "-v", "0", "-o", f"{folder}/run"]) is None:
            return
        log = [json.loads(line) for line in pathlib.Path(folder, "run.log.jsonl").read_text().splitlines()]
        rates = [line["tokens_per_second"] for line in log if "step" in line]
        row("train_gpt -g taper", [statistics.median(part) for part in places(rates).values()])
        if not os.path.exists(args.torch) or output(["./make_stories", f"{folder}/stories.txt"]) is None:
            return
        for name, flags in (("PyTorch, eager", ["--denormals"]), ("PyTorch, eager, set_flush_denormal(True)", [])):
            found = last_json(output([args.torch, "dev/reference/bench_train_torch.py", "--text", f"{folder}/stories.txt",
                                      "--steps", str(len(rates)), "--n-layer", "4", "--n-head", "4", "--n-embd", "128",
                                      "--batch", "4", *flags]))
            if found:
                row(name, [found[f"tokens_per_s_at_{p}_percent"] for p in (5, 50, 100)])


def peer_rate(text):
    """llama-bench -o json: tokens/s of its one test, else None."""
    return json.loads(text)[0]["avg_ts"] if text else None


def inference(args):
    """bench_infer's tables, and beside them PyTorch's last-token logits and llama.cpp's decoding."""
    print("\n## Inference, random weights\n\nWhat is measured: dev/bench_infer.cuh.")
    seconds = ["--seconds", "0.3" if args.quick else "2"]
    shapes = {"30M: L8 C512 H8 V10000": ["--n-layer", "8", "--n-head", "8", "--n-embd", "512", "--vocab", "10000"],
              "124M": ["--model", "d12"]}
    if args.quick:
        del shapes["124M"]
    for name, shape in shapes.items():
        for weights, protocol in [("fp32", "all"), ("bf16", "decoding"), ("int8", "decoding")]:
            if weights == "fp32" or name == "124M":
                table = output(["./bench_infer", "--device", "cpu", "--protocol", protocol, "--weights", weights,
                                *shape, *seconds])
                print(f"\n### {name}, {weights}\n\n" + (table or "failed").partition("\n\n")[2].strip(), flush=True)
    peers = [peer for peer in (args.torch, args.llamacpp) if peer and os.path.exists(peer)]
    print("\nPeers: " + (", ".join(peers) or "none here") + ".", flush=True)
    if os.path.exists(args.torch):
        for B, T in [(1, 128), (1, 512), (4, 512)]:
            row = last_json(output([args.torch, "dev/reference/bench_infer_torch.py", "--n-layer", "8", "--n-head", "8",
                                    "--n-embd", "512", "--vocab", "10000", "--batch", str(B), "--seq-len", str(T)]))
            print(f"PyTorch, 30M, last-token logits, B {B}, T {T}: {row['tokens_per_s'] if row else 'failed'} tokens/s.",
                  flush=True)
    for gguf in args.gguf if args.llamacpp else []:
        rate = peer_rate(output([args.llamacpp, "-m", gguf, "-p", "0", "-n", "128", "-o", "json",
                                 "-t", str(len(os.sched_getaffinity(0)))]))
        print(f"llama.cpp, {os.path.basename(gguf)}, decoding: {f'{1e3 / rate:.3f} ms per token' if rate else 'failed'}.")


@contextlib.contextmanager
def quota(cores):
    """Runs what is within by a control group that has so many cores' time; yields False where none can be made."""
    groups = [line.split(":", 2) for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines()]
    old = next((path for _, names, path in groups if "cpu" in names.split(",")), None)  # version 1
    own = pathlib.Path("/sys/fs/cgroup" + ("/cpu" + old if old else next((p for _, names, p in groups if not names), "/")))
    group, name = own / "tapernorm-bench", "tasks" if old else "cgroup.procs"
    try:
        group.mkdir()
        if old:
            (group / "cpu.cfs_quota_us").write_text(f"{int(cores * 100_000)}")
        else:
            (own / "cgroup.subtree_control").write_text("+cpu")
            (group / "cpu.max").write_text(f"{int(cores * 100_000)} 100000")
        (group / name).write_text(str(os.getpid()))
        made = True
    except OSError:
        made = False
    try:
        yield made
    finally:
        with contextlib.suppress(OSError):
            if made:
                (own / name).write_text(str(os.getpid()))
            group.rmdir()


def with_neighbours(args):
    """What is left of the speed beside programs that compute, too: busy loops in the same session, so that the scheduler divides
    the cores by thread. A fair share of c cores among n of them is c / (c + n)."""
    cores = len(os.sched_getaffinity(0))
    small = ["--n-layer", "4", "--n-head", "4", "--n-embd", "128", "--seq-len", "256"]

    def trained(*flags):
        with tempfile.TemporaryDirectory() as folder:
            if output(["./train_gpt", "-x", "20", "-v", "0", "--val-batches", "1", "-o", f"{folder}/run", *flags]) is None:
                return 0
            log = map(json.loads, pathlib.Path(folder, "run.log.jsonl").read_text().splitlines())
            times = [1 / line["tokens_per_second"] for line in log if "step" in line][4:]
            return len(times) / sum(times)

    def evaluated(model, text):
        found = output(["./infer", model, "--eval", text, "--json"])
        return json.loads(found)["tokens_per_second"] if found else 0

    def decoded(model):  # one sequence: the first row of bench_infer's table, milliseconds per step in its last column of a state
        table = output(["./bench_infer", model, "--device", "cpu", "--protocol", "decoding", "--seconds", "0"])
        row = next((line.split("|") for line in (table or "").splitlines() if line.startswith("| decoding")), None)
        return 1e3 / float(row[3].split()[0]) if row else 0

    def torch(**env):
        row = last_json(output([args.torch, "dev/reference/bench_train_torch.py", *small, "--batch", "4", "--vocab", "256",
                                "--steps", "6"], env=os.environ | env))
        return row["tokens_per_s"] if row else 0

    with tempfile.TemporaryDirectory() as folder:
        output(["./train_gpt", "-x", "12", "-v", "0", "--val-batches", "1", "-o", f"{folder}/model.bin"])
        output(["./make_stories", f"{folder}/stories.txt"])
        output(["./train_gpt", "-x", "1", "--n-layer", "8", "--n-head", "8", "--n-embd", "512", "-b", "1", "-v", "0",
                "--val-batches", "1", "-o", f"{folder}/25M.bin"])
        for name, size in ("text", 200_000), ("short", 16_000):
            pathlib.Path(folder, name).write_bytes(pathlib.Path(folder, "stories.txt").read_bytes()[:size])
        what = {"train_gpt": trained, "--threads 1": lambda: trained("--threads", "1"),
                "L6 H6 C384": lambda: trained("--n-layer", "6", "--n-head", "6", "--n-embd", "384", "-x", "8"),
                "--eval": lambda: evaluated(f"{folder}/model.bin", f"{folder}/text"),
                "--eval, 25M": lambda: evaluated(f"{folder}/25M.bin", f"{folder}/short"),
                "decoding, 25M": lambda: decoded(f"{folder}/25M.bin")}
        if os.path.exists(args.torch):
            what |= {"PyTorch": torch, "PyTorch, OMP_WAIT_POLICY=passive": lambda: torch(OMP_WAIT_POLICY="passive")}
        rounds = 2 if args.quick else args.rounds
        print(f"\n## Beside other programs\n\ntokens/s, medians of {rounds}; in brackets, over the quiet rate. PyTorch trains at "
              f"train_gpt's shape.\n\n| busy loops | fair share | {' | '.join(what)} |\n|" + " --- |" * (len(what) + 2))
        quiet = {}

        def row(loops, fair):
            rates = [[rate() for rate in what.values()] for _ in range(rounds)]
            cells = []
            for name, rate in zip(what, map(statistics.median, zip(*rates))):
                cells.append(f"{rate:,.0f} ({rate / (quiet.setdefault(name, rate) or 1):.2f})")
            print(f"| {loops} | {fair} | {' | '.join(cells)} |", flush=True)

        for loops, nice in [(0, 0), (1, 0), (2, 0), (4, 0), (2, 10)]:
            neighbours = [subprocess.Popen(["nice", "-n", str(nice), sys.executable, "-c", "while True: pass"])
                          for _ in range(loops)]
            try:
                row(loops, "lower priority" if nice else f"{cores / (cores + loops):.2f}")
            finally:
                for neighbour in neighbours:
                    neighbour.kill()
                    neighbour.wait()
        with quota(0.75 * cores) as made:
            if made:
                row(0, "0.75 (quota)")
            else:
                print("\nNo control group can be made here: no row for a quota.")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="no matmul table, few rounds, no 124M inference")
    parser.add_argument("--llmc", default=os.environ.get("LLMC", ""), help="a local clone of karpathy/llm.c")
    parser.add_argument("--torch", default=str(ROOT / "dev/.venv/bin/python"), help="a python that has torch")
    parser.add_argument("--only", choices=["training", "along", "neighbours", "matmul", "inference"], help="one part")
    parser.add_argument("--llamacpp", default=os.environ.get("LLAMA_BENCH", ""), help="llama.cpp's llama-bench")
    parser.add_argument("--gguf", nargs="*", default=[], help="models for it")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"--rounds: expected at least 1, found {args.rounds}")
    if args.quick:
        args.rounds = 3
    missing = [name for name in PROGRAMS if not (ROOT / name).exists()]
    if missing:
        sys.exit(f"bench: expected {', '.join(PROGRAMS)}, found no {missing[0]}; build them: make {' '.join(PROGRAMS)}")
    commit = (output(["git", "describe", "--always", "--dirty"]) or "unknown").strip()
    print(f"# CPU benchmark\n\n{cpu_name()}, {len(os.sched_getaffinity(0))} cores, {datetime.date.today()}, commit {commit}; "
          f"command: `{' '.join(['dev/bench.py', *sys.argv[1:]])}`")
    if args.only in (None, "training"):
        training(args)
    if args.only == "along" or (args.only is None and not args.quick):
        along_a_run(args)
    if args.only == "neighbours" or (args.only is None and not args.quick):
        with_neighbours(args)
    if args.only in (None, "inference"):
        inference(args)
    if args.only == "matmul" or (args.only is None and not args.quick):
        print("\n## Matrix products\n")
        print(output(["build/bench_matmul", str(args.rounds)]), flush=True)


if __name__ == "__main__":
    main()
