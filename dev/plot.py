#!/usr/bin/env python3
"""Draws training runs from their logs (model.log.jsonl): one figure, and on request one HTML page that compares them.

    dev/plot.py model.log.jsonl                              model.png and model.svg
    dev/plot.py norm=a.log.jsonl taper=b.log.jsonl -o cmp    cmp.png and cmp.svg; the names go into the legend
    dev/plot.py --report a.log.jsonl b.log.jsonl -o cmp      also cmp.html, which needs no other file
    dev/plot.py --check                                      draws made-up logs, also incomplete ones, in a temporary folder

Needs matplotlib (make plot-env). A field that a log lacks leaves its curve out; fields this file does not know are
ignored; a torn last line (of a run that is under way) too.
"""
import argparse
import datetime
import html
import io
import json
import math
import pathlib
import sys
import tempfile
import urllib.parse

import plot_style
from needs import need


class Log:
    """One run: its records, one a logged update, in order. The final validation loss, of the closing record, is in its update's."""

    def __init__(self, name, path, records, settings):
        self.name, self.path, self.records, self.settings = name, path, records, settings

    def series(self, field):
        """Updates and values of a field, where it is a finite number."""
        pairs = [(r["step"], r[field]) for r in self.records if is_number(r.get(field))]
        return [p[0] for p in pairs], [p[1] for p in pairs]

    def last(self, field):
        values = self.series(field)[1]
        return values[-1] if values else None

    def site_scales(self):
        """(site, c) of every tapering site, in the model's order; written once, at the taper start."""
        return [(name.removesuffix(".taper_scale").removeprefix("transformer."), value) for r in self.records
                for name, value in r.items() if name.endswith(".taper_scale") and is_number(value)]


def is_number(x):
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)


def read_log(argument):
    name, _, path = argument.rpartition("=")
    path = pathlib.Path(path if name else argument)
    records, end = [], {}
    try:
        for line in path.read_text(errors="replace").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # torn
            if isinstance(record, dict) and is_number(record.get("step")):
                records.append(record)
            elif isinstance(record, dict) and "end" in record:
                end = record
    except OSError as error:
        sys.exit(f"{path}: expected the log of a run (model.log.jsonl): {error.strerror}")
    if not records:
        sys.exit(f"{path}: expected the log of a run, one JSON object per line with \"step\"; found no such line")
    records.sort(key=lambda r: r["step"])
    for record in records:
        if record["step"] == end.get("val_update"):
            record["val_loss"] = end.get("val_loss")
    return Log(name or path.name.removesuffix(".jsonl").removesuffix(".log"), path, records, read_settings(path))


def read_settings(log_path):
    """The flags of the run, from the state file beside its log; {} where there is none."""
    state = log_path.with_name(log_path.name.removesuffix(".log.jsonl") + ".state.bin")
    try:
        with state.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if size < 1 << 24 else {}
    except (OSError, ValueError):
        return {}
    metadata = header.get("__metadata__", {})
    hidden = ("arguments", "state_version", "position", "tokenizer.vocab", "tokenizer.merges", "provenance", "checksum", "model",
              "model_before")
    shown = {key: value for key, value in metadata.items() if key not in hidden}
    if "arguments" in metadata:
        shown["flags"] = urllib.parse.unquote(" ".join(metadata["arguments"].split("\n")).strip(), errors="replace")
    return shown


def smooth(steps, values, points=200):
    """Means over about `points` stretches of the run, so that curves of single updates can be told apart."""
    width = max(1, len(values) // points)
    chunks = [slice(i, i + width) for i in range(0, len(values), width)]
    return ([steps[c][-1] for c in chunks], [sum(values[c]) / len(values[c]) for c in chunks])


# ---- the figure -----------------------------------------------------------------------------------------------------

def draw_losses(ax, gate_ax, logs, colors):
    """Training loss (thin), validation loss (thick, dots) and, on the right axis, the gate (dashed)."""
    tops, bottoms = [], []
    for log, color in zip(logs, colors):
        steps, losses = smooth(*log.series("loss"))
        if losses:
            ax.plot(steps, losses, color=color, lw=0.9, alpha=0.5)
            tops.append(losses[min(len(losses) - 1, len(losses) // 40)])
            bottoms.append(min(losses))
        steps, losses = log.series("val_loss")
        if losses:
            ax.plot(steps, losses, color=color, lw=1.8, marker="o", ms=3.5)
            bottoms.append(min(losses))
        gate_ax.plot(*log.series("g"), color=color, lw=1.1, ls=(0, (4, 2)))
    if tops:
        low, high = min(bottoms), max(tops)
        margin = 0.05 * (high - low) or 0.1
        ax.set_ylim(low - margin, high + margin)
    ax.set(title="loss, nats per token: training thin, validation with dots", xlabel="update")
    gate_ax.set(ylim=(-0.05, 1.05), ylabel="gate g (dashed)")
    gate_ax.grid(False)
    gate_ax.spines["right"].set_visible(True)


def draw_field(ax, logs, colors, field, title, log_scale=False, averaged=True):
    for log, color in zip(logs, colors):
        steps, values = log.series(field)
        if averaged:
            steps, values = smooth(steps, values)
        ax.plot(steps, values, color=color, lw=1.3)
    if log_scale and any(line.get_ydata().size and line.get_ydata().min() > 0 for line in ax.lines):
        plot_style.log_axis(ax)
    ax.set(title=title, xlabel="update")
    if not any(len(line.get_ydata()) for line in ax.lines):
        note_absent(ax)


def note_absent(ax):
    ax.text(0.5, 0.5, "not in these logs", ha="center", va="center", transform=ax.transAxes, color="#777777")
    ax.set(xticks=[], yticks=[])


def draw_targets(ax, logs, colors):
    for log, color in zip(logs, colors):
        if (target := log.last("scale_target")) is not None and any(log.series("scale_loss")[1]):
            ax.axhline(target, color=color, lw=0.9, ls=":")


def draw_sites(ax, logs, colors):
    """c per site: bars side by side where a few runs have few sites, lines otherwise."""
    with_sites = [(log, color, log.site_scales()) for log, color in zip(logs, colors)]
    with_sites = [entry for entry in with_sites if entry[2]]
    ax.set(title="c per site (about 1 / s at the taper start)")
    if not with_sites:
        return note_absent(ax)
    names = max((sites for _, _, sites in with_sites), key=len)
    names = [name for name, _ in names]
    width = 0.8 / len(with_sites)
    for i, (_, color, sites) in enumerate(with_sites):
        at = [names.index(name) + (i - (len(with_sites) - 1) / 2) * width for name, _ in sites if name in names]
        values = [value for name, value in sites if name in names]
        if len(names) * len(with_sites) <= 60:
            ax.bar(at, values, width=0.9 * width, color=color)
        else:
            ax.plot([names.index(name) for name, _ in sites if name in names], values, color=color, marker=".", lw=1)
    every = math.ceil(len(names) / 13)
    ax.set_xticks(range(0, len(names), every), [name.replace("h.", "", 1) for name in names[::every]], rotation=45,
                  ha="right", fontsize=7)
    ax.grid(axis="x", visible=False)


def figure(logs, title):
    plt, palette = plot_style.load()
    colors = [palette[i % len(palette)] for i in range(len(logs))]
    fig = plt.figure(figsize=(10, 6.4), layout="constrained")
    axes = fig.subplot_mosaic([["loss", "loss", "scale"], ["norm", "c", "speed"]])
    draw_losses(axes["loss"], axes["loss"].twinx(), logs, colors)
    draw_field(axes["scale"], logs, colors, "stream_scale", "s(h) (dotted: the scale loss's target)", log_scale=True)
    draw_targets(axes["scale"], logs, colors)
    draw_field(axes["norm"], logs, colors, "grad_norm", "gradient norm, before clipping", log_scale=True)
    draw_sites(axes["c"], logs, colors)
    draw_field(axes["speed"], logs, colors, "tokens_per_second", "tokens/s of the updates")
    axes["speed"].set_ylim(bottom=0)
    fig.suptitle(title or default_title(logs), fontweight="bold")
    handles = [plt.Line2D([], [], color=color, lw=2.5, label=log.name) for log, color in zip(logs, colors)]
    fig.legend(handles=handles, loc="outside lower center", ncols=min(4, len(logs)))
    return fig


def default_title(logs):
    return f"One run: {logs[0].name}" if len(logs) == 1 else f"{len(logs)} runs: " + ", ".join(log.name for log in logs)


# ---- the page -------------------------------------------------------------------------------------------------------

FINAL = [("updates", "step", "{:.0f}"), ("tokens", "tokens", "{:,.0f}"), ("validation loss", "val_loss", "{:.4f}"),
         ("training loss, last 50 updates", None, "{:.4f}"), ("gate", "g", "{:.3g}"), ("s(h)", "stream_scale", "{:.3g}"),
         ("scale target", "scale_target", "{:.3g}"), ("gradient norm", "grad_norm", "{:.3g}")]


def final_rows(logs):
    rows = []
    for title, field, form in FINAL:
        cells = []
        for log in logs:
            tail = log.series("loss")[1][-50:]
            value = log.last(field) if field else sum(tail) / len(tail) if tail else None
            cells.append("" if value is None else form.format(value))
        rows.append([title, *cells])
    return [row for row in rows if any(row[1:])]


def validation_rows(logs, most=30):
    """The validation losses by update, thinned where there are many; the last of each run stays."""
    by_run = [dict(zip(*log.series("val_loss"))) for log in logs]
    steps = sorted(set().union(*by_run))
    every = math.ceil(len(steps) / most) if steps else 1
    lasts = {max(losses) for losses in by_run if losses}
    return [[step, *(f"{losses[step]:.4f}" if step in losses else "" for losses in by_run)]
            for i, step in enumerate(steps) if i % every == 0 or step in lasts]


def setting_rows(logs):
    """The settings of the runs; those in which they differ come first."""
    names = list(dict.fromkeys(name for log in logs for name in log.settings))
    rows = [[name, *(plain(log.settings.get(name, "")) for log in logs)] for name in names]
    return sorted(rows, key=lambda row: len(set(row[1:])) == 1)


def plain(text):
    """A setting as one would write it: 1.0000000000000001e-05 is 1e-05."""
    try:
        return text if text.isdigit() else f"{float(text):g}"
    except ValueError:
        return text


def html_table(header, rows):
    def line(cells, tag):
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in cells) + "</tr>"
    return "<table>" + line(header, "th") + "\n".join(line(row, "td") for row in rows) + "</table>"


STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1a1a1a}
svg{width:100%;height:auto}table{border-collapse:collapse;margin:.5rem 0 1.5rem}
td,th{padding:.25rem .9rem .25rem 0;border-bottom:1px solid #ddd;text-align:left;vertical-align:top;
overflow-wrap:anywhere;font-variant-numeric:tabular-nums}td:first-child{color:#555;white-space:nowrap}
footer{color:#777;font-size:13px}"""


def report(logs, fig, title):
    picture = io.StringIO()
    fig.suptitle("")  # the page has a heading
    fig.savefig(picture, format="svg", metadata={"Date": None})
    svg = picture.getvalue()
    svg = svg[svg.index("<svg"):]
    header = ["", *(log.name for log in logs)]
    title = title or default_title(logs)
    settings = setting_rows(logs)
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>",
             f"<h1>{html.escape(title)}</h1>", svg, "<h2>At the end</h2>", html_table(header, final_rows(logs))]
    if validations := validation_rows(logs):
        parts += ["<h2>Validation loss by update</h2>", html_table(["update", *header[1:]], validations)]
    if settings:
        parts += ["<h2>Settings</h2>", html_table(header, settings)]
    parts.append(f"<footer>dev/plot.py, {datetime.date.today()}; logs: "
                 f"{html.escape(', '.join(str(log.path) for log in logs))}</footer></html>")
    return "\n".join(parts)


# ---- the program ----------------------------------------------------------------------------------------------------

def made_up(steps, fields):
    return "".join(json.dumps({"step": k, **{name: f(k) for name, f in fields.items()}}) + "\n" for k in range(1, steps + 1))


def check():
    """Whole, short, torn and strange logs; fails with the error of the first that cannot be drawn."""
    whole = {"loss": lambda k: 5 / k ** 0.2, "g": lambda k: float(k < 20), "stream_scale": lambda k: 0.1 * k,
             "grad_norm": lambda k: None if k == 3 else 2.0, "tokens_per_second": lambda k: 1e4,
             "val_loss": lambda k: 5 / k ** 0.2 if k % 10 == 0 else None, "h.0.stream_scale": lambda k: [1, 2],
             "scale_target": lambda k: 0.5 if k == 10 else None, "transformer.h.0.ln_1.taper_scale": lambda k: 3.0 if k == 10 else None}
    cases = {"whole": made_up(100, whole), "short": made_up(1, whole), "bare": made_up(5, {"unknown": str}),
             "torn": made_up(30, whole) + '{"step": 31, "lo',
             "ended": made_up(15, whole) + '{"end": "complete", "updates": 15, "val_loss": 1.25, "val_update": 15}\n'}
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for name, text in cases.items():
            paths.append(pathlib.Path(folder) / f"{name}.log.jsonl")
            paths[-1].write_text(text)
        for chosen in [*([path] for path in paths), paths]:
            out = pathlib.Path(folder) / "out"
            draw([read_log(str(path)) for path in chosen], out, "", True)
            for ending, start in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".html", b"<!doctype html>")):
                assert out.with_suffix(ending).read_bytes().startswith(start), (chosen, ending)
        assert read_log(str(paths[3])).records[-1]["step"] == 30
        assert validation_rows([read_log(str(paths[4]))])[-1] == [15, "1.2500"]
        assert len(validation_rows([read_log(str(paths[0]))], most=3)) == 4  # of updates 10, 20 ... 100: 10, 50, 90 and the last
        vocabulary = {"__metadata__": {"tokenizer": "words", "tokenizer.vocab": "{}", "provenance": "[]", "lr": "0.1"}}
        header = json.dumps(vocabulary).encode()
        paths[0].with_name("whole.state.bin").write_bytes(len(header).to_bytes(8, "little") + header)
        assert read_log(str(paths[0])).settings == {"tokenizer": "words", "lr": "0.1"}
        assert "http" not in report([read_log(str(paths[0]))], figure([read_log(str(paths[0]))], ""), "").split("<h2>")[-1]
    print("plot.py: ok")


def draw(logs, out, title, with_report):
    fig = figure(logs, title)
    written = plot_style.save(fig, out)
    if with_report:
        pathlib.Path(f"{out}.html").write_text(report(logs, fig, title))
        written.append(f"{out}.html")
    return written


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="*", metavar="[NAME=]LOG")
    parser.add_argument("-o", "--out", help="path without ending (default: the first log's, without .log.jsonl)")
    parser.add_argument("--title", default="")
    parser.add_argument("--report", action="store_true", help="also write an HTML page that needs no other file")
    parser.add_argument("--check", action="store_true", help="draw made-up logs")
    args = parser.parse_args()
    if args.check or args.logs:
        need("matplotlib")
    if args.check:
        return check()
    if not args.logs:
        parser.error("expected at least one log (model.log.jsonl)")
    logs = [read_log(argument) for argument in args.logs]
    for log in logs:
        if [other.name for other in logs].count(log.name) > 1:
            log.name = f"{log.path.resolve().parent.name}/{log.name}"
    first = logs[0].path
    print("\n".join(draw(logs, args.out or str(first.with_name(first.name.removesuffix(".jsonl").removesuffix(".log"))),
                         args.title, args.report)))


if __name__ == "__main__":
    main()
