#!/usr/bin/env python3
"""What a GPU can say about this project in half an hour: are the kernels right, how fast are they, and how fast are others on the same machine?

    make gpu-day [MINUTES=28] [BLOCKS="update peers"] [RESULTS=DIR]     builds the programs and calls this script; again: goes on
    dev/gpu_day.py --report                     the page of every GPU again, from the records alone
    dev/gpu_day.py --dry-run --programs DIR     every block in tiny sizes on the stand-in of tests/emu, in a folder that goes

The blocks, in the order of their worth: BLOCKS below. Each may fail alone, each of its commands too. A block begins only if there is time for it.
What the results already have of the same commit and GPU is not measured again. Clocks and power are sampled meanwhile.

Writes DIR/<gpu>-day.jsonl, one record per block with all tables as rows, and from it DIR/<gpu>-day.md. Peers: PyTorch in dev/.venv or
python3; llm.c where build/peer/llm.c/train_gpt2cu has been built as its README says (for CUDA 13: its cudaMemAdvise takes a cudaMemLocation now).
"""
import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import random
import re
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
LLMC = ROOT / "build" / "peer" / "llm.c" / "train_gpt2cu"
TINY = "--n-layer 1 --n-head 2 --n-embd 32 --vocab 300"


@dataclasses.dataclass(frozen=True)
class Command:
    line: str       # {programs}, {python}, {root}, {llmc}, {tiny}, {folder} stand for paths
    tiny: str = ""  # the same in a dry run
    seconds: int = 180  # at most
    needs: str = ""     # "torch" or "llm.c": left out, with a word, where that is not there
    keep: str = ""      # a file that it writes in {folder}: its lines with this text are kept, each once


@dataclasses.dataclass(frozen=True)
class Block:
    name: str
    title: str
    seconds: int    # that it will probably take
    commands: tuple


def bench(flags, tiny_flags="", **more):
    return Command(f"{{programs}}/bench_gpu {flags}", f"{{programs}}/bench_gpu {TINY} -t 32 -b 2 --rounds 2 --micro-batches 2 {tiny_flags}", **more)


def infer(flags, protocol, in_dry_run=True):
    command = "{programs}/bench_infer %s --protocol " + f"{protocol} --device cuda"
    return Command(command % flags, command % "{tiny}" + " --seconds 0" if in_dry_run else "")


def torch(what, flags, in_dry_run=True):
    script = f"{{python}} {{root}}/dev/reference/bench_gpu_torch.py {what}"
    tiny = f"{script} {TINY} --seq-len 32 --batch 2 --steps 2 --device cpu --eager"
    return Command(f"{script} {flags}", tiny if in_dry_run else "", needs="torch")


def llmc(flags):
    return Command(f"{{root}}/dev/gpu_day.py --llm-c {{llmc}} {flags}", needs="llm.c")


OURS = bench("--norm-only --rounds 20", "--norm-only", seconds=60)
M30 = "--n-layer 6 --n-head 6 --n-embd 384"
LOG = "env CUBLASLT_LOG_LEVEL=5 CUBLASLT_LOG_FILE={folder}/log "
BLOCKS = [
    Block("tests", "Are the kernels right, and are two runs equal?", 150,
          (Command("{root}/dev/gpu_test.sh tests {programs}", "{root}/dev/gpu_test.sh tests {programs} tiny", 400),)),
    Block("update", "An update of 124M, 32 sequences of 1024 tokens", 60, (bench("-e d12"),)),
    Block("peers", "The same update in PyTorch and llm.c, ours before, between and behind them", 330,
          (OURS, torch("train", ""), OURS, torch("train", "--attention flash", False), torch("train", "--attention cudnn", False), OURS,
           llmc("-r 0 -ge 2"), llmc(""), OURS)),
    Block("prompts", "Last-token logits of 30M, in PyTorch too", 100,
          (infer(M30, "last-token"), torch("infer", f"{M30} --seq-len 512 --steps 50"))),
    Block("decoding", "Decoding with 124M, 774M (d36) and 1.6B (d48)", 150,
          tuple(infer(f"-e {shape}", "decoding", shape == "d12") for shape in ("d12", "d36", "d48"))),
    Block("choices", "What cuBLASLt chose for every product", 20,
          (Command(f"{LOG}{{programs}}/bench_gpu --n-layer 1 --rounds 1 --micro-batches 1 --norm-only",
                   f"{LOG}{{programs}}/bench_gpu {TINY} -t 32 -b 2 --rounds 1 --micro-batches 1 --norm-only", 60, keep="algo"),)),
    Block("update64", "The same with 64 sequences", 60, (bench("-e d12 -b 64 --micro-batches 8"),)),
    Block("logits", "Logits 8192 rows at a time", 40, (bench("-e d12 --logits-rows 8192 --micro-batches 1", "--logits-rows 16"),)),
    Block("small", "An update of 0.9M, whose launches may cost more than its work", 30,
          (bench("--n-layer 8 --n-head 4 --n-embd 96 --vocab 256 -t 128 -b 8"),)),
    Block("sanitizer", "The ops under compute-sanitizer", 200,
          (Command("{root}/dev/gpu_test.sh sanitizer {programs}", "{root}/dev/gpu_test.sh sanitizer {programs} tiny", 300),)),
]


# ---- one block ------------------------------------------------------------------------------------------------------

QUERY = ["clocks.sm", "clocks.mem", "power.draw", "temperature.gpu"]


class Sampler:
    """Clocks, power and temperature while a block runs."""

    def __enter__(self):
        self.process = subprocess.Popen(
            ["nvidia-smi", "-i", "0", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits", "-lms", "200"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) if shutil.which("nvidia-smi") else None
        return self

    def __exit__(self, *_):
        self.found = {}
        if not self.process:
            return
        self.process.terminate()
        lines = [line.split(", ") for line in self.process.communicate()[0].splitlines()]
        for i, name in enumerate(QUERY):
            values = []
            for line in lines:
                with contextlib.suppress(ValueError, IndexError):
                    values.append(float(line[i]))
            if values:
                self.found[name] = {"min": min(values), "median": statistics.median(values), "max": max(values)}


def execute(command, folder, seconds):
    """Runs a command for at most so many seconds: what it printed, and what went wrong."""
    with open(folder / "out", "w+", encoding="utf-8", errors="replace") as out, open(folder / "err", "w+", encoding="utf-8", errors="replace") as err:
        with subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True) as process:
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
    return "\n".join(dict.fromkeys(line.split("] ", 1)[-1] for line in lines if text in line))


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
        elif not re.fullmatch(r"[|\s:-]+", line):
            tables.setdefault(header or ("",) * len(cells), []).append(cells)
    return list(tables.items()), re.sub(r"\n{3,}", "\n\n", "\n".join(rest)).strip()


def run_block(args, block, left, folder):
    begun, texts, errors, skipped = time.monotonic(), [], [], []
    with Sampler() as sampler:
        for command in block.commands:
            if reason := args.missing.get(command.needs):
                skipped.append(f"left out: {reason}")
                continue
            line = command.tiny if args.dry_run else command.line
            if not line:
                skipped.append("left out of a dry run: what it has anyway, or lacks")
                continue
            seconds = min(command.seconds, left - (time.monotonic() - begun))
            if seconds < 1:
                errors.append(f"no time left for `{line}`")
                continue
            paths = {"programs": args.programs, "python": args.python, "folder": folder, "root": ROOT, "llmc": LLMC, "tiny": args.tiny}
            words = [word.format(**paths) for word in line.split()]
            print(f"$ {' '.join(words)}", flush=True)
            text, error = execute(words, folder, seconds)
            if command.keep:
                text += "\n" + "\n".join(f"    {kept}" for kept in kept_lines(folder / "log", command.keep).splitlines())
            print(text + (f"FAILED: {error}" if error else ""), flush=True)
            texts.append(text)
            if error:
                errors.append(f"`{' '.join(words)}`: {error}")
    tables, rest = parse_tables("\n\n".join(texts))
    return {"block": block.name, "commit": args.commit, "gpu": args.gpu, "driver": args.driver,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), "seconds": round(time.monotonic() - begun, 1),
            "failed": errors, "left_out": list(dict.fromkeys(skipped)), "clocks": sampler.found, "text": rest,
            "tables": [{"header": header, "rows": rows} for header, rows in tables]}


def llmc_row(program, flags):
    """Trains 124M by llm.c on random tokens; prints the median of its steps as a row of bench_gpu's table."""
    with tempfile.TemporaryDirectory() as name:
        tokens = pathlib.Path(name) / "tokens.bin"
        count, rng = 8 * 32 * 1024 + 1, random.Random(1)
        ids = [int(50257 ** rng.random()) - 1 for _ in range(count)]  # as frequent as words, as in bench_gpu
        tokens.write_bytes(struct.pack("<256i", 20240520, 1, count, *[0] * 253) + struct.pack(f"<{count}H", *ids))
        command = [program, "-i", tokens, "-j", tokens, "-e", "d12", "-b", "32", "-t", "1024", "-d", "32768", "-x", "30", "-v", "1000", "-m", "1",
                   "-s", "0", "-h", "0", "-n", "0", *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=name)
    times = [float(x) for x in re.findall(r"^step.*\| ([\d.]+) ms \|", done.stdout, re.M)][5:]
    if done.returncode or not times:
        sys.exit(f"llm.c: exit status {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}")
    ms = statistics.median(times)
    header = ["update", "tokens/s", "ms", "against `norm`", "TFLOP/s", "MFU", "of the limit", "GPU memory, GiB"]
    row = [f"llm.c, {' '.join(flags) or 'its defaults'}", f"{32768e3 / ms:.0f}", f"{ms:.2f}", "", "", "", "", ""]
    for cells in (header, ["---"] * len(header), row):
        print("| " + " | ".join(cells) + " |")


# ---- records and the page -------------------------------------------------------------------------------------------

def read_records(path):
    records = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        try:
            records.append(json.loads(line))
        except ValueError:
            sys.exit(f"{path}: expected a record in line {number}, found none that is whole; remove the line")
    return records


def table_text(header, rows):
    numbers = [all(re.fullmatch(r"[-+\d.,%x ]*", row[i]) for row in rows) for i in range(len(header))]
    lines = [header, ["---:" if is_number else "---" for is_number in numbers], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_page(path, records):
    latest = {record["block"]: record for record in records}
    first = next(iter(latest.values()))
    page = [f"# A day with {first['gpu']}", "",
            f"`make gpu-day`, driver {first['driver']}. {path.with_suffix('.jsonl').name} has the same for programs; dev/gpu_day.py says what each",
            "block is. Figures are medians; those of one block come from one stretch of minutes on one machine."]
    for block in (block for block in BLOCKS if block.name in latest):
        record = latest[block.name]
        page += ["", f"## {block.title}", "", f"{record['date'][:16].replace('T', ' ')} UTC, commit {record['commit']}, {record['seconds']:.0f} s."]
        if record["clocks"]:
            page[-1] += " " + "; ".join(f"{name} {v['min']:g} to {v['max']:g}, median {v['median']:g}" for name, v in record["clocks"].items()) + "."
        page += [f"**Failed:** {error}" for error in record["failed"]] + [f"{reason}." for reason in record["left_out"]]
        if record["text"]:
            page += ["", record["text"]]
        for found in record["tables"]:
            page += ["", table_text(found["header"], found["rows"])]
    path.write_text("\n".join(page) + "\n")
    print(f"wrote {path}")


# ---- main -----------------------------------------------------------------------------------------------------------

def output_of(*command):
    with contextlib.suppress(OSError):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
    return ""


def look_around(args):
    """Which GPU, which programs, which peers there are."""
    programs = ["bench_gpu", "bench_infer", "train_gpt", "fold", "infer", "run_kernel_tests" if args.dry_run else "run_cuda_tests"]
    for program in programs:
        if not (args.programs / program).exists():
            sys.exit(f"gpu_day: --programs: expected {args.programs / program}, found none; make gpu-day builds it")
    found = re.search(r"commit (\S+?),", output_of(args.programs / "train_gpt", "--version"))
    args.commit = found[1] if found else "unknown"
    if args.dry_run:
        args.gpu, args.driver = "the stand-in", "none"
    else:
        name, _, args.driver = output_of("nvidia-smi", "-i", "0", "--query-gpu=name,driver_version", "--format=csv,noheader").rpartition(", ")
        args.gpu = name
        if not name:
            sys.exit("gpu_day: expected a GPU, found none (nvidia-smi names none); --dry-run needs none")
    environment = ROOT / "dev" / ".venv" / "bin" / "python"
    args.python = environment if environment.exists() else sys.executable
    wanted = "sys.exit(0)" if args.dry_run else "sys.exit(not torch.cuda.is_available())"
    has_torch = subprocess.run([args.python, "-c", f"import sys, torch; {wanted}"], capture_output=True, check=False).returncode == 0
    args.missing = {} if has_torch else {"torch": "no PyTorch with a GPU (make dev-env installs it)"}
    if not LLMC.exists():
        args.missing["llm.c"] = f"no {LLMC.relative_to(ROOT)}"


def measure(args, results):
    stem = re.sub(r"[^a-z0-9]+", "-", args.gpu.lower()).strip("-")
    path = results / f"{stem}-day.jsonl"
    records = read_records(path)
    done = {record["block"] for record in records if record["commit"] == args.commit and not record["failed"]}
    end, failed = time.monotonic() + 60 * args.minutes, []
    for block in (block for block in BLOCKS if block.name in args.blocks):
        left = end - time.monotonic()
        if block.name in done:
            print(f"{block.name}: {path} has it")
        elif left < block.seconds and not args.dry_run:
            print(f"{block.name}: needs about {block.seconds} s, {max(0, left):.0f} s are left; the next call measures it")
        else:
            print(f"\n{block.name}: {block.title}", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                record = run_block(args, block, left, pathlib.Path(folder))
            with path.open("a") as file:
                file.write(json.dumps(record, separators=(",", ":")) + "\n")
            records.append(record)
            failed += [f"{block.name}: {error}" for error in record["failed"]]
    if records:
        write_page(path.with_suffix(".md"), records)
    return failed


def arguments():
    names = [block.name for block in BLOCKS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=pathlib.Path, default=ROOT / "build" / "gpu", help="folder of the programs (default build/gpu)")
    parser.add_argument("--minutes", type=float, default=28, help="of this call (default 28)")
    parser.add_argument("--blocks", nargs="+", choices=names, default=names, metavar="BLOCK", help=f"of {', '.join(names)} (default: all)")
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "dev" / "results", help="folder (default dev/results)")
    parser.add_argument("--report", action="store_true", help="measure nothing: the pages from the records")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on the stand-in")
    parser.add_argument("--llm-c", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)  # its program and flags: a row of a table
    args = parser.parse_args()
    if not args.minutes > 0:
        parser.error(f"argument --minutes: expected more than 0, found {args.minutes:g}")
    args.programs, args.tiny = args.programs.resolve(), None
    return args


def main():
    args = arguments()
    if args.llm_c:
        return llmc_row(args.llm_c[0], args.llm_c[1:])
    if args.report:
        for path in sorted(args.results.glob("*-day.jsonl")):
            if records := read_records(path):
                write_page(path.with_suffix(".md"), records)
        return None
    look_around(args)
    if args.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            args.tiny = pathlib.Path(folder) / "tiny.bin"  # whose context is small: the stand-in takes its time
            error = execute([args.programs / "train_gpt", *TINY.split()[:6], *"-t 32 -b 2 -x 20 -v 0 -m 1 --device cpu -o".split(), args.tiny],
                            pathlib.Path(folder), 60)[1]
            if error:
                sys.exit(f"gpu_day: dry run: no model: {error}")
            failed = measure(args, pathlib.Path(folder))
            if not failed and (again := measure(args, pathlib.Path(folder))):  # has nothing to do
                failed = again
            page = (pathlib.Path(folder) / "the-stand-in-day.md").read_text()
        print(page)
        missing = [block.title for block in BLOCKS if block.name in args.blocks and f"## {block.title}" not in page]
        if failed or missing:
            sys.exit(f"gpu_day: dry run: {'; '.join(failed + missing)}")
        print("dry run: every block ran; nothing is kept")
        return None
    args.results.mkdir(parents=True, exist_ok=True)
    if failed := measure(args, args.results):
        sys.exit("gpu_day: failed: " + "; ".join(failed))
    return None


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("gpu_day: stopped; the next call goes on")
