#!/usr/bin/env python3
"""Norm against taper where the matrices are trained by Muon (`--optimizer muon`).

    dev/experiments/muon.py [--report]        (--help: where corpora, program and work folder are)

As tuned.py: rate and warm-up by a hill climb over tuning seeds, then fresh seeds, for the best norm of tuned.py and the taper with frozen gains.
The same with trained gains is not tuned: it has the cell of its frozen sister; it was stopped before its fresh seeds at 0.2M.

Stated on 2026-11-30, before the first of these runs, after a look at 0.04M (seeds 101 and 102, four cells: norm 1.825, taper 1.824) and 0.2M
(seed 101, three cells: norm 1.693, taper 1.709), with a program that was thrown away:
  M1  Muon lowers the loss of the best norm by at least 1.5% at both sizes.
  M2  The taper with frozen gains, against that norm with Muon: the interval's upper end is at most +0.5% at 0.04M; it is not at 0.2M.
  M3  No run at a chosen cell diverges, with no norm less than with norms.
  M4  (Added when the climbs at 0.2M had the taper at 1.676, 2.8e-3 and 2%, the norm at 1.661, 11e-3 and 2%, and the taper much worse with a
      longer warm-up.) The taper's stream outgrows what it was calibrated for: with a scale loss of 1, or calibrated at 10% or 2%, its best
      cell of CELLS is at least 0.5% lower. The norm, as a control, with the same.
  All fresh seeds of these two had been run when M5 and M6 were stated (+1.0% [0.8, 1.2] at 0.2M): what they are about is a second try.
  M5  (Added when "calibrated at 10%" had been seen at those cells: 1.6976, 1.6742, 1.6795; the taper of 5%: 1.6758, 1.6897, 1.7447.) Calibrated
      at 10% or 20% the taper bears the norm's rates: its best cell of HIGH is within 0.3% of the norm's best there. Control: the norm
      whose scale loss begins at 10%.
  M6  (Added when M5 had held: 1.6620 at 8e-3 and 2%, norm 1.6582.) Calibrated at 10%, tuned as the others, and over fresh seeds: the taper's mean
      gap to the best norm with Muon is at most 0 at 0.04M and at most +0.5% at 0.2M.
"""
import argparse
import dataclasses

import runs
import stronger
import tuned

NORM, TAPER, LATE = "norm + scale loss, frozen gains", "taper, frozen gains", "taper, frozen gains, calibrated at 10%"
TRAINED = {"norm + scale loss": NORM, "taper": TAPER}  # mode: the one whose cell it has
MODES = {mode: f"{tuned.MODES[mode]} --optimizer muon" for mode in (NORM, TAPER, *TRAINED)}
MODES[LATE] = f"{MODES[TAPER]} --gate-warmup 10% --gate-end 45%"
SIZES = [dataclasses.replace(size, modes=MODES, begin={NORM: rate, TAPER: rate, LATE: "8e-3"})
         for size, rate in zip(tuned.SIZES, ("8e-3", "5.7e-3"))]

HIGH = [("8e-3", "2%"), ("8e-3", "5%"), ("11e-3", "2%"), ("16e-3", "2%")]
CELLS = [("2.8e-3", "2%"), ("5.7e-3", "2%"), ("5.7e-3", "5%")]
SCREENED = {  # name: flags
    NORM: MODES[NORM], f"{NORM}, scale loss x 10": MODES[NORM].replace("0.1", "1"), TAPER: MODES[TAPER],
    **{f"{TAPER}, {name}": f"{MODES[TAPER]} {flags}" for name, flags in {
        "scale loss x 10": "--scale-loss 1", "calibrated at 10%": "--gate-warmup 10% --gate-end 45%", "calibrated at 2%": "--gate-warmup 2%",
        "no weight decay": "-c 0"}.items()},
}
LATER = {NORM: MODES[NORM], f"{NORM}, calibrated at 10%": f"{MODES[NORM]} --gate-warmup 10%",
         **{f"{TAPER}, calibrated at {at}%": f"{MODES[TAPER]} --gate-warmup {at}% --gate-end {at + 35}%" for at in (10, 20)}}


def result_of(args, size):
    best, records = tuned.climb(args, size)
    best |= {mode: best[other] for mode, other in TRAINED.items() if other in best}
    records |= runs.run_all(args, [tuned.make_run(size, mode, best[mode], seed, keep=True)
                                   for mode in MODES if mode in best for seed in size.seeds])
    return tuned.Result(size, best, records, {mode: tuned.seed_losses(size, mode, cell, records) for mode, cell in best.items()})


def rows_of(args, result, plain_size):
    plain = tuned.result_of(args, plain_size).losses  # by AdamW
    for mode in (mode for mode in MODES if result.losses.get(mode)):
        losses = result.losses[mode]
        yield [tuned.TITLES[result.size.name], mode, ", ".join(result.best[mode]), len(losses), runs.losses_text(losses),
               "" if mode == NORM else runs.gap_text(losses, result.losses[NORM]),
               runs.gap_text(losses, plain[TAPER if mode == LATE else mode])]


def main():
    args = runs.arguments(__doc__)
    results = [result_of(args, size) for size in SIZES]
    recorded = argparse.Namespace(**vars(args) | {"report": True})
    text = "\n".join(tuned.cell_table(result) for result in results) + "\n" + runs.table(
        ["corpus, size", "mode", "rate, warm-up", "seeds", "validation loss", f"gap to {NORM} [95%]", "gap to its like with AdamW, calibrated at 5% [95%]"],
        [row for result, plain in zip(results, tuned.SIZES) for row in rows_of(recorded, result, plain)])
    for cells, candidates in ((CELLS, SCREENED), (HIGH, LATER)):
        text += "\n" + stronger.screening(args, SIZES[1], list(candidates), cells, candidates)
    print(text)
    runs.write_block(runs.RESULTS / "experiments.md", "muon", text)


if __name__ == "__main__":
    main()
