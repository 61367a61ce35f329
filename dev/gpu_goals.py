"""What was expected of a GPU before anything had been timed on one; dev/gpu_day.py sets it beside the figures.

Written on 2026-12-01 for an H100 SXM with 3.35 TB/s (an H200 has the same arithmetic and 4.8 TB/s), from operations, bytes, the kernels' machine
code and rates that others have published. Goals are what must be reached; an estimate is what we believe.
"""
import dataclasses
import re
import statistics
import typing


class Figures:
    """The tables of records, by block and the command's place in it."""

    def __init__(self, records):
        """records: {(block, place): record}"""
        self.records = records

    def cells(self, block, column, rows, place=None, **others):
        """The numbers that begin the cells of a column, the last of that name, in rows whose first cell matches and whose others are as given."""
        found = []
        for (name, number), record in sorted(self.records.items()):
            for table in record["tables"] if name == block and place in (None, number) else []:
                header = list(table["header"])
                if not {column, *others} <= set(header):
                    continue
                at = len(header) - 1 - header[::-1].index(column)
                for row in table["rows"]:
                    number_there = re.match(r"[\d.]+", row[at])
                    if re.fullmatch(rows, row[0]) and number_there and all(row[header.index(key)] == value for key, value in others.items()):
                        found.append(float(number_there[0]))
        return found

    def best(self, *where, **others):
        return max(self.cells(*where, **others), default=None)

    def median(self, *where, **others):
        return statistics.median(cells) if (cells := self.cells(*where, **others)) else None


def ratio(one, other):
    return one / other if one and other else None


@dataclasses.dataclass(frozen=True)
class Goal:
    what: str
    least: float
    estimate: str
    figure: typing.Callable


UPDATE, LAST_TOKEN = "`norm`( again)?", "last-token logits, T (512|8), tokens/s"  # T 8: in a dry run
DECODING = "decoding(?!.*temperature).*"
GOALS = [
    Goal("an update of 124M, tokens/s", 550_000, "602,000", lambda f: f.best("update", "tokens/s", "`norm`", 0)),
    Goal("its speed while 0 < g < 1, of that of `norm`", 0.99, "0.99",
         lambda f: ratio(f.best("update", "tokens/s", "`taper`, g = 0.5", 0), f.median("update", "tokens/s", UPDATE, 0))),
    Goal("against torch.compile and its choice of attention", 1.25, "1.25",
         lambda f: ratio(f.median("peers", "tokens/s", r"\d\. `norm`"), f.best("peers", "tokens/s", "PyTorch.*compile, default attention"))),
    Goal("against llm.c and its fastest flags", 1.09, "1.09",
         lambda f: ratio(f.median("peers", "tokens/s", r"\d\. `norm`"), f.best("peers", "tokens/s", r"llm\.c.*"))),
    Goal("attention of 124M by warpgroups, forward, TFLOP/s", 265, "265", lambda f: f.best("attention", "TFLOP/s", "forward", hs="64", T="1024")),
    Goal("backward", 200, "200", lambda f: f.best("attention", "TFLOP/s", "backward", hs="64", T="1024")),
    Goal("30M, folded, last token of 512, tokens/s", 977_000, "2,200,000", lambda f: f.median("prompts", "folded", LAST_TOKEN, B="1")),
    Goal("of 4 sequences", 3_080_000, "5,000,000", lambda f: f.median("prompts", "folded", LAST_TOKEN, B="4")),
    Goal("folded over normalized, one sequence", 1.22, "1.20 to 1.28", lambda f: f.median("prompts", "last / first", LAST_TOKEN, B="1")),
    *(Goal(f"decoding with {shape}, folded, one sequence, % of the bandwidth", least, estimate,
           lambda f, place=place: f.best("decoding", "limit", DECODING, place, B="1"))
      for place, (shape, least, estimate) in enumerate((("124M", 50, "55 to 62"), ("774M (d36)", 78, "none"), ("1.6B (d48)", 78, "none")))),
    Goal("decoding with 124M, folded over normalized", 1.18, "1.08 to 1.12", lambda f: f.best("decoding", "last / first", DECODING, 0, B="1")),
]

# Milliseconds of one call in an update of 124M, 32 sequences of 1024 tokens.
OPS = {
    "site forward, g = 1": 0.042, "site backward, g = 1": 0.085, "stream scale": 0.03, "linear C -> 3C, forward": 0.193,
    "linear C -> 3C, backward": 0.393, "column sums of 3C": 0.05, "linear C -> C and residual, forward": 0.080, "linear C -> C, backward": 0.160,
    "linear C -> 4C and GELU, forward": 0.287, "linear C -> 4C, backward": 0.507, "linear 4C -> C and residual, forward": 0.249,
    "linear 4C -> C and dGELU, backward": 0.555, "attention forward": 0.195, "attention backward": 0.645, "head forward": 3.72,
    "head backward": 7.56, "cross-entropy and gradient": 2.3, "embedding forward": 0.04, "embedding backward": 0.15, "AdamW": 1.35,
    "global norm": 0.10,
}


def goal_rows(figures):
    rows = []
    for goal in GOALS:
        found = goal.figure(figures)
        text = "" if found is None else f"{found:,.0f}" if found >= 100 else f"{found:.3g}"
        rows.append([goal.what, f"{goal.least:,.10g}", goal.estimate, text or "not measured", "" if found is None else "yes" if found >= goal.least else "**no**"])
    return rows


def op_rows(figures):
    """What each op loses against its limit in one update, the largest first."""
    rows = []
    for op, estimate in OPS.items():
        name = re.escape(op)
        ms, share, times = (figures.best("update", column, name, 0) for column in ("ms", "of the limit", "times per update"))
        if ms and share is not None and times:
            rows.append([op, f"{estimate:.3f}", f"{ms:.3f}", f"{ms / estimate:.2f}x", f"{share:.0f}%", f"{ms * times * (1 - share / 100):.2f}"])
    return sorted(rows, key=lambda row: -float(row[-1]))


GOAL_HEADER = ["goal", "at least", "estimate", "measured", "reached"]
OP_HEADER = ["op", "estimate, ms", "measured, ms", "measured / estimate", "of the limit", "lost per update, ms"]
