#!/usr/bin/env python3
"""Norm against taper once more, with warm-up and rate tuned for each, against the best norm.

    dev/experiments/tuned.py [--report] [--only 0.04M ...]        (--help: where corpora, program and work folder are)

parity.py tuned the rate alone, in factors of two, at a warm-up of 5%, and compared with a plain norm. Here, at every size:

1. Each mode of MODES starts at its rate there and a warm-up of 5%. A hill climb tries the neighbours of its best cell (half an
   octave of the rate, the next warm-up of WARMUPS) until none of them is better, by the mean of the tuning seeds, which are used
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
Changed while the climbs at 0.04M were under way, for all modes and sizes: a rate half an octave higher with the next longer warm-up, and
the reverse, are neighbours, too (a longer warm-up allows a higher rate, and the taper's climb had stopped at 8e-3 and 10% by 0.0001
of 11e-3 and 10%); and a warm-up of 40%, because 20% was best for two norms.
Added when the screening of stronger.py at 0.04M had shown the taper to gain from frozen gains as norms do, before its runs here: "taper,
frozen gains". U1 and U2 are meant for it, too, and U6: it is below the taper with its whole interval at every size; then gains are
frozen by default. At 0.2M one tuning seed in place of two, for want of time: seed 102 had been run at six cells of norm by then, and the two
seeds differ by up to 2.6% there, more than neighbouring cells do, so that the cells chosen at 0.2M are no better than their neighbours by much.
Changed at 3.6M when seed 21 had been seen there (taper 1.659 at 2e-3 and 1.627 at 2.8e-3; with frozen gains 1.677 and 2.070): the taper
with frozen gains goes no further there, because U6 is missed, and norm comes last.
Changed at 0.93M before its first run, for want of time: five fresh seeds, and five more where U1 or U2 is neither met nor missed by the
five (an interval with both 0 and +0.5% in it); taper-all is not run. (The five left U2 open, +0.39% [-0.90, +1.67], so all but norm got ten.)
Added by rule S8 of stronger.py while the climbs at 0.93M were under way, before its own runs: ten times the scale loss with frozen gains, for
the norm and the taper, at 0.04M and 0.2M. The best norm of a size is then the best of four. U1 is meant for this taper, too; expected,
from S8's cells: a miss at both sizes, by 0.5% and by 1 to 2%.
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
    "norm + scale loss x 10, frozen gains": "-g norm --bound 0 --scale-loss 1 --freeze-gains",
    "taper": "-g taper --bound 8",
    "taper, frozen gains": "-g taper --bound 8 --freeze-gains",
    "taper, frozen gains, scale loss x 10": "-g taper --bound 8 --freeze-gains --scale-loss 1",
    "taper-all": "-g taper-all --bound 8 --final-bound 1.5",
    "taper-all, frozen gains": "-g taper-all --bound 8 --final-bound 1.5 --freeze-gains",
}
BORROWED = {"taper-all": "taper", "taper-all, frozen gains": "taper, frozen gains"}  # not tuned: the cell of another
TENFOLD = [mode for mode in MODES if "x 10" in mode]  # at two sizes only
TUNED = [mode for mode in MODES if mode not in BORROWED]
TAPERS = [mode for mode in TUNED if not mode.startswith("norm")]
NORMS = [mode for mode in MODES if mode.startswith("norm")]
README_NORMS = ["against norm", "with scale loss", "and frozen gains", "and ten times the scale loss"]  # NORMS, for a narrow table
WARMUPS = ["2%", "5%", "10%", "20%", "40%"]
RATES = ["7e-4", "1e-3", "1.4e-3", "2e-3", "2.8e-3", "4e-3", "5.7e-3", "8e-3", "11e-3", "16e-3", "23e-3", "32e-3"]


@dataclasses.dataclass(frozen=True)
class Size:
    name: str
    corpus: str
    shape: str
    begin: dict             # mode, if it is tuned: the rate at which its climb begins
    tuning_seeds: tuple     # none: seed 21 at both rates of `begin`
    seeds: range
    steps: int = 2000
    dropped: tuple = ()     # modes that go no further than their tuning
    in_short: tuple = ()    # modes that have the first five seeds only
    modes: dict = dataclasses.field(default_factory=lambda: MODES)


def begin(norm, others, without=()):
    return {mode: norm if mode == "norm" else others for mode in TUNED if mode not in without}


SIZES = [
    Size("0.04M", "books", "--n-layer 2 --n-head 2 --n-embd 32 -t 64 -b 12", begin("4e-3", "8e-3"), (101, 102, 103), range(21, 41)),
    Size("0.2M", "shakespeare", runs.SHAPE, begin("8e-3", "8e-3"), (101,), range(21, 31)),
    Size("3.6M", "books", "--n-layer 8 --n-head 6 --n-embd 192 -t 128 -b 8", begin("2e-3", "2e-3", TENFOLD), (), range(21, 26),
         dropped=("taper, frozen gains",)),
    Size("0.93M", "books", "--n-layer 8 --n-head 4 --n-embd 96 -t 128 -b 8", begin("8e-3", "4e-3", TENFOLD), (101,), range(21, 31),
         dropped=("taper-all", "taper-all, frozen gains"), in_short=("norm",)),
]


def make_run(size, mode, cell, seed, keep=False):
    rate, warmup = cell
    return Run(size.corpus, f"{size.shape} -x {size.steps} -l {rate} -u {warmup} -q 0.03 {size.modes[mode]} -v 0", seed, keep=keep)


def cell_loss(size, mode, cell, records):
    """Mean over the tuning seeds; infinite where one of them diverged; None where one has not been run."""
    found = [records.get(make_run(size, mode, cell, seed)) for seed in size.tuning_seeds]
    if not all(found):
        return None
    return statistics.mean(r["val_loss"] or math.inf for r in found)


def neighbours(cell):
    rate, warmup = RATES.index(cell[0]), WARMUPS.index(cell[1])
    both = [(-1, 0), (1, 0), (0, -1), (0, 1), (1, 1), (-1, -1)]
    return [(RATES[r], WARMUPS[w]) for r, w in [(rate + dr, warmup + dw) for dr, dw in both]
            if r in range(len(RATES)) and w in range(len(WARMUPS))]


def tried(size, mode, records):
    """{cell: mean loss} of all cells whose tuning seeds were run."""
    return {(rate, warmup): loss for rate in RATES for warmup in WARMUPS
            if (loss := cell_loss(size, mode, (rate, warmup), records)) is not None}


def climb(args, size):
    """Runs what the hill climbs lack; returns {mode: its best cell}, of those that arrived, and the records."""
    records = runs.records_of(make_run(size, mode, (rate, warmup), seed) for mode in size.begin for rate in RATES
                              for warmup in WARMUPS for seed in size.tuning_seeds)
    while True:
        wanted, best = [], {}
        for mode in size.begin:
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
    pairs = {mode: [(RATES[RATES.index(size.begin[mode]) + i], "5%") for i in (0, 1)] for mode in size.begin}
    order = [mode for mode in [*reversed(TAPERS), *NORMS[1:], NORMS[0]] if mode in size.begin]
    records = runs.run_all(args, [make_run(size, mode, cell, size.seeds[0], keep=True) for mode in order for cell in pairs[mode]])
    best = {}
    for mode in order:
        losses = {cell: (records[run]["val_loss"] or math.inf) for cell in pairs[mode]
                  if (run := make_run(size, mode, cell, size.seeds[0])) in records}
        if len(losses) == 2:
            best[mode] = min(losses, key=losses.get)
    return best, records


def seeds_of(size, mode):
    return size.seeds[:5] if mode in size.in_short else size.seeds


def seed_losses(size, mode, cell, records):
    return runs.losses_of({seed: make_run(size, mode, cell, seed) for seed in seeds_of(size, mode)}, records)


TITLES = {"0.04M": "books, 0.04M", "0.2M": "tinyshakespeare, 0.2M", "0.93M": "books, 0.93M", "3.6M": "books, 3.6M"}
BY_SIZE = ["0.04M", "0.2M", "0.93M", "3.6M"]


@dataclasses.dataclass
class Result:
    size: Size
    best: dict      # mode: its cell
    records: dict
    losses: dict    # mode: {seed: validation loss}


def result_of(args, size):
    best, records = climb(args, size) if size.tuning_seeds else choose(args, size)
    if size.tuning_seeds:
        best |= {mode: best[other] for mode, other in BORROWED.items() if other in best}
    records |= runs.run_all(args, [make_run(size, mode, best[mode], seed, keep=True)
                                   for seed in size.seeds for mode in [*reversed(MODES)]
                                   if mode in best and mode not in size.dropped and seed in seeds_of(size, mode)])
    return Result(size, best, records, {mode: {} if mode in size.dropped else seed_losses(size, mode, cell, records)
                                        for mode, cell in best.items()})


def best_norm(result):
    """By the tuning seeds; where there are none, by the first of the seeds."""
    seeds = result.size.tuning_seeds or result.size.seeds[:1]
    def mean(mode):
        return statistics.mean(result.records[make_run(result.size, mode, result.best[mode], seed)]["val_loss"] for seed in seeds)
    return min((mode for mode in NORMS if mode in result.best), key=mean)


def cell_table(result):
    size, rows = result.size, []
    for mode, cell in ((mode, cell) for mode, cell in result.best.items() if mode in size.begin):
        known = tried(size, mode, result.records) if size.tuning_seeds else {
            c: record["val_loss"] or math.inf for c in [(rate, "5%") for rate in RATES]
            if (record := result.records.get(make_run(size, mode, c, size.seeds[0])))}
        for warmup in WARMUPS:
            row = {rate: loss for (rate, w), loss in known.items() if w == warmup}
            if row:
                rows.append([mode, warmup, *("" if rate not in row else "diverged" if row[rate] == math.inf else
                                             f"**{row[rate]:.4f}**" if (rate, warmup) == cell else f"{row[rate]:.4f}" for rate in RATES)])
    used = [i for i in range(len(RATES)) if any(row[2 + i] for row in rows)]
    seeds = "mean of seeds " + ", ".join(map(str, size.tuning_seeds)) if size.tuning_seeds else f"seed {size.seeds[0]}"
    return runs.table([f"{TITLES[size.name]}, {seeds}", "warm-up", *(RATES[i] for i in used)],
                      [[*row[:2], *(row[2 + i] for i in used)] for row in rows])


def seed_table(results, corrected):
    rows = []
    for result in results:
        strongest = best_norm(result)
        for mode, losses in ((mode, losses) for mode, losses in result.losses.items() if losses):
            gaps = [gap_cell(result, mode, base, corrected) for base in NORMS]
            rows.append([TITLES[result.size.name], f"{mode}{' (best norm)' if mode == strongest else ''}", ", ".join(result.best[mode]),
                         len(losses), runs.losses_text(losses), *gaps])
    return runs.table(["corpus, size", "mode", "rate, warm-up", "seeds", "validation loss", *(f"gap to {base} [95%]" for base in NORMS)],
                      rows)


def gap_cell(result, mode, base, corrected):
    """The gap with its interval; bold where it survives Holm's correction."""
    if mode == base or not result.losses.get(base):
        return ""
    text = runs.gap_text(result.losses[mode], result.losses[base])
    return f"**{text}**" if corrected.get((result.size.name, mode, base), 1) < 0.05 else text


def corrected_ps(results):
    """Holm's, over all gaps that README prints."""
    return runs.holm({(r.size.name, mode, base): runs.gap_p(r.losses[mode], r.losses[base])
                      for r in results for mode in TAPERS for base in NORMS if base in r.losses and len(r.losses.get(mode, {})) > 1})


def readme_table(results, corrected):
    rows = [[TITLES[r.size.name], mode, len(r.losses[mode]), f"{statistics.mean(r.losses[mode].values()):.4f}",
             *(gap_cell(r, mode, base, corrected) for base in NORMS)] for r in results for mode in TAPERS if r.losses.get(mode)]
    return runs.table(["corpus, size", "model", "seeds", "validation loss", *README_NORMS], rows)


def trend(results):
    """U4: the gap to norm + scale loss at 3.6M minus that at 0.93M."""
    gaps = {r.size.name: runs.gaps_of(r.losses["taper"], r.losses.get("norm + scale loss", {})) for r in results}
    text = runs.welch_text(gaps.get("3.6M", []), gaps.get("0.93M", []))
    return f"\nU4, the taper's gap to norm + scale loss at 3.6M minus that at 0.93M: {text}\n" if text else ""


def breakdowns():
    """Of all runs of this protocol, those that ended far above the others."""
    protocol = [r for r in runs.read_records().values() if "-x 2000 -l" in (flags := r.get("flags", "")) and "-q 0.03" in flags
                and "--optimizer" not in flags]
    def count(kind):
        return [sum(where(r) for r in protocol if f"-g {kind}" in r["flags"]) for where in (lambda r: True, lambda r: (r["val_loss"] or math.inf) > 2.4)]
    tapers, norms = count("taper"), count("norm")
    return (f"\nOf all runs of this protocol, with AdamW, tuning and screening included, {tapers[1]} of {tapers[0]} tapers (taper-all too) and "
            f"{norms[1]} of {norms[0]} norms ended above 2.4.\n")


def figure(results):
    plt, colors = runs.plot_style.load()
    rows = [(result, mode) for result in results for mode in TAPERS if result.losses.get(mode)]
    fig, ax = plt.subplots(figsize=(8, 1.4 + 0.5 * len(rows)), layout="constrained")
    for i, (result, mode) in enumerate(rows):
        for j, base in enumerate(NORMS):
            taper, norm, at = result.losses[mode], result.losses.get(base, {}), 0.2 * (1.5 - j) - i
            gaps = [100 * (taper[seed] / norm[seed] - 1) for seed in taper if seed in norm]
            mean, half = runs.paired_gap(taper, norm)
            ax.plot(gaps, [at] * len(gaps), ".", color=colors[j], alpha=0.3, mew=0)
            ax.errorbar(100 * mean, at, xerr=100 * half, color=colors[j], marker="o", ms=4, capsize=3, lw=1.5,
                        label=f"against {base}" if i == 0 else None)
    ax.axvline(0, color="black", lw=0.8)
    ax.set_yticks([-i for i in range(len(rows))], [f"{TITLES[result.size.name]}: {mode}" for result, mode in rows])
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="gap of the validation loss, % (above 0: the taper is worse)")
    fig.legend(loc="outside lower center", ncols=2, fontsize=8)
    fig.suptitle("tapers against norms, rate and warm-up tuned for each", fontweight="bold")
    runs.plot_style.save(fig, runs.RESULTS / "tuned", ["png"])


def main():
    args = runs.arguments(__doc__, lambda parser: parser.add_argument(
        "--only", nargs="+", choices=[size.name for size in SIZES], default=[size.name for size in SIZES]))
    results = {size.name: result_of(args, size) for size in SIZES if size.name in args.only}
    results = [results[name] for name in BY_SIZE if name in results and len(results[name].losses.get("taper", {})) > 1]
    corrected = corrected_ps(results)
    text = "\n".join(cell_table(result) for result in results) + "\n" + seed_table(results, corrected) + trend(results) + breakdowns()
    print(text)
    if len(args.only) < len(SIZES):
        return  # the documents have all sizes
    runs.write_block(runs.RESULTS / "experiments.md", "tuned", text)
    runs.write_block(runs.ROOT / "README.md", "results", readme_table(results, corrected))
    figure(results)


if __name__ == "__main__":
    main()
