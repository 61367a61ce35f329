#!/usr/bin/env python3
"""Ideas to better the taper, one change each to `taper` with the scale loss, before any of them goes into the trainer.

    dev/experiments/ideas.py [--report]         (--help: where corpora, program and work folder are; needs PyTorch)

Trained by the PyTorch reference from the program's initial weights and batches, as in baselines.py: 0.2M parameters,
tinyshakespeare, 2000 updates. All at 8e-3, the best rate of taper + scale loss, none tuned for itself; seeds 1 to 5.

  taper            no change: the check of this file against the program's taper + scale loss
  quietest first   half as long gates one after another, beginning with the site whose 1/s varies least
  following        c follows an EMA of decay 0.999 while the gate is above 0
  moments          gamma~, beta~ start with AdamW's moments of gamma, beta
  rate again       the learning rate warms up again (from 0 in 5% of the updates) once the taper has ended
  every block      the scale loss on the stream behind every block
  half target      the scale loss's target is half the average
  frozen gain      no taper: norm + scale loss, gamma and beta of the blocks' sites frozen at k_warm
  frozen gain alone   the same without the scale loss
  taper, frozen gain  taper with gamma, beta, gamma~, beta~ frozen at k_warm

Stated before the first run, of the paired 95% interval over the seeds:
  * check: that of taper against the program's contains 0, and is narrower than 1.5% to each side.
  * a change wins if its interval against the program's taper + scale loss lies below 0, and is kept as an option of the trainer
    only if that against norm + scale loss does, too. Seven are tried: one in 40 wins by chance alone.
  * "frozen gain" asks whether the taper's freezing is what changes the loss: no expectation.
Added when two seeds of "frozen gain" were 1.8% below norm + scale loss: the last two modes. If "taper, frozen gain" wins as above
and is as good as "frozen gain" (their paired interval contains 0 or lies below it), freezing goes into the trainer.
(Staggered by depth is in baselines.py; removal in one update in schedule.py.)
"""
import parity
import runs
import torch_runs

MODES = ["taper", "quietest first", "following", "moments", "rate again", "every block", "half target", "frozen gain",
         "frozen gain alone", "taper, frozen gain"]
RATE = "8e-3"


def main():
    args = runs.arguments(__doc__)
    chosen = {(mode, seed): torch_runs.make_run(mode, RATE, seed) for seed in parity.SEEDS for mode in MODES}
    records = runs.run_all(args, chosen.values(), torch_runs.TorchTrainer)
    program = torch_runs.program_losses()
    rows = []
    for mode in MODES:
        of = {seed: records[run] for (m, seed), run in chosen.items() if m == mode and run in records}
        if not of:
            continue
        losses = {seed: record["val_loss"] for seed, record in of.items() if record["val_loss"]}
        shown = " ".join(f"{losses[seed]:.4f}" if seed in losses else "diverged" for seed in of)
        rows.append([mode, shown, runs.losses_text(losses)] +
                    [runs.gap_text(losses, program[base]) for base in ("taper + scale loss", "norm + scale loss", "norm")])
    text = runs.table(["change", "validation loss, by seed", "mean ± deviation", "gap to the program's taper + scale loss [95%]",
                       "to its norm + scale loss", "to its norm"], rows)
    print(text)
    runs.write_block(runs.RESULTS / "experiments.md", "ideas", text)


if __name__ == "__main__":
    main()
