#!/usr/bin/env python3
"""Norm against taper once more, with warm-up and rate tuned for each, against the best norm.

    dev/experiments/tuned.py [--report] [--only 0.04M ...]        (--help: where corpora, program and work folder are)

parity.py tuned the rate alone, in factors of two, at a warm-up of 5%, and compared with a plain norm. Here, at every size:

1. Each mode of MODES starts at its rate there and a warm-up of 5%. A hill climb tries the neighbours of its best cell (half an
   octave of the rate, the next warm-up of WARMUPS) until none of the four is better, by the mean of the tuning seeds, which are used
   for nothing else. A cell in which a run diverged is not taken. Everything else is as users get it: `-q 0.03`, the gate at 5% and 40%,
   a scale loss of 0.1, a bound of 8 for the taper. Validation: batches spread over the whole text.
2. Fresh seeds, from 21 on, at that cell. The best norm is the one of the three with the lowest mean over the tuning seeds: it is chosen
   before the fresh seeds are seen.
3. At 3.6M, where tuning costs too much: a warm-up of 5%, rates of 2e-3 and 2.8e-3 with seed 21, the better of them for seeds 22 to 25,
   in 2000 updates, so that only the model differs from 0.93M (updates, tokens and calibration are the same).
   taper, norm + scale loss and norm + scale loss, frozen; norm last, if there is time.

Stated on 2026-11-30, before the first run. Gaps are val(taper) / val(other) - 1, with their paired 95% intervals:
  U1  Against the best norm the taper's mean gap is at most 0 and its interval's upper end at most +0.5%: only then it costs nothing.
      (From what parity.py and a reading by others showed, +1 to +3% at 0.2M and 0.93M is expected: a miss.)
  U2  Against norm + scale loss: the interval's upper end is at most +0.5%.
  U3  With its warm-up tuned, norm gains; at 0.04M norm + scale loss is no better than norm (interval not below 0).
  U4  Size: the gap to norm + scale loss at 3.6M minus that at 0.93M, intervals by Welch's t over the seeds' gaps, is above 0 only if its
      whole interval is. Otherwise nothing is said about a trend.
  U5  No run at a chosen cell diverges.
The intervals of the final table are also corrected for their number (Holm); what does not survive is not bold.
"""
import dataclasses
import math
import statistics

import runs
from runs import Run

MODES = {  # name: flags
    "norm": "-g norm --bound 0",
    "norm + scale loss": "-g norm --bound 0 --scale-loss 0.1",
    "norm + scale loss, frozen gains": "-g norm --bound 0 --scale-loss 0.1 --freeze-gains",
    "taper": "-g taper --bound 8",
}
NORMS = [mode for mode in MODES if mode != "taper"]
WARMUPS = ["2%", "5%", "10%", "20%"]
RATES = ["7e-4", "1e-3", "1.4e-3", "2e-3", "2.8e-3", "4e-3", "5.7e-3", "8e-3", "11e-3", "16e-3", "23e-3", "32e-3"]


@dataclasses.dataclass(frozen=True)
class Size:
    name: str
    corpus: str
    shape: str
    begin: dict             # mode: the rate at which its climb begins
    tuning_seeds: tuple     # none: seed 21 at both rates of `begin`
    seeds: range
    steps: int = 2000


def begin(norm, others):
    return {mode: norm if mode == "norm" else others for mode in MODES}


SIZES = [
    Size("0.04M", "books", "--n-layer 2 --n-head 2 --n-embd 32 -t 64 -b 12", begin("4e-3", "8e-3"), (101, 102, 103), range(21, 41)),
    Size("0.2M", "shakespeare", runs.SHAPE, begin("8e-3", "8e-3"), (101, 102), range(21, 31)),
    Size("3.6M", "books", "--n-layer 8 --n-head 6 --n-embd 192 -t 128 -b 8", begin("2e-3", "2e-3"), (), range(21, 26)),
    Size("0.93M", "books", "--n-layer 8 --n-head 4 --n-embd 96 -t 128 -b 8", begin("8e-3", "4e-3"), (101,), range(21, 31)),
]


def make_run(size, mode, cell, seed, keep=False):
    rate, warmup = cell
    return Run(size.corpus, f"{size.shape} -x {size.steps} -l {rate} -u {warmup} -q 0.03 {MODES[mode]} -v 0", seed, keep=keep)


def cell_loss(size, mode, cell, records):
    """Mean over the tuning seeds; infinite where one of them diverged; None where one has not been run."""
    found = [records.get(make_run(size, mode, cell, seed)) for seed in size.tuning_seeds]
    if not all(found):
        return None
    return statistics.mean(r["val_loss"] or math.inf for r in found)


def neighbours(cell):
    rate, warmup = RATES.index(cell[0]), WARMUPS.index(cell[1])
    return [(RATES[r], WARMUPS[w]) for r, w in [(rate - 1, warmup), (rate + 1, warmup), (rate, warmup - 1), (rate, warmup + 1)]
            if r in range(len(RATES)) and w in range(len(WARMUPS))]


def tried(size, mode, records):
    """{cell: mean loss} of all cells whose tuning seeds were run."""
    return {(rate, warmup): loss for rate in RATES for warmup in WARMUPS
            if (loss := cell_loss(size, mode, (rate, warmup), records)) is not None}


def climb(args, size):
    """Runs what the hill climbs lack; returns {mode: its best cell}, of those that arrived, and the records."""
    records = runs.records_of(make_run(size, mode, (rate, warmup), seed) for mode in MODES for rate in RATES
                              for warmup in WARMUPS for seed in size.tuning_seeds)
    while True:
        wanted, best = [], {}
        for mode in MODES:
            # Of the path that begins at size.begin alone, whatever else has been run.
            cell, known = (size.begin[mode], "5%"), tried(size, mode, records)
            while all(c in known for c in [cell, *neighbours(cell)]):
                better = min([cell, *neighbours(cell)], key=known.get)
                if better == cell:
                    best[mode] = cell
                    break
                cell = better
            wanted += [make_run(size, mode, c, seed) for c in [cell, *neighbours(cell)] for seed in size.tuning_seeds]
        missing = [run for run in wanted if run not in records]
        if not missing or args.report:
            return best, records
        done = runs.run_all(args, missing)
        if not done.keys() - records.keys():
            return best, records  # what is missing is not to be had
        records |= done


def choose(args, size):
    """As climb, where there are no tuning seeds: the better of two rates with the first of the seeds."""
    pairs = {mode: [(RATES[RATES.index(size.begin[mode]) + i], "5%") for i in (0, 1)] for mode in MODES}
    order = ["taper", *NORMS[1:], NORMS[0]]
    records = runs.run_all(args, [make_run(size, mode, cell, size.seeds[0], keep=True) for mode in order for cell in pairs[mode]])
    best = {}
    for mode in order:
        losses = {cell: (records[run]["val_loss"] or math.inf) for cell in pairs[mode]
                  if (run := make_run(size, mode, cell, size.seeds[0])) in records}
        if len(losses) == 2:
            best[mode] = min(losses, key=losses.get)
    return best, records


def seed_losses(size, mode, cell, records):
    """{seed: validation loss}; a run that diverged has none."""
    found = {seed: records.get(make_run(size, mode, cell, seed)) for seed in size.seeds}
    return {seed: record["val_loss"] for seed, record in found.items() if record and record["val_loss"]}


def main():
    args = runs.arguments(__doc__, lambda parser: parser.add_argument(
        "--only", nargs="+", choices=[size.name for size in SIZES], default=[size.name for size in SIZES]))
    for size in SIZES:
        if size.name not in args.only:
            continue
        best, records = climb(args, size) if size.tuning_seeds else choose(args, size)
        for mode, cell in best.items():
            print(size.name, mode, cell)
        records |= runs.run_all(args, [make_run(size, mode, best[mode], seed, keep=True)
                                       for seed in size.seeds for mode in MODES if mode in best])
        for mode in best:
            print(size.name, mode, runs.losses_text(seed_losses(size, mode, best[mode], records)))


if __name__ == "__main__":
    main()
