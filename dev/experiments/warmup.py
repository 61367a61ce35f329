#!/usr/bin/env python3
"""Which warm-up should users get who say nothing?

    dev/experiments/warmup.py [--report]        (--help: where corpora, program and work folder are)

tuned.py found 2% of the run, the default of `-u`, worst of all warm-ups at the rates that are best there. The default rate is lower, 3e-3. So:
norm and taper as `./train_gpt` has them, with warm-ups of 2%, 5% and 10%, five seeds used for nothing else, at two sizes.

Stated on 2026-11-30, before the first run:
  W1  The default becomes the one of 5% and 10% with the lower loss of the taper (the mean of its two gaps to 2%), if over the seeds its interval
      against 2% is below 0 for the taper at both sizes and above 0 for the norm at none, and no run diverges. Otherwise it stays.
      (Runs of fewer than 1000 updates, `-e` and `--init` have warm-ups of their own, and keep them.)
Stated later that day, before its runs, because `--freeze-gains` alone had kept 2%, worst of all in tuned.py's tables, as the default:
  W2  With `--freeze-gains` the default becomes 5%, if the loss of the taper with frozen gains is lower than with 2%, by the mean over the seeds, at 0.04M
      and 0.2M, no interval against 2% is above 0, that of norm + scale loss with frozen gains and the taper's at 0.93M (three seeds) included,
      and no run ends above 2.4. 10% is no candidate, because it broke down at 0.93M at rates near this one; it is run for comparison.
"""
import runs
import tuned
from runs import Run

THREE, TWO = ["2%", "5%", "10%"], ["2%", "5%"]
CASES = [  # sizes, mode, warm-ups, seeds
    (("0.04M", "0.2M"), "norm", THREE, range(41, 46)),
    (("0.04M", "0.2M"), "taper", THREE, range(41, 46)),
    (("0.04M", "0.2M"), "norm + scale loss, frozen gains", TWO, range(41, 46)),
    (("0.04M", "0.2M"), "taper, frozen gains", THREE, range(41, 46)),
    (("0.93M",), "taper, frozen gains", TWO, range(41, 44)),
]


def main():
    args = runs.arguments(__doc__)
    sizes = {size.name: size for size in tuned.SIZES}
    cases = [(sizes[name], *case) for name in tuned.BY_SIZE for names, *case in CASES if name in names]
    def make_run(size, mode, warmup, seed):
        return Run(size.corpus, f"{size.shape} -x {size.steps} -l 3e-3 -u {warmup} -q 0.03 {tuned.MODES[mode]} -v 0", seed)
    records = runs.run_all(args, [make_run(size, mode, warmup, seed) for size, mode, warmups, seeds in cases for warmup in warmups for seed in seeds])
    rows = []
    for size, mode, warmups, seeds in cases:
        losses = {warmup: runs.losses_of({seed: make_run(size, mode, warmup, seed) for seed in seeds}, records) for warmup in warmups}
        rows += [[tuned.TITLES[size.name], mode, warmup, len(losses[warmup]), runs.losses_text(losses[warmup]),
                  "" if warmup == "2%" else runs.gap_text(losses[warmup], losses["2%"])] for warmup in warmups]
    text = runs.table(["corpus, size", "mode", "-u", "seeds", "validation loss", "gap to 2% [95%]"], rows)
    print(text)
    runs.write_block(runs.RESULTS / "experiments.md", "warmup", text)


if __name__ == "__main__":
    main()
