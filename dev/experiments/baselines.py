#!/usr/bin/env python3
"""Other ways to do without norms, against norm and taper: nothing at all, removal one site after another.

    dev/experiments/baselines.py [--report]     (--help: where corpora, program and work folder are; needs PyTorch)

The trainer has none of these; they are trained by dev/reference/tapernorm_torch.py, from the same initial weights and on the
same batches as the program's runs of parity.py, whose gaps are taken seed by seed. `norm` is trained here, too: that
it meets the program's own `norm` is the check of this file. 0.2M parameters, tinyshakespeare, 2000 updates, parity.py's
recipe. Rates: the two without sites are tuned with a seed used for nothing else (100), from 4e-3 and 8e-3 on towards the
better side until the best rate has tried neighbours; the others take 8e-3, the best of the program's norm and of its taper.

  norm             LayerNorm
  no norm          no site at all, the final one included; the embeddings times a trained scalar from sqrt(C)
  no norm, scaled branches    the same, each branch's output divided by sqrt(2 L)
  one by one       taper's sites, each calibrated and then fixed in a single update, evenly spaced from 5% to 40%: first
                   every ln_2, then every ln_1 (the order of arXiv 2507.02559, there for fine-tuning); scale loss 0.1
  staggered        the same sites in the order of depth, each with a cosine gate half as long as taper's; scale loss 0.1

Stated before the first run, of the gap of the final validation loss over seeds 1 to 5, with its paired 95% interval:
  * check: the interval of norm here against the program's norm contains 0, and is narrower than 1.5% to each side.
  * "no norm" trains, and is worse than norm (interval above 0).
  * staggered or one by one counts as a win over taper + scale loss if the interval lies below 0.
Changed after the first run: the scalar at the embeddings was added, because signals vanish without a norm.
Removed on 2026-11-30: DyT (arXiv 2503.10622), which had not learned at any of four rates (2.96 to 3.35, its records are in runs.jsonl). A rival that
is not trained as its authors train it says nothing about it.
"""
import math

import parity
import runs
import torch_runs

TUNED = ["no norm", "no norm, scaled branches"]
MODES = ["norm", *TUNED, "one by one", "staggered"]
RATES = ("1e-3", "2e-3", "4e-3", "8e-3", "16e-3", "32e-3")


def tune(args, mode):
    """{rate: final validation loss, infinite where it diverged}: RATES from the middle on, until the best is not at the edge."""
    tried = {}
    first, last = RATES.index("4e-3"), RATES.index("8e-3")
    while True:
        chosen = {rate: torch_runs.make_run(mode, rate, parity.TUNING_SEED) for rate in RATES[first:last + 1]}
        records = runs.run_all(args, chosen.values(), torch_runs.TorchTrainer)
        tried = {rate: records[run]["val_loss"] or math.inf for rate, run in chosen.items() if run in records}
        best = min(tried, key=tried.get, default=None)
        if len(tried) < len(chosen) or best not in (RATES[first], RATES[last]):
            return tried  # a report finds no more, or all is tried
        if best == RATES[first] and first > 0:
            first -= 1
        elif best == RATES[last] and last < len(RATES) - 1:
            last += 1
        else:
            return tried


def main():
    args = runs.arguments(__doc__)
    tried = {mode: tune(args, mode) for mode in TUNED}
    best = {mode: min(tried[mode], key=tried[mode].get) for mode in TUNED if tried[mode]}
    best |= {mode: "8e-3" for mode in MODES if mode not in TUNED}
    seeds = {(mode, seed): torch_runs.make_run(mode, best[mode], seed) for seed in parity.SEEDS for mode in MODES if mode in best}
    records = runs.run_all(args, seeds.values(), torch_runs.TorchTrainer)

    program = torch_runs.program_losses()
    rows = []
    for mode in MODES:
        losses = {seed: records[run]["val_loss"] for (m, seed), run in seeds.items()
                  if m == mode and run in records and records[run]["val_loss"]}
        rates = ", ".join(f"{rate}: " + (f"{loss:.4f}" if loss < 100 else f"{loss:.0e}" if loss < math.inf else "diverged") for rate, loss in tried.get(mode, {}).items())
        rows.append([mode, rates, best.get(mode, ""), len(losses), runs.losses_text(losses)] +
                    [runs.gap_text(losses, program[base]) if losses else "" for base in ("norm", "taper + scale loss")])
    text = runs.table(["mode", "rates tried (seed 100)", "rate", "seeds", "validation loss", "gap to the program's norm [95%]",
                       "gap to its taper + scale loss [95%]"], rows)
    print(text)
    runs.write_block(runs.RESULTS / "experiments.md", "baselines", text)


if __name__ == "__main__":
    main()
