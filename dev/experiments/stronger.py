#!/usr/bin/env python3
"""What could make the taper as good as the best norm: a larger gain, another target, another schedule.

    dev/experiments/stronger.py [--report]        (--help: where corpora, program and work folder are)

tuned.py found the taper behind a norm with the scale loss and frozen gains. Early calibration (`--gate-warmup 2%`) had gained, and is not
safe; it changes three things at once, which have flags of their own here: what the scalings give (`--gain`), where the scale loss holds the
stream (`--scale-target`), and when.

1. Screening at 0.04M: every candidate at the four CELLS of rate and warm-up, by the mean of seeds 101 to 103; its best cell counts. What is
   done to the taper is done to the norms, too, where it can be: a gain that a norm has as well is not the taper's.
2. What the taper gains from most goes to tuned.py, where it is tuned at every size as the other modes are, and meets fresh seeds.

Stated on 2026-11-30, when the tuning of 0.04M was known (taper 1.9197, norm + scale loss 1.9236, frozen 1.8714 at 101 to 103), before the
first run of a candidate. Bounds are 8 times the gain, so that the same rows are clipped.
  S1  A gain of 2 or 3 lowers the taper's loss at its best cell by at least 1%.
  S2  It does not lower the loss of norm + scale loss by as much (the control).
  S3  (Added with the first norms and gain 2 known, before its runs.) Freezing gains gains because they are noisy at rates this high: with a
      tenth of the rate for the blocks' gains ("slow") norm + scale loss is within 0.5% of frozen, and the taper gains at least 1.5%.
  S4  (Added with frozen gains known for the taper at its first two cells, 1.8802 and 1.8857.) A taper with frozen gains, and a gain, target or
      schedule that is better for it, is at or below the best of the same norms.
  S5  (Added when the climbs at 0.2M had the taper with frozen gains at 1.7635 and the norm at 1.7357. With a longer warm-up the calibration at 5% comes
      while the stream is small: c is 2.3 in place of 1.2, and gradients are above the clip.) Gains that stay at 1 from the start, and a calibration
      at 10%, make the taper as good as that norm at 0.2M, within 0.5%; the norm gains nothing from either.
  S6  (Added when S5 had been missed.) The taper with frozen gains bears half the norm's rate because its gradients (1.2 to 1.4 from a fifth of
      the run on; the norm's: 0.85) are clipped at 1, or because its stream is not held firmly enough: clipped at 4, or with ten times the
      scale loss, its best cell has the norm's rate, and is within 0.3% of it.
  S8  (Added when S6 had shown ten times the scale loss to lower the taper's loss at 0.2M and nothing else to.) With a scale loss of 1, 3 or 10, the
      best of them for each, a taper with frozen gains is within 0.3% of the best norm with frozen gains and a scale loss of 0.1 to 10, at both
      sizes. If one factor lowers the taper's loss at both sizes, it goes to tuned.py, for that norm, too.
  S7  A candidate becomes a default only if over fresh seeds its interval against the present default is below 0 at two sizes at least,
      above 0 at none, and no run of it diverges.
"""
import math
import statistics

import runs
import tuned
from runs import Run

CELLS = [("8e-3", "10%"), ("11e-3", "10%"), ("11e-3", "20%"), ("16e-3", "20%")]
SCALED, FROZEN = "-g norm --bound 0 --scale-loss 0.1", "-g norm --bound 0 --scale-loss 0.1 --freeze-gains"
ALL_SLOW = " (a tenth of the rate for all gains and all biases)"  # of a program that was given up: Run.other
CANDIDATES = {  # name: flags; U: the warm-up of the cell, in percent
    "norm": "-g norm --bound 0",
    "norm + scale loss": SCALED,
    "norm + scale loss, frozen gains": FROZEN,
    "taper": "-g taper --bound 8",
    "taper, gain 2": "-g taper --bound 16 --gain 2",
    "taper, gain 3": "-g taper --bound 24 --gain 3",
    "taper, gain 5": "-g taper --bound 40 --gain 5",
    "norm + scale loss, all gains and biases slow": SCALED + ALL_SLOW,
    "norm + scale loss, frozen gains, all biases slow": FROZEN + ALL_SLOW,
    "norm + scale loss, slow gains": SCALED + " --lr-gains 0.1",
    "taper, slow gains": "-g taper --bound 8 --lr-gains 0.1",
    "taper, frozen gains": "-g taper --bound 8 --freeze-gains",
    "taper, slow gains, gain 3": "-g taper --bound 24 --gain 3 --lr-gains 0.1",
    "norm + scale loss, gain 3": SCALED + " --gain 3",
    **{f"taper, frozen gains, {name}": f"-g taper {flags} --freeze-gains" for name, flags in {
        "gain 0.7": "--bound 5.6 --gain 0.7", "gain 0.5": "--bound 4 --gain 0.5", "gain 2": "--bound 16 --gain 2",
        "target x 0.5": "--bound 8 --scale-target 0.5", "target x 2": "--bound 8 --scale-target 2",
        "gate ends at 15%": "--bound 8 --gate-end 15%", "gate ends at 80%": "--bound 8 --gate-end 80%",
        "gate at the end of the warm-up": "--bound 8 --gate-warmup {u}% --gate-end {end}%", "no bound": "--bound 0"}.items()},
    **{f"norm + scale loss, frozen gains, {name}": f"{FROZEN} {flags}" for name, flags in {
        "gain 0.7": "--gain 0.7", "gain 0.5": "--gain 0.5", "gain 2": "--gain 2", "target x 0.5": "--scale-target 0.5", "target x 2": "--scale-target 2",
        "at the end of the warm-up": "--gate-warmup {u}%"}.items()},
    "norm, no weight decay": "-g norm --bound 0 -c 0",
    "taper, gate at the end of the warm-up": "-g taper --bound 8 --gate-warmup {u}% --gate-end {end}%",
    "taper, gate at the end of the warm-up, no weight decay": "-g taper --bound 8 --gate-warmup {u}% --gate-end {end}% -c 0",
    "norm + scale loss, frozen gains, no weight decay": FROZEN + " -c 0",
    "taper, frozen gains, no weight decay": "-g taper --bound 8 --freeze-gains -c 0",
    **{name + more: f"{flags} --lr-gains 0{at}" for more, at in (("", ""), (", calibrated at 10%", " --gate-warmup 10% --gate-end 45%"))
       for name, flags in (("taper, no gains", "-g taper --bound 8"), ("norm + scale loss, no gains", SCALED))},
    "taper, frozen gains, clipped at 4": "-g taper --bound 8 --freeze-gains --clip 4",
    "taper, frozen gains, scale loss x 10": "-g taper --bound 8 --freeze-gains --scale-loss 1",
    "norm + scale loss, frozen gains, clipped at 4": FROZEN + " --clip 4",
    "norm + scale loss x 10, frozen gains": "-g norm --bound 0 --scale-loss 1 --freeze-gains",
    **{f"taper, frozen gains, scale loss x {10 * factor}": f"-g taper --bound 8 --freeze-gains --scale-loss {factor}" for factor in (3, 10)},
    **{f"norm + scale loss x {10 * factor}, frozen gains": f"-g norm --bound 0 --scale-loss {factor} --freeze-gains" for factor in (3, 10)},
    "taper, carried moments": "-g taper --bound 8 --carry-moments",
    "taper, gate ends at 15%": "-g taper --bound 8 --gate-end 15%",
}

AT_02 = ["norm + scale loss, frozen gains", "taper", "taper, frozen gains", "taper, frozen gains, gain 0.7",
         "taper, frozen gains, clipped at 4", *(f"taper, frozen gains, scale loss x {factor}" for factor in (10, 30, 100)),
         *(f"norm + scale loss x {factor}, frozen gains" for factor in (10, 30, 100)),
         *(f"{mode}, no gains{at}" for mode in ("taper", "norm + scale loss") for at in ("", ", calibrated at 10%"))]
CELLS_02 = [("5.7e-3", "5%"), ("8e-3", "10%"), ("11e-3", "10%")]


def make_run(size, name, cell, seed, keep=False, candidates=CANDIDATES):
    rate, warmup = cell
    u = int(warmup.removesuffix("%"))
    flags = candidates[name].format(u=u, end=u + 35)
    flags, _, other = flags.partition(" (")
    return Run(size.corpus, f"{size.shape} -x {size.steps} -l {rate} -u {warmup} -q 0.03 {flags} -v 0", seed, keep=keep,
               other=other.removesuffix(")"))


def screening(args, size, names, cells, candidates=CANDIDATES):
    wanted = {(name, cell): [make_run(size, name, cell, seed, candidates=candidates) for seed in size.tuning_seeds] for name in names for cell in cells}
    records = runs.run_all(args, [run for some in wanted.values() for run in some])
    rows = []
    for name in names:
        means = {}
        for cell in cells:
            found = [records.get(run) for run in wanted[name, cell]]
            means[cell] = statistics.mean(r["val_loss"] or math.inf for r in found) if all(found) else math.nan
        best = min(means, key=lambda cell: means[cell] if means[cell] == means[cell] else math.inf)
        shown = [f"{means[cell]:.4f}" if math.isfinite(means[cell]) else "diverged" if means[cell] == math.inf else "" for cell in cells]
        rows.append([name, *(f"**{text}**" if cell == best else text for cell, text in zip(cells, shown, strict=True))])
    seeds = ", ".join(map(str, size.tuning_seeds))
    return runs.table([f"{size.name}, seed{'s' if len(size.tuning_seeds) > 1 else ''} {seeds}",
                       *(f"{rate}, {warmup}" for rate, warmup in cells)], rows)


def main():
    args = runs.arguments(__doc__)
    text = screening(args, tuned.SIZES[0], list(CANDIDATES), CELLS) + "\n" + screening(args, tuned.SIZES[1], AT_02, CELLS_02)
    print(text)
    runs.write_block(runs.RESULTS / "experiments.md", "stronger", text)


if __name__ == "__main__":
    main()
