#!/usr/bin/env python3
"""Which warm-up should users get who say nothing?

    dev/experiments/warmup.py [--report]        (--help: where corpora, program and work folder are)

tuned.py found 2% of the run, the default of `-u`, worst of all warm-ups at the rates that are best there. The default rate is lower, 3e-3. So:
norm and taper as `./train_gpt` has them, with warm-ups of 2%, 5% and 10%, five seeds used for nothing else, at two sizes.

Stated on 2026-11-30, before the first run:
  W1  The default becomes the one of 5% and 10% with the lower loss of the taper (the mean of its two gaps to 2%), if over the seeds its interval
      against 2% is below 0 for the taper at both sizes and above 0 for the norm at none, and no run diverges. Otherwise it stays.
      (Runs of fewer than 1000 updates, `-e` and `--init` have warm-ups of their own, and keep them.)
"""
import runs
import tuned
from runs import Run

MODES = {"norm": "-g norm --bound 0", "taper": "-g taper --bound 8"}
WARMUPS = ["2%", "5%", "10%"]
SEEDS = range(41, 46)


def main():
    args = runs.arguments(__doc__)
    rows = []
    for size in tuned.SIZES[:2]:
        wanted = {(mode, warmup): [Run(size.corpus, f"{size.shape} -x {size.steps} -l 3e-3 -u {warmup} -q 0.03 {flags} -v 0", seed)
                                   for seed in SEEDS] for mode, flags in MODES.items() for warmup in WARMUPS}
        records = runs.run_all(args, [run for some in wanted.values() for run in some])
        for mode in MODES:
            losses = {warmup: {run.seed: records[run]["val_loss"] for run in wanted[mode, warmup] if run in records and records[run]["val_loss"]}
                      for warmup in WARMUPS}
            rows += [[tuned.TITLES[size.name], mode, warmup, len(losses[warmup]), runs.losses_text(losses[warmup]),
                      "" if warmup == "2%" else runs.gap_text(losses[warmup], losses["2%"])] for warmup in WARMUPS]
    text = runs.table(["corpus, size", "mode", "-u", "seeds", "validation loss", "gap to 2% [95%]"], rows)
    print(text)
    runs.write_block(runs.RESULTS / "experiments.md", "warmup", text)


if __name__ == "__main__":
    main()
