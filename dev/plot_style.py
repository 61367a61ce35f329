"""The look of every figure: colours that colour-blind readers can tell apart (Okabe and Ito), no frame, light grid."""

COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]


def load():
    """pyplot and the colours; without a display."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    plt.rcParams.update({
        "font.size": 9, "axes.titlesize": 9, "axes.titlelocation": "left", "axes.spines.top": False,
        "axes.spines.right": False, "axes.grid": True, "grid.color": "#E4E4E4", "grid.linewidth": 0.6,
        "axes.axisbelow": True, "axes.prop_cycle": plt.cycler(color=COLORS), "legend.frameon": False,
        "figure.titlesize": 10, "figure.dpi": 110, "savefig.dpi": 120, "svg.hashsalt": "tapernorm", "svg.fonttype": "path"})
    return plt, COLORS


def log_axis(ax):
    """Ticks at 1, 2, 5 times the powers of ten, as plain numbers."""
    from matplotlib import ticker
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    steps = (1, 2, 5) if high < 100 * low else (1,)
    ax.yaxis.set_major_locator(ticker.LogLocator(subs=steps))
    ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:g}"))
    ax.yaxis.set_minor_formatter(ticker.NullFormatter())


def save(figure, stem, kinds=("png", "svg")):
    """STEM.png and so on; the same bytes for the same figure. Returns the paths."""
    for kind in kinds:
        figure.savefig(f"{stem}.{kind}", metadata={"Software": None} if kind == "png" else {"Date": None})
    return [f"{stem}.{kind}" for kind in kinds]
