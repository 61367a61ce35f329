#!/usr/bin/env python3
"""How large the rows of a pretrained GPT-2's residual stream are, by site and by position.

    dev/.venv/bin/python dev/experiments/row_scales.py MODEL TOKENS [--name NAME]     (MODEL: a Hugging Face folder; TOKENS: a shard)

A tapered site divides every row by one number, its norm divides each row by its own s. This says how far apart the two are:
over 80 sequences of 256 tokens, per site, the quantiles of s of the rows behind the first position, those of the first
position, and the kurtosis of both (mean u^4 / (mean u^2)^2: 3 for normal numbers, C where one channel is all there is).
Writes dev/results/row-scales-NAME.{md,png}.
"""
import argparse
import pathlib
import struct
import sys

import runs
from runs import plot_style

for package in ("torch", "transformers"):
    runs.needs.need(package, "dev-env")
import torch  # noqa: E402
import transformers  # noqa: E402

SEQUENCES, T = 80, 256


def read_shard(path):
    """The tokens of a shard in llm.c's format."""
    data = pathlib.Path(path).read_bytes()
    magic, version, count = struct.unpack("<3i", data[:12])
    if (magic, version) != (20240520, 1):
        sys.exit(f"{path}: not a shard of llm.c's format")
    return torch.frombuffer(bytearray(data[1024:1024 + 2 * count]), dtype=torch.uint16).long()


def measure(model, sequences):
    """{site: (s [sequences, T], kurtosis [sequences, T])}, in the order of the forward pass."""
    found = {}

    def watch(name):
        def hook(_, inputs):
            u = inputs[0] - inputs[0].mean(-1, keepdim=True)
            square = u.square().mean(-1)
            found.setdefault(name, []).append((square.sqrt(), u.pow(4).mean(-1) / square.square()))
        return hook

    sites = {f"{layer}.{norm}": getattr(block, norm) for layer, block in enumerate(model.transformer.h) for norm in ("ln_1", "ln_2")}
    for name, module in (sites | {"ln_f": model.transformer.ln_f}).items():
        module.register_forward_pre_hook(watch(name))
    with torch.no_grad():
        for some in sequences.split(4):
            model(some)
    return {name: tuple(torch.cat(part) for part in zip(*rows, strict=True)) for name, rows in found.items()}


def quantiles(x, levels):
    return [x.flatten().double().quantile(level).item() for level in levels]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("tokens")
    parser.add_argument("--name", default="model")
    args = parser.parse_args()
    model = transformers.GPT2LMHeadModel.from_pretrained(args.model).eval()
    tokens = read_shard(args.tokens)
    starts = [i * (len(tokens) - T) // SEQUENCES for i in range(SEQUENCES)]
    rows = measure(model, torch.stack([tokens[start:start + T] for start in starts]))

    table, bands = [], []
    for site, (s, kurtosis) in rows.items():
        low, median, high = quantiles(s[:, 1:], (0.01, 0.5, 0.99))
        first = quantiles(s[:, :1], (0, 0.5, 1))
        share = (s[:, 1:] > 2 * median).double().mean().item()
        bands.append([low, median, high, *first])
        table.append([site, f"{median:.3g}", f"{low / median:.2f} to {high / median:.2f}", f"{s[:, 1:].max() / median:.1f}",
                      f"{100 * share:.2g}%", f"{first[1] / median:.1f} ({first[0] / median:.1f} to {first[2] / median:.1f})",
                      f"{kurtosis[:, 1:].median():.1f}", f"{kurtosis[:, 0].median():.0f}"])
    text = runs.table(["site", "median s", "1% to 99%, over the median", "largest", "above twice the median",
                       "first position: median (least to largest)", "kurtosis", "kurtosis, first position"], table)
    print(text)
    stem = runs.RESULTS / f"row-scales-{args.name}"
    stem.with_suffix(".md").write_text(f"# Scales of the rows of {args.name}\n\n`dev/experiments/row_scales.py`: {SEQUENCES} sequences of "
                                       f"{T} tokens; all but the first column of numbers is relative to it.\n\n{text}")

    plt, colors = plot_style.load()
    figure, ax = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    x = range(len(bands))
    for column, color, label in ((0, colors[0], "other positions: median, 1% to 99%"), (3, colors[1], "first position: median, least to largest")):
        ax.plot(x, [b[column + 1] for b in bands], color=color, label=label, marker="o", markersize=3)
        ax.fill_between(x, [b[column] for b in bands], [b[column + 2] for b in bands], color=color, alpha=0.2, linewidth=0)
    plot_style.log_axis(ax)
    ax.set_xticks(list(x), list(rows), rotation=60, ha="right")
    ax.set_ylabel("s of a row")
    ax.set_title(f"Rows of the residual stream of {args.name}, by site")
    ax.legend()
    plot_style.save(figure, stem, kinds=("png",))


if __name__ == "__main__":
    main()
