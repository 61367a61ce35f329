#!/usr/bin/env python3
"""Logit chasing: taper-all with and without the scale loss.

    dev/experiments/logit_chasing.py [--report]     (--help: where corpora, program and work folder are)

Without a final norm, cross-entropy falls when the residual stream grows: where the right token leads, every gradient step
grows |h| (arXiv 2602.10408). 0.2M parameters, tinyshakespeare, 2000 updates at nanoGPT's rate, 1e-3, seeds 1 to 3.
The late schedule (20% / 80%) is shown too, so that the early freeze alone is not what is seen. Figure: logit-chasing.

Stated before the first run. s is the mean s(h) of the last update over its value at the taper start:
  * without the scale loss, s grows beyond 2 in every seed after either schedule; with it, s stays within 0.8 .. 1.25.
  * the validation loss with the scale loss is lower in every seed.
Added after the runs at rate 1e-3, to see the rate that parity.py found best: 8e-3.
Added after both, before its runs: lambda 2, about 0.1 over the square of the target 0.22, so that the penalty is 0.1 of a
relative one. Expected: s stays within 0.8 .. 1.25, and the validation loss is at most 0.5% above that of lambda 0.1.
"""
import statistics

import runs
from runs import SHAPE, Run, plot_style

SEEDS = (1, 2, 3)
SETTINGS = {  # name: rate, schedule
    "1e-3, 5% / 40%": ("1e-3", "--gate-warmup 5% --gate-end 40%"),
    "1e-3, 20% / 80%": ("1e-3", "--gate-warmup 20% --gate-end 80%"),
    "8e-3, 5% / 40%": ("8e-3", "--gate-warmup 5% --gate-end 40%"),
}
VARIANTS = [("1e-3, 5% / 40%", "0"), ("1e-3, 5% / 40%", "0.1"), ("1e-3, 5% / 40%", "2"), ("1e-3, 20% / 80%", "0"),
            ("1e-3, 20% / 80%", "0.1"), ("8e-3, 5% / 40%", "0"), ("8e-3, 5% / 40%", "0.1")]
LINES = {"0": "--", "0.1": "-", "2": ":"}  # by lambda


def make_run(variant, seed):
    (rate, schedule), lam = SETTINGS[variant[0]], variant[1]
    return Run("shakespeare", f"{SHAPE} -x 2000 -l {rate} -u 5% -q 0.1 -g taper-all {schedule} --scale-loss {lam} -v 500", seed)


def name(variant):
    setting, lam = variant
    return f"{setting}, " + ("no scale loss" if lam == "0" else f"scale loss {lam}")


def figure(records):
    plt, colors = plot_style.load()
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for variant in VARIANTS:
        for seed in SEEDS:
            record = records.get(make_run(variant, seed))
            if not record:
                continue
            curve, first = record["curve"], seed == SEEDS[0]
            look = {"color": colors[list(SETTINGS).index(variant[0])], "ls": LINES[variant[1]], "lw": 1.8 if first else 0.8,
                    "label": name(variant) if first else None}
            axes[0].plot(curve["step"], curve["stream_scale"], **look)
            axes[1].plot(curve["step"], curve["loss"], **look)
    plot_style.log_axis(axes[0])
    axes[0].set(ylabel="s(h) before the final site")
    axes[1].set(ylim=(1.2, 3.6), ylabel="training loss (nats per byte)")
    for ax in axes:
        ax.set(xlabel="update")
    fig.suptitle("taper-all with the scale loss (solid) and without it (dashed), 3 seeds each", fontweight="bold")
    fig.legend(handles=axes[0].get_legend_handles_labels()[0], loc="outside lower center", ncols=3)
    plot_style.save(fig, runs.RESULTS / "logit-chasing", ["png"])


def main():
    args = runs.arguments(__doc__)
    records = runs.run_all(args, [make_run(variant, seed) for seed in SEEDS for variant in VARIANTS])
    rows = []
    for variant in VARIANTS:
        of = [records[make_run(variant, seed)] for seed in SEEDS if make_run(variant, seed) in records]
        if not of:
            continue
        growth = [f"{r['curve']['stream_scale'][-1] / r['scale_target']:.2f}" for r in of]
        target = [f"{r['scale_target']:.2f}" for r in of]
        losses = [r["val_loss"] for r in of]
        mean = f"{statistics.mean(losses):.4f}" if all(losses) else ""
        rows.append([name(variant), " ".join(target), " ".join(growth),
                     " ".join(f"{loss:.4f}" if loss else "diverged" for loss in losses), mean])
    text = runs.table(["taper-all, k_warm / k_end", "s(h) at the taper start, by seed", "s(h) at the end over that",
                       "validation loss", "mean"], rows)
    print(text)
    runs.write_block(runs.RESULTS / "experiments.md", "logit-chasing", text)
    figure(records)


if __name__ == "__main__":
    main()
