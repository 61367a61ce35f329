#!/usr/bin/env python3
"""Does the taper cost anything at 9M to 124M parameters, and does that change with tokens per parameter? For one GPU and half an hour.

    make gpu-science BOOKS=DIR [MINUTES=9] [STEPS="1 2"]      builds the programs and calls this script; again: goes on
    dev/experiments/gpu_science.py --report                   dev/results/gpu-science.md and its figure, from the records alone
    dev/experiments/gpu_science.py --dry-run --program PROGRAM    every step in tiny sizes, recorded and reported in a folder that goes

BOOKS: a folder with books_train.txt.xz and books_val.txt.xz (96 MB and 1 MB of English books) and with GPT-2's vocabulary
(gpt2_vocab.json, gpt2_merges.txt); from it the corpora in --data are made, once. Whatever has its record in
dev/results/gpu-runs.jsonl is not trained again. No run begins that would not end within --minutes; one that is stopped nevertheless
is saved and goes on in the next call. In the order of worth, on all 96 MB:

1. 9M (8 layers, 4 heads, 256 channels, 512 tokens, a BPE vocabulary of 10,000), 100M tokens: norm, norm + scale loss, norm + scale
   loss with frozen gains, taper, taper with frozen gains, at rates of 0.5, 1 and 2 times 0.46 / channels, seed 1. Everything else as in tuned.py, `-u 10%`;
   5% for the taper with frozen gains, which broke down with 10% at 0.93M.
2. Seeds 2 to 4 of each at its best rate. The best norm is that of the three with the lowest loss in step 1, before these are seen.
3. The same seeds and rates with a third of the tokens.
4. 17.7M in the shape and by the recipe of others who taper without a scale loss or a bound: 6 layers, 256 channels, GPT-2's
   vocabulary, RMSNorm, 16,384 tokens per update, a rate of 6e-4, g = 1 until 5% and 0 from 40%; norm and taper, 2 seeds.
5. 30M (-e d6's shape, batch and rate), norm and taper, 2 seeds.
6. 124M (-e d12's shape and rate, an eighth of its batch), norm and taper, validated ten times on the way.
7. The best norm of step 1 with what steps 5 and 6 have.

In steps 4 to 6 all runs of a step get 8 minutes together: as many updates as that gives by train_gpt's own measurement, at most 100M
tokens, which are 4 epochs. Steps 1 and 2 need two calls each if the GPU reaches 12% of its peak.

Stated on 2026-11-30, before the first run. Gaps are val(taper) / val(other) - 1 with paired 95% intervals over the seeds:
  G1  9M, 100M tokens, the default taper against the best norm: mean gap at most 0 and the interval's upper end at most +0.5%. Only
      then it costs nothing. (tuned.py found it behind a norm with frozen gains at smaller sizes: a miss is expected.)
  G2  The same against norm + scale loss: the interval's upper end is at most +0.5%.
  G3  Tokens: the gap to the best norm with 100M tokens minus that with a third, paired by seed. It grows or shrinks with tokens per
      parameter only if its whole interval is on one side of 0; otherwise nothing is said about a trend.
  G4  17.7M, no scale loss: the mean gap to norm is between -1% and +1%.
  G5  30M: the mean gap to norm is at most 0.
  G6  124M: the gap to norm is at most +0.5% at the end.
  G9  (Added on the same day, still before the first run.) 30M and 124M: the mean gap to the best norm of step 1 is at most +0.5% each.
  G7  No run of a taper diverges at any rate.
  G8  9M, 100M tokens: with frozen gains the taper is below the default one, with its whole interval (as at 0.04M and 0.2M in tuned.py).
With 3 seeds an interval is 2.5 deviations to each side: where it has room for what was stated, a miss of G1 or G2 may be for want of
seeds, and the report says so. A best rate at the edge of the three is marked: there a mode may have more in store.
"""
import dataclasses
import importlib.util
import lzma
import math
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent))
import needs  # noqa: E402

needs.optional = {"scipy", "matplotlib"}
import runs  # noqa: E402
import tuned  # noqa: E402
from runs import Run  # noqa: E402

MODES = {mode: tuned.MODES[mode] for mode in tuned.TUNED if mode not in tuned.TENFOLD}
MODES["taper, frozen gains"] += " -u 5%"  # the last -u counts
NORMS = [mode for mode in tuned.NORMS if mode in MODES]
UNANCHORED = {"norm": "-g norm --bound 0", "taper": "-g taper --bound 0 --gate-warmup 5% --gate-end 40% --scale-loss 0"}
ASSUMED_SHARE = 0.12   # of the GPU's peak, before anything was measured
START_SECONDS = 12     # of a run: tokenizing, memory, the last validation; likewise
FIT_SECONDS = 480      # all runs of a step of as many updates as fit
HEADROOM = 1.05        # a run may take that much longer than the one before


@dataclasses.dataclass(frozen=True)
class Model:
    name: str
    corpus: str
    L: int
    NH: int
    C: int
    T: int
    V: int
    batch: int              # sequences per update
    rate: float
    schedule: str
    tokens: int             # at most
    modes: dict = dataclasses.field(default_factory=lambda: MODES, hash=False)

    @property
    def shape(self):
        return f"--n-layer {self.L} --n-head {self.NH} --n-embd {self.C} -t {self.T} -b {self.batch}"

    @property
    def update(self):
        return self.batch * self.T

    @property
    def parameters(self):
        return self.V * self.C + self.T * self.C + self.L * (12 * self.C ** 2 + 13 * self.C) + 2 * self.C

    @property
    def flops(self):
        """Per token, as train_gpt counts."""
        return 6 * (12 * self.L * self.C ** 2 + self.V * self.C) + 6 * self.L * (self.T + 1) * self.C

    def run(self, mode, updates, seed, factor=1.0, every=0):
        flags = f"-l {self.rate * factor:.2g} {self.schedule} {self.modes[mode]} -v {every}"
        return Run(self.corpus, f"{self.shape} -x {updates} {flags}", seed)


PHASES = {"g = 1": lambda g: g == 1, "0 < g < 1": lambda g: 0 < g < 1, "g = 0": lambda g: g == 0}
FACTORS = (1, 0.5, 2)  # of the rate
SEEDS = (2, 3, 4)
GPT2 = ("books, all, GPT-2", 50257)
M9 = Model("9M", "books, all, BPE", 8, 4, 256, 512, 10000, 64, 0.46 / 256, "-u 10% -q 0.03", 100_000_000)
M18 = Model("17.7M", GPT2[0], 6, 4, 256, 512, GPT2[1], 32, 6e-4, "-u 2% -q 0.03 --norm rmsnorm", 100_000_000, UNANCHORED)
M30 = Model("30M", GPT2[0], 6, 6, 384, 512, GPT2[1], 128, 1.2e-3, "-u 10% -q 0.1", 100_000_000)
M124 = Model("124M", GPT2[0], 12, 12, 768, 1024, GPT2[1], 64, 6e-4, "-u 10% -q 0.1", 100_000_000)
MODELS = [M9, M18, M30, M124]


TINY_VOCABULARY = 400


def tiny(model, number):
    """The same for a dry run: 8 updates, and lengths that tell the models apart."""
    T = 24 + 8 * number
    return dataclasses.replace(model, L=1, NH=2, C=32, T=T, V=TINY_VOCABULARY, batch=2, tokens=8 * 2 * T)


# ---- what to run ----------------------------------------------------------------------------------------------------

class Plan:
    """The steps, as far as the records so far say what they are."""

    def __init__(self, models, estimator=None):
        self.m9, self.m18, self.m30, self.m124 = models
        self.models, self.estimator = models, estimator

    def records(self):
        return runs.read_records()

    def loss(self, run):
        record = self.records().get(run.key)
        return None if record is None else record["val_loss"] or math.inf

    def updates(self, part=1):
        return max(1, round(self.m9.tokens / part / self.m9.update))

    def cells(self):
        """{mode: {factor: loss}} of step 1, where it has been run."""
        losses = {mode: {f: self.loss(self.m9.run(mode, self.updates(), 1, f)) for f in FACTORS} for mode in MODES}
        return {mode: {f: loss for f, loss in some.items() if loss is not None} for mode, some in losses.items()}

    def best(self):
        """{mode: its best factor}, of those of which all have been run and one has not diverged."""
        return {mode: min(some, key=some.get) for mode, some in self.cells().items()
                if len(some) == len(FACTORS) and min(some.values()) < math.inf}

    def best_norm(self):
        best, cells = self.best(), self.cells()
        known = [mode for mode in NORMS if mode in best]
        return min(known, key=lambda mode: cells[mode][best[mode]]) if len(known) == len(NORMS) else None

    def fitted(self, model, count):
        """As many updates of a model as fit: those that a record has, else by measurement; none without."""
        for record in self.records().values():
            found = re.match(re.escape(f"{model.shape} -x ") + r"(\d+) ", record["flags"])
            if found and record["corpus"] == model.corpus:
                return int(found[1])
        if not self.estimator:
            return None
        most = model.tokens // model.update
        fit = (FIT_SECONDS / count - self.estimator.start()) * self.estimator.probe(model) / model.update / HEADROOM
        size = 10 ** max(0, math.floor(math.log10(max(fit, 1))) - 1)  # two digits
        return max(1, min(most, int(fit // size * size)))

    def fixed(self, model, modes, seeds, count, validations=0):
        """Every mode with every seed; count: the runs that share the time."""
        updates = self.fitted(model, count)
        every = max(1, updates // validations) if updates and validations else 0
        return [model.run(mode, updates, seed, every=every) for seed in seeds for mode in modes] if updates else []

    def step(self, number):
        """The runs of a step, in order; none where earlier steps must say what they are."""
        best = self.best()
        if number == 1:
            return [self.m9.run(mode, self.updates(), 1, f) for f in FACTORS for mode in MODES]
        if number in (2, 3):
            updates = self.updates(1 if number == 2 else 3)
            order = [mode for mode in ("taper", self.best_norm(), "taper, frozen gains", *NORMS) if mode in best] if self.best_norm() else []
            return [self.m9.run(mode, updates, seed, best[mode]) for seed in SEEDS for mode in dict.fromkeys(order)]
        if number == 4:
            return self.fixed(self.m18, ("norm", "taper"), (1, 2), 4)
        if number == 5:
            return self.fixed(self.m30, ("norm", "taper"), (1, 2), 4)
        if number == 6:
            return self.fixed(self.m124, ("norm", "taper"), (1,), 2, 10)
        norm = self.best_norm()
        if norm in (None, "norm"):
            return []
        return self.fixed(self.m30, (norm,), (1, 2), 4) + self.fixed(self.m124, (norm,), (1,), 2, 10)


STEPS = range(1, 8)


# ---- how long it takes ----------------------------------------------------------------------------------------------

class Estimator:
    """By the runs that were recorded on the same device, before the first by an assumed speed."""

    def __init__(self, args, models):
        self.args, self.models, self.probed = args, models, {}

    def model_of(self, record):
        return next((m for m in self.models if record["corpus"] == m.corpus and record["flags"].startswith(m.shape + " ")), None)

    def measured(self):
        return [(self.model_of(r), r) for r in runs.read_records().values() if r.get("tokens_per_second") and self.model_of(r)]

    def start(self):
        found = [r["seconds"] - r["tokens"] / r["tokens_per_second"] for _, r in self.measured()]
        return max(1.0, *found[-5:]) if found else START_SECONDS

    def speed(self, model):
        """Tokens per second."""
        same = [r["tokens_per_second"] for m, r in self.measured() if m == model]
        if same:
            return statistics.median(same)
        if model.name in self.probed:
            return self.probed[model.name]
        others = [m.flops * r["tokens_per_second"] for m, r in self.measured()]
        return min(others, default=ASSUMED_SHARE * self.args.peak * 1e12) / model.flops

    def probe(self, model):
        """Measured by train_gpt's dry run, which trains two micro-batches; where it fails, as above."""
        if model.name in self.probed:
            return self.speed(model)
        trainer = GpuTrainer(self.args, self, math.inf)
        run = model.run("norm", 100, 1)
        trainer.model(run).parent.mkdir(parents=True, exist_ok=True)
        command = [*trainer.command(run), "--dry-run"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = re.search(r"\((\d+) tokens: (\S+) s", done.stdout)
        if found:
            self.probed[model.name] = int(found[1]) / float(found[2])
            print(f"{model.name}: {self.probed[model.name]:.0f} tokens/s by a dry run", flush=True)
        else:
            print(f"{model.name}: no measurement by train_gpt --dry-run: {done.stderr.strip()}", flush=True)
        return self.speed(model)

    def seconds(self, run):
        model = next(m for m in self.models if run.corpus == m.corpus and run.flags.startswith(m.shape + " "))
        updates = int(re.search(r" -x (\d+) ", run.flags)[1])
        return self.start() + HEADROOM * updates * model.update / self.speed(model)


class GpuTrainer(runs.Trainer):
    def __init__(self, args, estimator, end):
        super().__init__(args)
        self.estimator, self.end = estimator, end
        self.options = ["--device", args.device, "--checkpoint-minutes", "3"]
        self.device, self.seconds, self.cut = "unknown", 0.0, False  # of the last run

    def train_claimed(self, run):
        done = super().train_claimed(run)
        return "stopped at the limit; it goes on in the next call" if self.cut else done

    def execute(self, run, command):
        resumes = any(self.model(run).parent.glob("model.state*"))
        command = [*command, "-y" if resumes else "--overwrite"]
        begun = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                out, err = process.communicate(timeout=max(1.0, self.end - begun) if math.isfinite(self.end) else None)
            except (subprocess.TimeoutExpired, KeyboardInterrupt) as why:
                self.cut = True
                process.terminate()  # it saves (SIGINT may be ignored, as in the background of a script)
                try:
                    out, err = process.communicate(timeout=25)
                except subprocess.TimeoutExpired:
                    process.kill()
                    out, err = process.communicate()
                if isinstance(why, KeyboardInterrupt):
                    raise
        self.seconds = time.monotonic() - begun
        found = re.search(r"^device +([^;\n]*)", out, re.M)
        self.device = found[1] if found else "unknown"
        if process.returncode and resumes and not self.cut:  # it begins anew in the next call
            for path in self.model(run).parent.glob("model.*"):
                path.unlink()
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def measured(self, steps):
        speeds = [e["tokens_per_second"] for e in steps if e["tokens_per_second"]]
        phases = {name: [e["tokens_per_second"] for e in steps if is_in(e["g"])] for name, is_in in PHASES.items()}
        return {"device": self.device, "tokens": steps[-1]["tokens"], "seconds": round(self.seconds, 2),
                "tokens_per_second": runs.digits(len(speeds) / sum(1 / x for x in speeds)),
                "phases": {name: runs.digits(statistics.median(some)) for name, some in phases.items() if some},
                "skipped": sum(1 for e in steps if e.get("skipped"))}


def train(args, plan):
    """Trains what is missing, as long as it fits, and says what is left; returns what went wrong, if anything did."""
    begun = min(time.time(), args.begun or time.time())
    end = time.monotonic() - (time.time() - begun) + 60 * args.minutes
    trainer = GpuTrainer(args, plan.estimator, end)
    for number in args.steps:
        while True:
            step = plan.step(number)  # anew, since a record may decide what the next is
            missing = [run for run in step if run.key not in runs.read_records()]
            if not missing:
                break
            run = missing[0]
            needed, left = plan.estimator.seconds(run), end - time.monotonic()
            if needed > left:
                print(f"step {number}: {len(step) - len(missing)} of {len(step)} runs are done; the next needs about {needed:.0f} s and "
                      f"{max(0, left):.0f} s of --minutes {args.minutes:g} are left: call again", flush=True)
                return None
            result = trainer.train(run, True)
            if not trainer.cut and run.key not in runs.read_records():
                return f"step {number}, a run that was {result}"
            print(f"[step {number}, {len(step) - len(missing) + 1}/{len(step)}] {trainer.seconds:.0f} s of about {needed:.0f}: {result}   "
                  f"seed {run.seed}: {run.flags}", flush=True)
            if trainer.cut:
                return None
        print(f"step {number}: " + (f"all {len(step)} runs are done" if step else
                                    "nothing to do: step 1 decides what it is"), flush=True)
    return None


# ---- corpora --------------------------------------------------------------------------------------------------------

def whole(path, make):
    """Makes a file or folder under another name first, so that it is whole or not there."""
    if path.exists():
        return
    print(f"making {path}", flush=True)
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.unlink(missing_ok=True)
    make(part)
    part.rename(path)


def train_bpe(args, text, vocabulary, out):
    command = [args.bpe_train, str(text), "--vocab-size", str(vocabulary), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"gpu_science: {' '.join(command)}: {done.stderr.strip()}")


def make_corpora(args, vocabulary=10000):
    args.data.mkdir(parents=True, exist_ok=True)

    def source(name, target):
        path = args.books / name if args.books else None
        if not path or not path.is_file():
            sys.exit(f"gpu_science: {args.data / target} is missing, and so is {path or name}: --books (BOOKS=) expects a folder with "
                     f"books_train.txt.xz, books_val.txt.xz, gpt2_vocab.json and gpt2_merges.txt")
        return path

    def unpack(name, target):
        def make(part):
            try:
                with lzma.open(source(name, target)) as packed, part.open("wb") as file:
                    shutil.copyfileobj(packed, file, 1 << 20)
            except (lzma.LZMAError, EOFError) as error:
                sys.exit(f"gpu_science: {args.books / name}: {error}")
        whole(args.data / target, make)

    unpack("books_train.txt.xz", "books_all.txt")
    unpack("books_val.txt.xz", "books_val.txt")

    def copy_gpt2(part):
        part.mkdir()
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(source(f"gpt2_{name}", f"gpt2/{name}"), part / name)

    whole(args.data / "books_bpe10k", lambda part: train_bpe(args, args.data / "books_all.txt", vocabulary, part))
    whole(args.data / "gpt2", copy_gpt2)


# ---- report ---------------------------------------------------------------------------------------------------------

@dataclasses.dataclass
class Group:
    """Runs of one model with the same tokens, at each mode's rate: {mode: {seed: record}}."""
    model: Model
    updates: int
    records: dict
    rates: dict             # mode: text

    @property
    def ratio(self):
        return self.ratio_at(self.updates)

    def ratio_at(self, update):
        """Tokens per parameter."""
        return update * self.model.update / self.model.parameters

    def losses(self, mode):
        return {seed: r["val_loss"] for seed, r in self.records.get(mode, {}).items() if r["val_loss"] is not None}

    def diverged(self, mode):
        return sum(r["val_loss"] is None for r in self.records.get(mode, {}).values())


def groups(plan):
    records, best = plan.records(), plan.best()
    found = []

    def add(model, updates, seeds, every, factors):
        some = {mode: {seed: records[run.key] for seed in seeds
                       if (run := model.run(mode, updates, seed, factors.get(mode, 1), every)).key in records}
                for mode in model.modes if model is not plan.m9 or mode in factors}
        if any(some.values()):
            rates = {mode: f"{model.rate * factors.get(mode, 1):.2g}" for mode in some}
            found.append(Group(model, updates, {mode: r for mode, r in some.items() if r}, rates))
    for part in (3, 1):
        add(plan.m9, plan.updates(part), SEEDS, 0, best)
    for model, seeds, validations in ((plan.m18, (1, 2), 0), (plan.m30, (1, 2), 0), (plan.m124, (1,), 10)):
        updates = Plan(plan.models).fitted(model, 1)
        if updates:
            add(model, updates, seeds, max(1, updates // validations) if validations else 0, {})
    return found


def count_text(n):
    return f"{n / 1e6:.1f}M" if n >= 1e6 else str(n)


def rate_table(plan):
    cells, best, rows = plan.cells(), plan.best(), []
    for mode, some in cells.items():
        row = [mode]
        for f in sorted(FACTORS):
            text = "" if f not in some else "diverged" if some[f] == math.inf else f"{some[f]:.4f}"
            edge = "\\*" if f != sorted(FACTORS)[1] else ""
            row.append(f"**{text}**{edge}" if best.get(mode) == f else text)
        rows.append(row)
    if not any(cells.values()):
        return ""
    header = ["rate", *(f"{plan.m9.rate * f:.2g}" for f in sorted(FACTORS))]
    text = f"{plan.m9.name}, {count_text(plan.updates() * plan.m9.update)} tokens, validation loss of seed 1 by rate; bold: the best, "
    return text + f"\\* where it is at the edge.\n\n{runs.table(header, rows)}\n"


def loss_table(plan, found):
    rows, norm = [], plan.best_norm()
    for group in found:
        for mode in group.records:
            losses, diverged = group.losses(mode), group.diverged(mode)
            gaps = ["" if base == mode or base not in group.records else runs.gap_text(losses, group.losses(base))
                    for base in ("norm", norm)]
            rows.append([group.model.name, count_text(group.updates * group.model.update), f"{group.ratio:.2f}", mode, group.rates[mode],
                         len(losses), runs.losses_text(losses) + (f", {diverged} diverged" if diverged else ""), *gaps])
    best = f"gap to the best norm ({norm})" if norm else "gap to the best norm"
    header = ["size", "tokens", "tokens per parameter", "mode", "rate", "seeds", "validation loss", "gap to norm [95%]", best]
    return runs.table(header, rows) if rows else ""


def interval_text(mean, half):
    return f"{100 * mean:+.2f}%" + (f" [{100 * (mean - half):+.2f}, {100 * (mean + half):+.2f}]" if math.isfinite(half) else "")


def verdicts(plan, found):
    """What was stated, and what came of it, as far as there are runs."""
    norm, rows = plan.best_norm(), []

    def gaps(group, base):
        taper, other = group.losses("taper"), group.losses(base)
        return {seed: taper[seed] / other[seed] - 1 for seed in taper if seed in other}

    def judge(name, what, values, holds, judged_by_interval=True):
        if not values:
            return
        mean, half = runs.mean_and_half(list(values))
        known = math.isfinite(half) or not judged_by_interval
        rows.append([name, what, interval_text(mean, half), holds(mean, half) if known else "no interval"])

    def at(model, updates=None):
        return next((g for g in found if g.model is model and updates in (None, g.updates)), None)
    held = {True: "held", False: "**missed**"}

    def costs(mean, half, most=math.inf):
        """Whether the mean is at most `most` and the interval's upper end 0.5%."""
        if mean <= most and mean + half <= 0.005:
            return "held"
        return "**missed**" + (", maybe for want of seeds" if mean - half <= min(most, 0.005) else "")
    full, third = at(plan.m9, plan.updates()), at(plan.m9, plan.updates(3))
    if full and norm:
        judge("G1", f"{plan.m9.name}, to {norm}", gaps(full, norm).values(), lambda m, h: costs(m, h, 0))
    if full:
        judge("G2", f"{plan.m9.name}, to norm + scale loss", gaps(full, "norm + scale loss").values(), costs)
        judge("G8", f"{plan.m9.name}, to itself with frozen gains", gaps(full, "taper, frozen gains").values(), lambda m, h: held[m - h > 0])
    if full and third and norm:
        long, short = gaps(full, norm), gaps(third, norm)
        judge("G3", "that gap with all tokens minus that with a third", [long[s] - short[s] for s in long if s in short],
              lambda m, h: "no trend" if m - h <= 0 <= m + h else "grows" if m > 0 else "shrinks")
    for name, model, holds in (("G4", plan.m18, lambda m, h: held[abs(m) <= 0.01]), ("G5", plan.m30, lambda m, h: held[m <= 0]),
                               ("G6", plan.m124, lambda m, h: held[m <= 0.005])):
        if group := at(model):
            judge(name, f"{model.name}, to norm", gaps(group, "norm").values(), holds, False)
    for model in (plan.m30, plan.m124):
        if (group := at(model)) and norm != "norm" and norm in group.records:
            judge("G9", f"{model.name}, to {norm}", gaps(group, norm).values(), lambda m, h: held[m <= 0.005], False)
    tapers = [r for r in plan.records().values() if "-g taper" in r["flags"]]
    if tapers:
        bad = sum(r["val_loss"] is None for r in tapers)
        rows.append(["G7", "runs of a taper that diverged", f"{bad} of {len(tapers)}", held[bad == 0]])
    return runs.table(["stated", "gap of the taper", "found", ""], rows) if rows else ""


def validations_table(group):
    """The losses on the way, of the first seed."""
    curves = {mode: dict(next(iter(some.values()))["val"]) for mode, some in group.records.items()}
    if "norm" not in curves:
        return ""
    rows = [[step, f"{group.ratio_at(step):.2f}", *(f"{c[step]:.4f}" if step in c else "" for c in curves.values())]
            for step in curves["norm"]]
    return f"{group.model.name} on the way:\n\n" + runs.table(["update", "tokens per parameter", *curves], rows) if rows else ""


def speed_table(plan):
    """Tokens per second, of a taper in each phase of its gate, and updates that were skipped; medians and sums over runs."""
    rows = []
    for model in plan.models:
        norm = None
        for mode, flags in model.modes.items():
            some = [r for r in plan.records().values() if r["corpus"] == model.corpus and r["flags"].startswith(model.shape + " ")
                    and f" {model.schedule} {flags} -v " in r["flags"] and r.get("phases")]
            if not some:
                continue
            row = [model.name, count_text(model.parameters), mode]
            for phase in PHASES:
                speeds = [r["phases"][phase] for r in some if phase in r["phases"]]
                speed = statistics.median(speeds) if speeds else None
                norm = norm or speed  # norm itself is first
                row.append(f"{speed:,.0f} ({speed / norm:.3f}x, {speed * model.flops / 1e12:.3g} TFLOP/s)" if speed else "")
            rows.append([*row, len(some), sum(r["skipped"] for r in some)])
    header = ["size", "parameters", "mode", *(f"tokens/s, {phase}" for phase in PHASES), "runs", "skipped updates"]
    return runs.table(header, rows) if rows else ""


def figure(plan, found, stem):
    if not importlib.util.find_spec("matplotlib"):
        print("no matplotlib: the figure is left out (make plot-env installs it)")
        return False
    plt, colors = runs.plot_style.load()
    color = dict(zip(MODES, colors))
    fig, ((left, right), (losses_of, scales_of)) = plt.subplots(2, 2, figsize=(10, 8), layout="constrained")
    shown = set()
    for group in found:
        for mode in group.records:
            losses = group.losses(mode)
            left.plot([group.ratio] * len(losses), list(losses.values()), ".", color=color[mode], label=None if mode in shown else mode)
            shown.add(mode)
            curve = next(iter(group.records[mode].values()))["val"]
            if curve:
                left.plot([group.ratio_at(step) for step, _ in curve], [x for _, x in curve], color=color[mode], lw=1)
        losses = [x for mode in group.records for x in group.losses(mode).values()]
        if losses:
            left.annotate(group.model.name, (group.ratio, min(losses)), xytext=(4, -8), textcoords="offset points", fontsize=8)
    bases = {"norm": 0.985} | ({plan.best_norm(): 1.015} if plan.best_norm() not in (None, "norm") else {})
    for base, shift in bases.items():
        label = f"to {base}"
        for group in found:
            mean, half = runs.paired_gap(group.losses("taper"), group.losses(base)) if base in group.records else (math.nan, math.inf)
            if math.isnan(mean):
                continue
            right.errorbar(group.ratio * shift, 100 * mean, yerr=100 * half if math.isfinite(half) else None, color=color[base], marker="o",
                           ms=4, capsize=3, lw=1.5, label=label)
            if base == "norm":
                right.annotate(group.model.name, (group.ratio * shift, 100 * mean), xytext=(-6, 4), textcoords="offset points", fontsize=8,
                               ha="right")
            label = None
    right.axhline(0, color="black", lw=0.8)
    for ax in (left, right):
        ax.set_xscale("log")
        ax.set_xticks([x for x in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if ax.get_xlim()[0] <= x <= ax.get_xlim()[1]])
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter("")
        ax.set_xlabel("tokens per parameter")
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize=8)
    # The longest runs of the largest model that has any, on the way.
    for group in found[-1:]:
        for mode, some in group.records.items():
            curve = next(iter(some.values()))["curve"]
            for axis, field in ((losses_of, "loss"), (scales_of, "stream_scale")):
                points = [(step * group.model.update, y) for step, y in zip(curve["step"], curve[field]) if y is not None]
                axis.plot(*zip(*points), color=color[mode], lw=1.5, label=mode)
    for axis, what in ((losses_of, "training loss, nats per token"), (scales_of, "scale of the residual stream, s(h)")):
        axis.set_xscale("log")
        axis.set_xlabel("tokens")
        axis.set_ylabel(what + (f" ({found[-1].model.name})" if found else ""))
        if found:
            axis.legend(fontsize=8)
    scales_of.set_yscale("log")
    left.set_ylabel("validation loss, nats per token (vocabularies differ)")
    right.set_ylabel("gap of the taper's loss, % (above 0: it is worse)")
    runs.plot_style.save(fig, stem, ["png"])
    plt.close(fig)
    return True


def report(plan, folder):
    """Writes gpu-science.md and its figure; nothing where nothing has been run."""
    records = list(plan.records().values())
    if not records:
        print("no records: no report")
        return
    if runs.stats is None:
        print("no scipy: intervals are left out (make plot-env installs it)")
    found = groups(plan)
    devices = sorted({r["device"] or "unknown" for r in records})
    dates, commits = sorted({r["date"] for r in records}), sorted({r["commit"] for r in records})
    text = "# Norm against taper on a GPU\n\n"
    text += f"`make gpu-science`, {' to '.join(dict.fromkeys([dates[0], dates[-1]]))}, {'; '.join(devices)}, commit {', '.join(commits)}. "
    text += f"{len(records)} runs, {sum(r['seconds'] for r in records) / 60:.0f} minutes together; one line each in gpu-runs.jsonl.\n"
    text += "dev/experiments/gpu_science.py says what each step is, and what was stated before the first run. Books, 96 MB; losses\n"
    text += "are nats per token. Gaps: mean of val / val(other) - 1 over paired seeds, with 95% intervals where there are two seeds or more.\n\n"
    text += "".join(part + "\n" for part in (verdicts(plan, found), rate_table(plan), loss_table(plan, found)) if part)
    text += "".join(part + "\n" for group in found if (part := validations_table(group)))
    text += speed_table(plan)
    if figure(plan, found, folder / "gpu-science"):
        text += "\n![Loss, and gap of the taper to norm and to the best norm, by tokens per parameter; training loss and s(h) of the largest model](gpu-science.png)\n"
    (folder / "gpu-science.md").write_text(text)
    print(f"wrote {folder / 'gpu-science.md'}")


# ---- main -----------------------------------------------------------------------------------------------------------

def more_arguments(parser):
    parser.add_argument("--dry-run", action="store_true", help="every step in tiny sizes, on any device, in a folder that is removed")
    parser.add_argument("--minutes", type=float, default=9, help="of this call (default 9)")
    parser.add_argument("--begun", type=float, help="when this call began, in seconds since 1970 (default now)")
    parser.add_argument("--steps", type=int, nargs="+", choices=STEPS, default=list(STEPS), help="(default: all)")
    parser.add_argument("--books", type=pathlib.Path, help="folder with packed books and GPT-2's vocabulary (see above)")
    parser.add_argument("--records", type=pathlib.Path, default=runs.RESULTS / "gpu-runs.jsonl",
                        help="one line per run; the report is written beside it (default dev/results/gpu-runs.jsonl)")
    parser.add_argument("--bpe-train", default=str(runs.ROOT / "bpe_train"), help="(default ./bpe_train)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cuda", help="as train_gpt has it (default cuda)")
    parser.add_argument("--peak", type=float, default=989, help="of the GPU in TFLOP/s, for the first estimate (default 989)")


class TinyPlan(Plan):
    def best_norm(self):
        """Never norm itself, so that step 7 has something to do."""
        return NORMS[-1] if super().best_norm() else None


def stop_and_go_on(args, estimator):
    """A run that the limit stops is saved, and goes on where it was. On a busy machine it gets more time."""
    run, steps = estimator.models[0].run("norm", 10 ** 6, 1), [0]
    for seconds in (6, 12, 24, 48, 96):
        trainer = GpuTrainer(args, estimator, time.monotonic() + seconds)
        result = trainer.train(run, True)
        log = trainer.model(run).with_suffix(".log.jsonl")
        done = log.read_text().count('"step"') if log.exists() else 0
        print(f"a run of 1,000,000 updates with {seconds} s, {done} updates so far: {result}", flush=True)
        if not trainer.cut or done < steps[-1]:
            break
        if done > steps[-1]:
            steps.append(done)
        if len(steps) > 2:
            return
    sys.exit(f"gpu_science: --program: expected a train_gpt whose run can be stopped, saved and resumed; {args.program} made {done} updates: {result}")


def make_tiny_books(args):
    """What --books holds, of the project's guides."""
    args.books.mkdir()
    text = "\n".join(path.read_text() for path in sorted((runs.ROOT / "dev" / "guides").glob("*.md"))).encode()
    for part, packed in ((text[1024:], "books_train.txt.xz"), (text[:1024], "books_val.txt.xz")):
        with lzma.open(args.books / packed, "wb") as file:
            file.write(part)
    (args.books / "text").write_bytes(text)
    train_bpe(args, args.books / "text", TINY_VOCABULARY, args.books / "gpt2")
    for file in ("vocab.json", "merges.txt"):
        (args.books / "gpt2" / file).rename(args.books / f"gpt2_{file}")


def dry_run(args):
    """All of it in a folder that goes: corpora, a call without time, a run that is stopped, every step, and the report."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        args.books, args.data, args.work = folder / "books", folder / "data", folder / "work"
        args.records = folder / "gpu-runs.jsonl"
        runs.RECORDS[:] = [args.records]
        make_tiny_books(args)
        make_corpora(args, TINY_VOCABULARY)
        models = [tiny(model, number) for number, model in enumerate(MODELS)]
        plan = TinyPlan(models, Estimator(args, models))
        args.minutes = 0.01
        train(args, plan)
        stop_and_go_on(args, plan.estimator)
        args.minutes = 60
        if error := train(args, plan):
            sys.exit(f"gpu_science: {error}")
        if not plan.records():
            sys.exit(f"gpu_science: --steps: nothing to do without step 1, found {' '.join(map(str, args.steps))}")
        report(plan, args.records.parent)
        print((folder / "gpu-science.md").read_text())
        expected = [run for number in args.steps for run in plan.step(number)]
        lost = [run for run in expected if run.key not in plan.records()]
        if unmeasured := [model.name for model in models[1:] if model.name not in plan.estimator.probed and len(args.steps) == len(STEPS)]:
            sys.exit(f"gpu_science: the dry run expected measurements of {', '.join(unmeasured)}")
        if lost:
            sys.exit(f"gpu_science: {len(lost)} of {len(expected)} runs of the dry run have no record")
        print(f"dry run: {len(expected)} runs and the report were made; nothing is kept")


def commit():
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=runs.ROOT, text=True, capture_output=True, check=False) \
        if shutil.which("git") else None
    return done.stdout.strip() if done and done.returncode == 0 else "unknown"


def main():
    args = runs.arguments(__doc__, more_arguments, jobs=False)
    if args.dry_run and args.report:
        sys.exit("gpu_science: --dry-run makes a report of its own; leave out --report")
    args.commit = args.commit or commit()
    runs.RECORDS[:] = [args.records]
    if not args.report:
        programs = [args.program, args.bpe_train] if args.dry_run or not (args.data / "books_bpe10k").exists() else [args.program]
        for program in programs:
            if not shutil.which(program):
                sys.exit(f"gpu_science: no program {program}; make gpu-science builds it")
    for name in ("minutes", "peak"):
        if not getattr(args, name) > 0:
            sys.exit(f"gpu_science: --{name}: expected more than 0, found {getattr(args, name):g}")
    if args.records.is_dir():
        sys.exit(f"gpu_science: --records: expected a file, found the folder {args.records}")
    if args.dry_run:
        return dry_run(args)
    plan = Plan(MODELS, Estimator(args, MODELS))
    error = None
    if not args.report:
        args.records.parent.mkdir(parents=True, exist_ok=True)
        make_corpora(args)
        error = train(args, plan)
    report(plan, args.records.parent)
    if error:
        sys.exit(f"gpu_science: {error}")


def stop(*_):
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("gpu_science: stopped" + ("" if "--dry-run" in sys.argv else "; the next call goes on"))
