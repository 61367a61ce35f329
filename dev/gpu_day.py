#!/usr/bin/env python3
"""What a GPU can say about this project in half an hour: are the kernels right, how fast are they, and how fast are others on the same machine?

    make gpu-day [MINUTES=9] [BLOCKS="update peers"] [RESULTS=DIR]      builds the programs and calls this script; again: goes on
    dev/gpu_day.py --report                     the page of every GPU again, from the records alone
    dev/gpu_day.py --dry-run --programs DIR     every block in tiny sizes on the stand-in of tests/emu, in a folder that goes

Blocks are in the order of their worth. Each command may fail alone, begins only if there is time for it, and is recorded at once. What the
results have of the same commit and GPU is not measured again; what failed is, after all that has not been tried. (A commit that ends
with -dirty says too little for that: commit first.) Clocks and power are sampled meanwhile.

Writes DIR/<gpu>-day.jsonl, one record per command with its tables as rows, and from it DIR/<gpu>-day.md, which begins with the goals and estimates
of gpu_goals.py beside what was measured. Peers: PyTorch in dev/.venv or of
the Python that runs this; llm.c where build/peer/llm.c/train_gpt2cu is (`make train_gpt2cu GPU_COMPUTE_CAPABILITY=90 NO_MULTI_GPU=1` in a clone;
for CUDA 13 its cudaMemAdvise must be given a cudaMemLocation; USE_CUDNN=1 for its flash attention).

Where nothing can be compiled or only one folder comes back: `make gpu-day-programs USE_MPI=0 GPU=90` elsewhere (6 minutes on 2 cores; have_pcre2=
have_libedit= HAVE_NCCL= leave out libraries that the machine lacks), carry the 7 programs of build/gpu, stripped (70 MB, 17 as a .tar.xz), and build/peer, and call `dev/gpu_day.py --minutes 9 --earlier dev/results --results FOLDER`; what came back goes to dev/results before the next call.
"""
import argparse
import contextlib
import ctypes
import dataclasses
import datetime
import json
import math
import os
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import gpu_goals

ROOT = pathlib.Path(__file__).resolve().parent.parent
LLMC = ROOT / "build" / "peer" / "llm.c" / "train_gpt2cu"
TINY = "--n-layer 1 --n-head 2 --n-embd 32 --vocab 300"


@dataclasses.dataclass(frozen=True)
class Command:
    line: str           # {programs}, {python}, {root}, {llmc}, {tiny}, {folder} stand for paths
    tiny: str           # the same in a dry run; empty: left out there
    expected: int       # seconds that it will probably take
    seconds: int = 240  # at most
    needs: str = ""     # a key of look_around's `missing`: left out, with a word, where that is not there
    keep: str = ""      # of {folder}/log, which it writes, the lines with this text are kept, each once


@dataclasses.dataclass(frozen=True)
class Block:
    name: str
    title: str
    commands: tuple


def bench(flags, tiny_flags, expected):
    return Command(f"{{programs}}/bench_gpu {flags}", f"{{programs}}/bench_gpu {TINY} -t 32 -b 2 --rounds 2 --micro-batches 2 {tiny_flags}", expected)


def ours(number):
    """A row beside those of peers."""
    return bench(f"--norm-only --label {number}.", f"--norm-only --label {number}.", 10)


def with_environment(setting, command):
    return dataclasses.replace(command, line=f"env {setting} {command.line}", tiny=f"env {setting} {command.tiny}")


def infer(flags, protocol, expected, in_dry_run=True):
    command = "{programs}/bench_infer %s --protocol " + f"{protocol} --device cuda"
    return Command(command % flags, command % "{tiny}" + " --seconds 0" if in_dry_run else "", expected)


def torch(what, flags, expected, in_dry_run=True):
    script = f"{{python}} {{root}}/dev/reference/bench_gpu_torch.py {what}"
    tiny = f"{script} {TINY} --seq-len 32 --batch 2 --steps 2 --device cpu --eager"
    return Command(f"{script} {flags}", f"{tiny} {flags if what == 'train' else ''}" if in_dry_run else "", expected, needs="torch")


def llmc(flags):
    return Command(f"{{root}}/dev/reference/bench_gpu_llmc.py {{llmc}} {flags}", "", 20, needs="llm.c")


def script(what, expected, seconds, needs=""):
    return Command(f"{{root}}/dev/gpu_test.sh {what} {{programs}}", f"{{root}}/dev/gpu_test.sh {what} {{programs}} tiny", expected, seconds, needs)


def profile(skip, count, command, tiny):
    start = f"{{root}}/dev/gpu_profile.py {{ncu}} {skip} {count} {{programs}}/"
    return Command(start + command, start + tiny, 60, 150, needs="ncu")


M30 = "--n-layer 8 --n-head 8 --n-embd 512 --vocab 10000"  # that of the paper's speeds
LOG = "env CUBLASLT_LOG_LEVEL=5 CUBLASLT_LOG_FILE={folder}/log {programs}/bench_gpu --rounds 1 --micro-batches 1 --norm-only"
BLOCKS = [
    Block("tests", "Are the kernels right, and are two runs equal?", (script("tests", 150, 400),)),
    Block("update", "An update of 124M, 32 sequences of 1024 tokens; one with ATTENTION=mma, the kernels for single warps, too",
          (bench("-e d12", "", 45), with_environment("ATTENTION=mma", ours("mma.sync")))),
    # 1.2e15 FLOP by the kernels for single warps, and as many by those for warpgroups: 8 s at 150 TFLOP/s, 5 s at 250.
    Block("attention", "Attention: the kernels for single warps (mma.sync) and for warpgroups (wgmma), against one large product",
          (Command("{programs}/bench_attention", "env EMU_SM=90 {programs}/bench_attention -t 64 --tokens 64 --n-embd 128 --rounds 1", 25, 90),)),
    Block("peers", "The same update in PyTorch and llm.c, ours before, between and behind them",
          (ours(1), torch("train", "", 120), ours(2), llmc("-r 0 -ge 2"), llmc(""), ours(3), torch("train", "--all-bf16", 90),
           torch("train", "--attention flash", 90, False),
           torch("train", "--attention cudnn", 90, False), ours(4))),
    Block("prompts", "Last-token logits of 30M, in PyTorch too",
          (infer(f"{M30} --seed 1", "last-token", 40), torch("infer", f"{M30} --seq-len 512 --steps 50", 40), infer(f"{M30} --seed 2", "last-token", 40, False))),
    # What decides about --persistent, written before it ran anywhere.
    Block("decoding", "Decoding with 124M, 774M (d36) and 1.6B (d48). One kernel becomes the default if greedily the folded and the normalized "
          "model are at least 1.1 times as fast by it at 124M, B 1, no row of a state is slower, and `tests` passed. The goal: half of the bandwidth "
          "at 124M, 78% at d36 and d48. (Random weights have flat logits, among which a choice at temperature 0.8 takes longer than a trained model's)",
          tuple(infer(f"-e {shape}", "decoding --persistent", 90, shape == "d12") for shape in ("d12", "d36", "d48"))),
    Block("choices", "What cuBLASLt chose for every product", (Command(f"{LOG} --n-layer 1", f"{LOG} {TINY} -t 32 -b 2", 20, 60, keep="algo"),)),
    Block("update64", "The same with 64 sequences", (bench("-e d12 -b 64 --micro-batches 8", "", 60),)),
    Block("logits", "Logits 8192 rows at a time", (bench("-e d12 --logits-rows 8192 --micro-batches 1", "--logits-rows 16", 40),)),
    Block("tuned", "With the fastest of cuBLASLt's algorithms for each product, against its own choice in `update`",
          (bench("-e d12 --tune", "--tune", 50),)),
    Block("small", "An update of 0.9M, whose launches may cost more than its work",
          (bench("--n-layer 8 --n-head 4 --n-embd 96 --vocab 256 -t 128 -b 8", "", 20),)),
    Block("sanitizer", "The ops under compute-sanitizer", tuple(script(tool, 60, 120) for tool in ("memcheck", "racecheck", "initcheck", "synccheck"))),
    Block("profile", "Kernels of an update of one layer of 124M, and of decoding with 124M, by Nsight Compute (whose times are without overlap)",
          (profile(80, 60, "bench_gpu --n-layer 1 --rounds 1 --micro-batches 1 --norm-only", f"bench_gpu {TINY} -t 32 -b 2 --rounds 1 --norm-only"),
           profile(400, 70, "bench_infer -e d12 --protocol decoding --device cuda --seconds 0", "bench_infer {tiny} --protocol last-token --device cuda --seconds 0"))),
    Block("ranks", "Two GPUs: the tests that one cannot run, and speed with as many tokens for each", (script("ranks", 120, 300, needs="two GPUs"),)),
]


# ---- one command ----------------------------------------------------------------------------------------------------

QUERY = ["clocks.sm", "clocks.mem", "power.draw", "temperature.gpu"]


class Sampler:
    """Clocks, power and temperature while a command runs."""

    def __init__(self, file):
        self.file, self.found, self.process = file, {}, None

    def __enter__(self):
        if shutil.which("nvidia-smi"):
            self.process = subprocess.Popen(["nvidia-smi", "-i", "0", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits",
                                             "-lms", "200", "-f", self.file], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return self

    def __exit__(self, *_):
        if not self.process:
            return
        self.process.terminate()
        self.process.wait()
        lines = [line.split(", ") for line in self.file.read_text().splitlines()] if self.file.exists() else []
        for i, name in enumerate(QUERY):
            values = []
            for line in lines:
                with contextlib.suppress(ValueError, IndexError):
                    values.append(float(line[i]))
            if values:
                self.found[name] = {"min": min(values), "median": statistics.median(values), "max": max(values)}


def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: what goes on alone would disturb the next call's figures


def execute(command, folder, seconds):
    """Runs a command for at most so many seconds: what it printed, and what went wrong."""
    with open(folder / "out", "w+", encoding="utf-8", errors="replace") as out, open(folder / "err", "w+", encoding="utf-8", errors="replace") as err:
        with subprocess.Popen(command, stdout=out, stderr=err, process_group=0, preexec_fn=die_with_parent) as process:
            try:
                process.wait(seconds)
                error = f"exit status {process.returncode}" if process.returncode else ""
            except BaseException as why:
                os.killpg(process.pid, signal.SIGKILL)
                if not isinstance(why, subprocess.TimeoutExpired):
                    raise
                error = f"longer than {seconds:.0f} s"
        out.seek(0), err.seek(0)
        text, said = out.read(), err.read().strip().splitlines()
    if error and said:
        error += ": " + "; ".join(said[-3:])
    return text, error


def kept_lines(path, text):
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return list(dict.fromkeys(line.split("] ", 1)[-1] for line in lines if text in line))


def parse_tables(text):
    """The tables of a text, those with equal headers as one: [(header, rows)]; and the text without them."""
    tables, rest, header = {}, [], None
    lines = text.splitlines()
    for i, line in enumerate(lines):
        cells = tuple(cell.strip() for cell in line.strip().strip("|").split("|")) if line.startswith("|") else None
        if cells is None:
            header = None
            rest.append(line)
        elif header is None and i + 1 < len(lines) and re.fullmatch(r"[|\s:-]+", lines[i + 1]):
            header = cells
            tables.setdefault(header, [])
        elif header and len(cells) == len(header) and not re.fullmatch(r"[|\s:-]+", line):  # not: cut off in the middle
            tables[header].append(cells)
    return list(tables.items()), re.sub(r"\n{3,}", "\n\n", "\n".join(rest)).strip()


def run_command(args, block, command, seconds):
    """The record of one command."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        paths = {"programs": args.programs, "python": args.python, "folder": folder, "root": ROOT, "llmc": LLMC, "tiny": args.tiny, "ncu": args.ncu}
        words = [word.format(**paths) for word in args.line_of(command).split()]
        print(f"$ {' '.join(words)}", flush=True)
        with Sampler(folder / "clocks") as sampler:
            text, error = execute(words, folder, seconds)
        if command.keep:
            kept = kept_lines(folder / "log", command.keep)
            text += "".join(f"\n    {line}" for line in kept)
            if not (kept or error or args.dry_run):
                error = f"no line with {command.keep} in its log"
    print(text + (f"FAILED: {error}" if error else ""), flush=True)
    tables, rest = parse_tables(text)
    return {"block": block.name, "command": args.line_of(command), "commit": args.commit, "gpu": args.gpu, "driver": args.driver,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "seconds": round(time.monotonic() - begun, 1),
            "error": error, "clocks": sampler.found, "text": rest, "tables": [{"header": header, "rows": rows} for header, rows in tables]}


# ---- records and the page -------------------------------------------------------------------------------------------

def read_records(path):
    records, lines = [], path.read_text().splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                sys.exit(f"{path}: expected a record in line {number}, found none that is whole; remove the line")
            print(f"{path}: its last line is not whole: a call was killed while it wrote", file=sys.stderr)
    return records


def append_record(path, record):
    """On the disk when this returns, so that nothing which was measured is lost with the machine. A last line that is not whole goes."""
    with path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def table_text(header, rows):
    numbers = [all(re.fullmatch(r"[-+\d.,%x ]*", row[i]) for row in rows) for i in range(len(header))]
    lines = [header, ["---:" if is_number else "---" for is_number in numbers], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def best_records(records):
    """{(block, command): record} in the order of the records: of each the last that did not fail, else the last."""
    best = {}
    for record in records:
        key = (record["block"], record["command"])
        if not record["error"] or best.get(key, record)["error"]:
            best[key] = record
    return best


def figures_of(best, line_of):
    """The records as gpu_goals.py asks for them."""
    lines = {(block.name, line_of(command)): (block.name, place) for block in BLOCKS for place, command in enumerate(block.commands)}
    return gpu_goals.Figures({lines[key]: record for key, record in best.items() if key in lines and not record["error"]})


def write_page(path, records, line_of):
    best = best_records(records)
    figures = figures_of(best, line_of)
    page = [f"# A day with {records[-1]['gpu']}", "",
            f"`make gpu-day`, driver {records[-1]['driver']}. {path.with_suffix('.jsonl').name} has the same for programs; dev/gpu_day.py says what each",
            "block is. Figures are medians; clocks (MHz), power (W) and temperature are those of the whole command, its start included.", "",
            "## Goals and estimates, written before the first run", "", table_text(gpu_goals.GOAL_HEADER, gpu_goals.goal_rows(figures))]
    if ops := gpu_goals.op_rows(figures):
        page += ["", table_text(gpu_goals.OP_HEADER, ops)]
    for block in BLOCKS:
        found = [record for record in best.values() if record["block"] == block.name]
        if not found:
            continue
        page += ["", f"## {block.title}", ""]
        texts, tables = [], {}
        for record in found:
            clocks = "; ".join(f"{name} {v['min']:g} to {v['max']:g}, median {v['median']:g}" for name, v in record["clocks"].items())
            page.append(f"* {record['date'][:16].replace('T', ' ')} UTC, commit {record['commit']}, {record['seconds']:.0f} s: `{record['command']}`"
                        + (f"; {clocks}" if clocks else "") + (f" **failed: {record['error']}**" if record["error"] else ""))
            texts += [record["text"]] if record["text"] else []
            for part in record["tables"]:
                tables.setdefault(tuple(part["header"]), []).extend(part["rows"])
        page += [line for text in dict.fromkeys(texts) for line in ("", text)]
        page += [line for header, rows in tables.items() for line in ("", table_text(header, rows))]
    path.write_text("\n".join(page) + "\n")


# ---- main -----------------------------------------------------------------------------------------------------------

def output_of(*command):
    with contextlib.suppress(OSError):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
    return ""


def look_around(args):
    """Which GPU, which programs, which peers there are."""
    programs = ["bench_gpu", "bench_attention", "bench_infer", "train_gpt", "fold", "infer", "run_kernel_tests" if args.dry_run else "run_cuda_tests"]
    for program in programs:
        if not (args.programs / program).exists():
            sys.exit(f"gpu_day: --programs: expected {args.programs / program}, found none; make gpu-day-programs builds it")
    done = subprocess.run([args.programs / "train_gpt", "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"commit (\S+?),", done.stdout)
    if not found:
        sys.exit(f"gpu_day: {args.programs / 'train_gpt'} --version: expected its commit, found exit status {done.returncode}: {done.stderr.strip()}")
    args.commit = found[1]
    if args.dry_run:
        args.gpu, args.driver = "the stand-in", "none"
    else:
        args.gpu, _, args.driver = output_of("nvidia-smi", "-i", "0", "--query-gpu=name,driver_version", "--format=csv,noheader").rpartition(", ")
        if not args.gpu:
            sys.exit("gpu_day: expected a GPU, found none (nvidia-smi names none); --dry-run needs none")
    environment = ROOT / "dev" / ".venv" / "bin" / "python"
    args.python = environment if environment.exists() else sys.executable
    wanted = "0" if args.dry_run else "not torch.cuda.is_available()"
    done = subprocess.run([args.python, "-c", f"import sys, torch; sys.exit({wanted})"], capture_output=True, text=True, check=False)
    args.missing = {}
    if done.returncode:
        args.missing["torch"] = f"no PyTorch with a GPU (make dev-env installs it): {(done.stderr.strip().splitlines() or ['no GPU'])[-1]}"
    if not LLMC.exists():
        args.missing["llm.c"] = f"no {LLMC.relative_to(ROOT)}"
    if args.dry_run:
        return
    if len(output_of("nvidia-smi", "-L").splitlines()) < 2:
        args.missing["two GPUs"] = "one GPU"
    args.ncu = shutil.which("ncu") or str(max(pathlib.Path("/opt/nvidia/nsight-compute").glob("*/ncu"), default=""))
    if not args.ncu:
        args.missing["ncu"] = "no ncu (Nsight Compute) in PATH or /opt/nvidia/nsight-compute"


def measure(args, results):
    """Runs what the records lack; returns what went wrong. What failed before comes after all that was not tried."""
    stem = re.sub(r"[^a-z0-9]+", "-", args.gpu.lower()).strip("-")
    path = results / f"{stem}-day.jsonl"
    if args.earlier and not path.exists() and (args.earlier / path.name).exists():
        shutil.copy(args.earlier / path.name, path)
    records, failed = read_records(path), []
    here = best_records([record for record in records if record["commit"] == args.commit])
    waiting = []  # (whether it failed before, block, command)
    for block in (block for block in BLOCKS if block.name in args.blocks):
        for command in block.commands:
            line = args.line_of(command)
            if reason := args.missing.get(command.needs) or (not line and "a dry run has it elsewhere, or cannot"):
                print(f"{block.name}: left out: {reason}")
            elif (key := (block.name, line)) in here and not here[key]["error"]:
                print(f"{block.name}: {path} has {line}")
            else:
                waiting.append((key in here, block, command))
    for _, block, command in sorted(waiting, key=lambda one: one[0]):
        left = args.end - time.monotonic()
        if left < command.expected and not args.dry_run:
            print(f"{block.name}: about {command.expected} s, {max(0, left):.0f} s are left; the next call measures {command.line}")
            continue
        print(f"\n{block.name}: {block.title}", flush=True)
        record = run_command(args, block, command, min(command.seconds, left))
        append_record(path, record)
        records.append(record)
        write_page(path.with_suffix(".md"), records, args.line_of)
        failed += [f"{block.name}: `{record['command']}`: {record['error']}"] if record["error"] else []
    print(f"{path.with_suffix('.md')}: {len(best_records(records))} commands" if records else "nothing was measured")
    return failed


def arguments():
    names = [block.name for block in BLOCKS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=pathlib.Path, default=ROOT / "build" / "gpu", help="folder of the programs (default build/gpu)")
    parser.add_argument("--minutes", type=float, default=9, help="of this call (default 9)")
    parser.add_argument("--begun", type=float, default=time.time(), help="when this call began, in seconds since 1970 (default now)")
    parser.add_argument("--blocks", nargs="+", choices=names, default=names, metavar="BLOCK", help=f"of {', '.join(names)} (default: all)")
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "dev" / "results", help="folder (default dev/results)")
    parser.add_argument("--earlier", type=pathlib.Path, metavar="FOLDER", help="begin with the records that lie there")
    parser.add_argument("--report", action="store_true", help="measure nothing: the pages from the records")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on the stand-in")
    args = parser.parse_args()
    if not args.minutes > 0:
        parser.error(f"argument --minutes: expected more than 0, found {args.minutes:g}")
    args.programs, args.tiny = args.programs.resolve(), None
    args.end = time.monotonic() + args.begun - time.time() + 60 * args.minutes
    args.line_of = lambda command: command.tiny if args.dry_run else command.line
    return args


# What Nsight Compute prints around a program: a row for each metric of each launch.
DRY_NCU = r"""#!/bin/sh
while [ "$1" != --launch-count ]; do shift; done
shift 2
"$@" || exit
echo '==PROF== Disconnected from process 1'
echo '"ID","Process ID","Kernel Name","Block Size","Grid Size","Metric Name","Metric Unit","Metric Value"'
for id in 0 1; do
    echo "\"$id\",\"1\",\"a_kernel\",\"(256, 1, 1)\",\"(132, 1, 1)\",\"gpu__time_duration.sum\",\"ns\",\"1,500\""
    echo "\"$id\",\"1\",\"a_kernel\",\"(256, 1, 1)\",\"(132, 1, 1)\",\"dram__throughput.avg.pct_of_peak_sustained_elapsed\",\"%\",\"4$id\""
done
"""
DRY_PROFILE = "| a_kernel | (132, 1, 1) | (256, 1, 1) | 2 | 3.0 | 0 | 40 | 0 |"  # 2 x 1500 ns; (40 + 41) / 2


def dry_run(args):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        args.ncu = folder / "ncu"
        args.ncu.write_text(DRY_NCU)
        args.ncu.chmod(0o755)
        args.tiny, args.end = folder / "tiny.bin", math.inf  # whose context is small: the stand-in takes its time
        shape = "--n-layer 1 --n-head 2 --n-embd 32 -t 8 -b 2 -x 20 -v 0 -m 1 --device cpu -o".split()
        if error := execute([args.programs / "train_gpt", *shape, args.tiny], folder, 60)[1]:
            sys.exit(f"gpu_day: dry run: no model: {error}")
        failed = measure(args, folder)
        (folder / "again").mkdir()
        args.earlier = folder  # it has everything
        failed += measure(args, folder / "again") if not failed else []
        page = (folder / "the-stand-in-day.md").read_text()
        records = read_records(folder / "the-stand-in-day.jsonl")
        again = read_records(folder / "again" / "the-stand-in-day.jsonl") if not failed else []
        if not failed and len(again) != len(records):
            failed.append("what had been measured was measured again")
    print(page)
    missing = [block.title for block in BLOCKS if block.name in args.blocks and f"## {block.title}" not in page]
    if args.blocks == [block.name for block in BLOCKS]:
        # The others are of peers, or of shapes that are too large here.
        measured = [0, 1, 6, 7, 8, 9, 12]
        rows = gpu_goals.goal_rows(figures_of(best_records(records), args.line_of))
        if [i for i, row in enumerate(rows) if row[-1]] != measured or DRY_PROFILE not in page or "| AdamW | 1.350 |" not in page:
            missing.append("goals, estimates or a profile without their figures")
    if failed or missing:
        sys.exit(f"gpu_day: dry run: {'; '.join(failed + missing)}")
    print("dry run: every block ran; nothing is kept")


def main():
    args = arguments()
    if args.report:
        for path in sorted(args.results.glob("*-day.jsonl")):
            if records := read_records(path):
                write_page(path.with_suffix(".md"), records, args.line_of)
        return
    look_around(args)
    if args.dry_run:
        dry_run(args)
        return
    args.results.mkdir(parents=True, exist_ok=True)
    if failed := measure(args, args.results):
        sys.exit("gpu_day: failed: " + "; ".join(failed))


def stop(*_):
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("gpu_day: stopped; the next call goes on")
