"""What the experiments share: training runs that are done once, their records, and the statistics of paired seeds.

A run is a list of flags. Its record, one line of dev/results/runs.jsonl or its later parts, is found again by a hash of those flags, so an
experiment that is started anew trains only what is missing, and two experiments share the runs they have in common.
Tables and figures are made from the records alone: `--report` needs neither corpus nor program.
"""
import argparse
import concurrent.futures
import dataclasses
import datetime
import fcntl
import hashlib
import json
import math
import pathlib
import re
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "dev"))
import needs  # noqa: E402
import plot_style  # noqa: E402, F401 (for the experiments)

if not {"-h", "--help"} & set(sys.argv):
    needs.need("scipy")
try:
    from scipy import stats
except ImportError:  # see needs.optional; help needs none
    stats = None

RESULTS = ROOT / "dev" / "results"
RECORDS = [RESULTS / f"runs{part}.jsonl" for part in ("", "-2", "-3", "-4")]  # parts of less than 1 MiB; new records go to the last
CORPORA = {  # name: flags, with files of --data; books_train.txt: the first 20,000,000 bytes of such a corpus;
    # bpe10k: the folder that `./bpe_train books_train.txt --vocab-size 10000 --out bpe10k` writes
    "shakespeare": {"-i": "tinyshakespeare.txt"},
    "books": {"-i": "books_train.txt", "-j": "books_val.txt"},
    # what dev/experiments/pretrained.py --sample writes
    **{name: {"-i": f"{name}/train.bin", "-j": f"{name}/val.bin"} for name in ("microformer-mgm", "microformer-mgm-long")},
    "books, BPE": {"-i": "books_train.txt", "-j": "books_val.txt", "--tokenizer": "bpe10k"},
    # what dev/experiments/gpu_science.py --books makes: all 96 MB
    **{f"books, all, {name}": {"-i": "books_all.txt", "-j": "books_val.txt", "--tokenizer": folder}
       for name, folder in (("BPE", "books_bpe10k"), ("GPT-2", "gpt2"))},
}
SHAPE = "--n-layer 4 --n-head 4 --n-embd 64 -t 64 -b 12"  # 0.22M parameters with bytes; 768 tokens per update
MODES = {  # name: flags
    "norm": "-g norm",
    "norm + scale loss": "-g norm --gate-warmup 5% --scale-loss 0.1",
    "taper": "-g taper --gate-warmup 5% --gate-end 40% --scale-loss 0",
    "taper, late": "-g taper --gate-warmup 20% --gate-end 80% --scale-loss 0",
    "taper + scale loss": "-g taper --gate-warmup 5% --gate-end 40% --scale-loss 0.1",
    "taper-all + scale loss": "-g taper-all --gate-warmup 5% --gate-end 40% --scale-loss 0.1",
    "norm + scale loss, early": "-g norm --gate-warmup 2% --scale-loss 0.1",
    "taper + scale loss, early": "-g taper --gate-warmup 2% --gate-end 40% --scale-loss 0.1",
    "taper-all + scale loss, early": "-g taper-all --gate-warmup 2% --gate-end 40% --scale-loss 0.1",
    "norm + scale loss, frozen": "-g norm --gate-warmup 5% --scale-loss 0.1 --freeze-gains",
    "norm + scale loss, early, frozen": "-g norm --gate-warmup 2% --scale-loss 0.1 --freeze-gains",
    "taper + scale loss, guarded": "-g taper --gate-warmup 2% --gate-end 40% --scale-loss 0.1 --skip-grad 100",
    "taper-all + scale loss, guarded": "-g taper-all --gate-warmup 2% --gate-end 40% --scale-loss 0.1 --skip-grad 100",
    "taper + scale loss, carried": "-g taper --gate-warmup 5% --gate-end 40% --scale-loss 0.1 --carry-moments",
    "taper + scale loss, early, carried": "-g taper --gate-warmup 2% --gate-end 40% --scale-loss 0.1 --skip-grad 0 --carry-moments",
}


@dataclasses.dataclass(frozen=True)
class Run:
    corpus: str
    flags: str               # everything but files, seed and threads
    seed: int = 1
    start: "Run | None" = None  # begins with the weights of this run
    keep: bool = dataclasses.field(default=False, compare=False)  # its weights, for others to start from
    init: str = ""           # begins with the weights of this folder of --data
    other: str = ""          # what its program did differently, where that was tried and is not in the code

    @property
    def key(self):
        text = f"{self.corpus} | {self.flags} | {self.seed}" + (f" | {self.start.key}" if self.start else "")
        text += f" | {self.init}" if self.init else ""
        text += f" | {self.other}" if self.other else ""
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_records():
    records = {}
    for part in RECORDS:
        for number, line in enumerate(part.read_text().splitlines() if part.exists() else [], 1):
            try:
                record = json.loads(line)
                records[record["key"]] = record
            except (ValueError, KeyError, TypeError):
                sys.exit(f"{part}: expected a record in line {number}, found none that is whole; remove the line")
    return records


def append_record(record):
    with RECORDS[-1].open("a") as file:
        file.write(json.dumps(record, separators=(",", ":")) + "\n")  # one write, whole whoever else appends


def digits(x):
    return x if x is None else float(f"{x:.4g}")


def summary(log):
    """A run's log, thinned: about 32 updates spaced evenly on a logarithmic scale, training loss as a local mean."""
    last, picked = log[-1]["step"], []
    for i in range(33):
        step = round(last ** (i / 32))
        if not picked or step > picked[-1]:
            picked.append(step)
    curve = {"step": picked}
    for field in ("loss", "stream_scale", "grad_norm"):
        curve[field] = []
        for step in picked:
            near = [e[field] for e in log[int(step * 0.95):max(step, int(step * 0.95) + 1)] if e[field] is not None]
            curve[field].append(digits(statistics.mean(near)) if near else None)
    c = {name.removesuffix(".taper_scale").removeprefix("transformer."): digits(value)
         for e in log for name, value in e.items() if name.endswith(".taper_scale")}
    return {"steps": last, "curve": curve, "c": c,
            "scale_target": next((digits(e["scale_target"]) for e in log if "scale_target" in e), None),
            "val": [[e["step"], digits(e["val_loss"])] for e in log if "val_loss" in e]}


class Trainer:
    options = ["--threads", "1"]  # of every run, on this machine

    def __init__(self, args):
        self.program, self.data, self.work = args.program, args.data, args.work
        self.commit = args.commit or subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True,
                                                    capture_output=True, check=True).stdout.strip()

    def model(self, run):
        return self.work / run.key / "model.bin"

    def train(self, run, wait):
        """Trains a run unless it is done. One that another process has in work is waited for, or left to it."""
        self.model(run).parent.mkdir(parents=True, exist_ok=True)
        with (self.model(run).parent / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                return "in work elsewhere"
            return "done elsewhere" if self.is_done(run) else self.train_claimed(run)

    def is_done(self, run):
        return run.key in read_records() and (self.model(run).exists() or not run.keep)

    def train_claimed(self, run):
        if run.other:
            return f"not trained: its program was another ({run.other})"
        command = self.command(run)
        done = self.execute(run, command)
        log = self.model(run).with_suffix(".log.jsonl")
        entries = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        final = next((e["val_loss"] for e in entries if e.get("end") == "complete"), None) if done.returncode == 0 else None
        if final is None and "the run diverged" not in done.stderr:
            return f"not recorded, exit status {done.returncode}: {done.stderr.strip()}\n  {' '.join(command)}"
        steps = [e for e in entries if "step" in e]
        record = {"key": run.key, "corpus": run.corpus, "flags": run.flags, "seed": run.seed,
                  "start": run.start.key if run.start else None, "val_loss": final if final is None else round(final, 6),
                  "error": done.stderr.strip().splitlines()[-1] if final is None else None,
                  "date": datetime.date.today().isoformat(), "commit": self.commit,
                  **self.measured(steps), **summary(steps)}
        if run.key not in read_records():  # else only its weights were missing
            append_record(record)
        if not run.keep:
            for path in self.model(run).parent.glob("*.bin"):
                path.unlink()
        return record["val_loss"] or record["error"]

    def command(self, run):
        command = [self.program, "-o", str(self.model(run)), "--seed", str(run.seed), *self.options, *run.flags.split()]
        for flag, name in CORPORA[run.corpus].items():
            command += [flag, str(self.data / name)]
        if "--bound" not in run.flags:  # there was none when these runs were named
            command += ["--bound", "0"]
        if run.start or run.init:
            command += ["--init", str(self.model(run.start) if run.start else self.data / run.init)]
            if "--calibration" not in run.flags:  # there was one way only when these runs were named
                command += ["--calibration", "scalar", "--scale-loss-kind", "absolute"]
        return command

    def execute(self, run, command):
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def measured(self, steps):
        """What a record has of this machine."""
        return {}


def run_all(args, runs, trainer_type=Trainer):
    """Trains what is missing, --jobs at a time and in order; returns the records by run, those there are."""
    runs = list(dict.fromkeys(runs))
    for wait in () if args.report else (False, True):
        trainer = trainer_type(args)
        missing = [run for run in runs if run.key not in read_records()]
        for some in ({run.start for run in missing if run.start}, missing):
            train_missing(trainer, [run for run in some if not trainer.is_done(run)], wait or some is not missing, args.jobs)
    return records_of(runs)


def records_of(runs):
    records = read_records()
    return {run: records[run.key] for run in runs if run.key in records}


def train_missing(trainer, missing, wait, jobs):
    begun = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        pending = {pool.submit(trainer.train, run, wait): run for run in missing}
        for i, future in enumerate(concurrent.futures.as_completed(pending), 1):
            run, left = pending[future], (time.monotonic() - begun) / i * (len(missing) - i)
            print(f"[{i}/{len(missing)}, {left / 60:.0f} min left] {run.corpus}, seed {run.seed}: {future.result()}   "
                  f"{run.flags}", flush=True)


def losses_of(by_seed, records):
    """{seed: validation loss} of {seed: run}; a run that diverged or was not made has none."""
    found = {seed: records.get(run) for seed, run in by_seed.items()}
    return {seed: record["val_loss"] for seed, record in found.items() if record and record["val_loss"]}


# ---- statistics -----------------------------------------------------------------------------------------------------

def paired_gap(losses, base):
    """Mean relative gap over the seeds that both have ({seed: loss}), and half the width of its 95% interval."""
    return mean_and_half(gaps_of(losses, base))


def mean_and_half(values):
    """The mean, and half the width of its 95% interval."""
    if len(values) < 2 or stats is None:
        return statistics.mean(values) if values else math.nan, math.inf
    return statistics.mean(values), stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)


def gaps_of(losses, base):
    return [losses[seed] / base[seed] - 1 for seed in losses if seed in base]


def welch_text(a, b):
    """The mean of a minus that of b, in percent, with its 95% interval by Welch's t."""
    if min(len(a), len(b)) < 2 or stats is None:
        return ""
    low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    return f"{100 * (statistics.mean(a) - statistics.mean(b)):+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}]"


def gap_p(losses, base):
    """How probable so large a gap is where there is none (Student's t, two sides)."""
    gaps = gaps_of(losses, base)
    return stats.ttest_1samp(gaps, 0).pvalue if len(gaps) > 1 and stats else math.nan


def holm(ps):
    """Holm's correction of {name: p} for their number."""
    corrected, largest, left = {}, 0.0, len(ps)
    for name in sorted(ps, key=ps.get):
        largest = max(largest, min(1.0, left * ps[name]))
        corrected[name], left = largest, left - 1
    return corrected


def gap_text(losses, base):
    mean, half = paired_gap(losses, base)
    if math.isnan(mean):
        return ""
    return f"{100 * mean:+.2f}%" + (f" [{100 * (mean - half):+.2f}, {100 * (mean + half):+.2f}]" if math.isfinite(half) else "")


def losses_text(losses):
    """Mean, and deviation where there are several."""
    deviation = f" ± {statistics.stdev(losses.values()):.4f}" if len(losses) > 1 else ""
    return f"{statistics.mean(losses.values()):.4f}{deviation}" if losses else ""


# ---- reports --------------------------------------------------------------------------------------------------------

def table(header, rows):
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in [header, ["---"] * len(header), *rows]]
    return "\n".join(lines) + "\n"


def write_block(path, name, text):
    """Puts text between `<!-- block: NAME -->` and `<!-- end -->`."""
    pattern = re.compile(rf"(<!-- block: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    old = path.read_text()
    if not pattern.search(old):
        sys.exit(f"{path}: no block {name}")
    new = path.with_name(path.name + ".new")  # a page is never there in part
    new.write_text(pattern.sub(lambda m: m[1] + text.strip("\n") + "\n" + m[2], old))
    new.replace(path)


def arguments(doc, more=lambda parser: None, jobs=True):
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="train nothing: tables and figures from the records")
    parser.add_argument("--data", type=pathlib.Path, default=ROOT / "data" / "text",
                        help="folder with tinyshakespeare.txt, books_train.txt, books_val.txt, bpe10k (default data/text)")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "scratch" / "experiments", help="models and logs")
    parser.add_argument("--program", default=str(ROOT / "train_gpt"))
    parser.add_argument("--commit", help="of the program, where it is a copy (default HEAD)")
    if jobs:
        parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    more(parser)
    args = parser.parse_args()
    if jobs and args.jobs < 1:
        parser.error(f"argument --jobs: expected at least 1, found {args.jobs}")
    return args
