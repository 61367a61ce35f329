#!/usr/bin/env python3
"""A really pretrained GPT-2 tapered by fine-tuning: what its norms' removal costs.

    dev/experiments/pretrained.py [--report]        (--help: where data, program and work folder are)
    dev/.venv/bin/python dev/experiments/pretrained.py --sample     first: the model as a Hugging Face folder, and text drawn from it

The model is that of the package microformer-mgm 0.5.8 (MIT; `pip download --no-deps microformer-mgm`, unzipped into
--data/microformer-mgm): a GPT-2 of 8 layers, 256 channels and 9,669 tokens, trained by its authors on the abundances of
microbial genera. They publish no text; documents drawn from the model at temperature 1, one behind the other, are its corpus. It knows
documents that begin at position 0 alone, so it is first fine-tuned with its norms (250 updates of 4 x 256 tokens, rate 1e-4). From there every
mode gets 250 updates more; a seed orders the data.

Stated before the runs: a way of tapering is good enough at a rate if it ends within 0.07 nats of norm fine-tuned alike (same rate,
same seeds; published for GPT-2 small: +0.067), mean of three seeds. "as before" is what --init did until now. What --init does is what
comes out best at norm's best rate. Added when the first runs had missed that, before its run: --distill 1, which learns the predictions of the
model before in place of the text; fine-tuned alike, norm would stay what it was, so its gap is that to the start. Added before its runs:
--bound KAPPA, of 4, 8 and 16 at norm's best rate. The one with the lowest loss at seed 1 gets the other seeds, and 2,500 updates (within
0.02 nats of norm's; one seed); the divergence from the model at the start (KL, over the first 20,000 tokens of validation) is reported.
Of these, 4 came out best and was the smallest, and norm's best rate the highest. Added before their runs: bounds of 2 and 3, rates of 12e-4
and 24e-4, and with --bound 4 gates that close earlier. Norm's best rate is 12e-4: there, added before their runs, the default, a bound of 3
and, as earlier gates were worse, later ones. 3 and 4 came out within 0.004 of each other: both get the other seeds. Added before their
runs, of 2,500 updates: norm and 3 at 12e-4, on four times as much text from the model, so that little is read twice (within 0.02
nats). And 250 updates with other weights of the scale loss than 0.1, of which the best is to be what --init does (0, 0.01 and 1; 0
was left out for want of time). Added when taper-all on
two small models had lost 0.09 nats by its final bound of 1.5, before its runs: taper-all with final bounds of 1.5, 3 and 6; --init's
becomes the smallest that is within 0.01 nats of the best. They came out within 0.003 of each other, the smallest that holds for both is to
decide: three seeds of a model of 0.2M parameters after 150 updates, fine-tuned for 150 more (the
default was 3 already when these ran, after a look at two other small models).
At 2,500 updates 3 ended 0.026 nats above norm, not 0.02: a gap that stays the same once the gate is at 0. Added before their runs, of 625
updates on the same text: what may close it, one change at a time, against norm at the same rate: a bound of 8 (3 clips 1% of the
numbers for good), a weaker scale loss (norm's stream shrinks by a third meanwhile, which raises what a rate means to it), twice the
rate for the same reason, a gate that closes at 20%, fits of the clipped input. What ends 0.003 nats or more below --bound 3 gets 2,500
updates, all such changes together. Added before their runs: no weight decay, as it shrinks what a norm would scale up again (625), and a
scale loss at every site, which should make rows alike while norms still hide their scales (250). Nothing reached 0.003: a second seed of
2,500 updates as they are, and --carry-moments, the best of ideas.py (250).
Added before their runs: (a) seeds 2 and 3 of --bound 3 at 6e-4, then --init's default rate; where their mean misses 0.07, it becomes 12e-4, as
norm is better there, too. (b) --distill 1 with the bound, at 3e-4 (three seeds), 6e-4 and 12e-4 (one), with its KL. (c) weights of the scale
loss of 0, 0.01, 0.1 and 1 in runs of 12 and 60 updates, and of 0 in 250; taper-all's in all three. 0.1 stays unless another is
0.003 nats better at each of the lengths. (d) The ways named by others that were left out, against 4.8099 (250) and 4.6283 (625): fits weighted by
1 / s, a factor of its own for first positions, a gate that stays where the mean loss of 20 updates is 0.05 above the lowest such mean
(all 250; this one waited for a single update until it had closed, and was stopped: no run to report), and
a calibration of 0.1M tokens (625). One that ends 0.003 nats lower gets 2,500 updates. (e) The
KL from the package's own model, for all that are kept; no expectation.
Two seeds of (a) were above 0.07 when this was added, before its runs: a rate for every width, 6e-4 at the 768 channels of the published
recipe and in inverse proportion to the channels, as muP transfers rates of Adam (Yang et al. 2022, arXiv 2203.03466): 18e-4 here. It becomes
--init's if norm loses at most 0.01 nats more than at 12e-4 (mean of three seeds), and --bound 3 at most 0.07 more than norm does there; else 12e-4 does.
A factor of its own for first positions ended 0.018 nats lower in 250 updates and went into the program as --calibration channels+first.
(Against what fits all channels of the rows behind in place of c, a branch by channel would multiply the first row by c_0 and not by c_0 slope / c.
Added before its run, 250 updates against 4.7921: it becomes the factor if it ends 0.003 nats lower.) Added before its runs: three seeds of it at 6e-4, 12e-4 and 18e-4, to which the rule for the rate applies; 2,500 updates (seed 1 ran in
the changed program), within 0.02 nats as before; (b) and (c) with it in place of --bound 3 alone, but for 3e-4, which had run.
Added before its runs: a third seed of 2,500 updates, norm and channels+first.
Added before their runs: taper-all as --init does it (channels+first, a final bound of 3, at 18e-4; three seeds): no expectation, its cost is to be
in the guides. And the weight of the scale loss at another size, the model of 0.2M parameters (0.01 and 1, three seeds): 0.1 stays unless another
is 0.003 nats better.
"""
import concurrent.futures
import multiprocessing
import statistics
import struct
import sys

import exported
import runs
from runs import SHAPE, Run, plot_style

NAME = "microformer-mgm"
BASE = Run(NAME, "-g norm -x 250 -l 1e-4 -v 0", keep=True, init=f"{NAME}/hf")
MODES = {
    "norm": "-g norm",
    "taper, as before": "-g taper --calibration scalar --scale-loss-kind absolute",
    "taper, relative scale loss": "-g taper --calibration scalar --scale-loss-kind relative",
    "taper, and channels": "-g taper --calibration channels --scale-loss-kind relative",
    **{f"taper, channels, --bound {k}": f"-g taper --calibration channels --scale-loss-kind relative --bound {k}" for k in (2, 3, 4, 8, 16)},
    **{f"taper, channels, --bound 4, gate {w} to {e}": f"-g taper --calibration channels --scale-loss-kind relative --bound 4 --gate-warmup {w} "
       f"--gate-end {e}" for w, e in (("5%", "20%"), ("2%", "8%"), ("5%", "60%"), ("5%", "80%"))},
    **{f"taper-all, channels, --bound 3, --final-bound {k}": "-g taper-all --calibration channels --scale-loss-kind relative --bound 3 "
       f"--final-bound {k}" for k in (1.5, 3, 6)},
    **{f"taper, channels, --bound 3, --scale-loss {x}": f"-g taper --calibration channels --scale-loss-kind relative --bound 3 --scale-loss {x} "
       "--gate-warmup 5% --gate-end 40%" for x in (0, 0.01, 1)},
    **{f"taper-all, channels, --bound 3, --final-bound 3, --scale-loss {x}": "-g taper-all --calibration channels --scale-loss-kind relative "
       f"--bound 3 --final-bound 3 --scale-loss {x}" for x in (0.01, 1)},
    "taper, --distill 1": "-g taper --calibration channels --scale-loss-kind relative --distill 1",
}
B3 = "taper, channels, --bound 3"
MODES |= {f"{B3}, gate 5% to 20%": f"{MODES[B3]} --gate-warmup 5% --gate-end 20%", f"{B3}, --weight-decay 0": f"{MODES[B3]} --weight-decay 0",
          f"{B3}, --carry-moments": f"{MODES[B3]} --carry-moments", f"{B3}, --distill 1": f"{MODES[B3]} --distill 1",
          f"{B3}, gate 16% to 40%": f"{MODES[B3]} --gate-warmup 16% --gate-end 40%"}
B3F = "taper, channels+first, --bound 3"
MODES[B3F] = MODES[B3].replace("channels", "channels+first")
MODES |= {f"{B3F}, --scale-loss {x}": f"{MODES[B3F]} --scale-loss {x}" for x in (0, 0.01, 1)}
MODES |= {f"{B3F}, --distill 1": f"{MODES[B3F]} --distill 1"}
ALL_INIT = "taper-all, channels+first, --bound 3, --final-bound 3"
MODES[ALL_INIT] = MODES["taper-all, channels, --bound 3, --final-bound 3"].replace("channels", "channels+first")
OTHERS = {f"{B3}, {what}": what for what in (  # programs that were changed, and changed back
    "fits of the clipped input",  # v in place of u in the sums of ops/channel_sums.cuh, from the first update that tapers on
    # lambda mean (s / E[s] - 1)^2 at every site, E[s] its average over the calibration, from the sixth update on
    "a scale loss of 0.1 at every site", "a scale loss of 0.00625 at every site",
    "fits weighted by 1 / s",  # each row's terms of the sums of ops/channel_sums.cuh times 1 / s
    "a factor for first positions")}  # c_0, the mean of 1 / s over first positions alone, in place of c in their rows
MODES |= {mode: MODES[B3] for mode in OTHERS}
BY_FIT = f"{B3F}, against the fit of the rows behind"  # first_scale = c_0 / (sum u^2 / s / sum u^2), in a changed train/channels.cuh
OTHERS[BY_FIT], MODES[BY_FIT] = "against the fit of the rows behind", MODES[B3F]
CHANNELS = "taper, and channels"
FINAL_BOUNDS = [mode for mode in MODES if mode.startswith("taper-all, channels,") and "--scale-loss " not in mode]
CASES = [("norm", "3e-4", 1), ("taper, as before", "3e-4", 1), ("taper, relative scale loss", "3e-4", 1), (CHANNELS, "3e-4", 1),
         *((mode, "6e-4", seed) for seed in (1, 2, 3) for mode in ("norm", CHANNELS)), ("taper, relative scale loss", "6e-4", 1),
         *(("taper, --distill 1", "3e-4", seed) for seed in (1, 2, 3)), ("norm", "1e-4", 1), (CHANNELS, "1e-4", 1),
         *((f"taper, channels, --bound {k}", "6e-4", 1) for k in (4, 8, 16)),
         ("norm", "12e-4", 1), ("taper, channels, --bound 4", "12e-4", 1),
         *((mode, "6e-4", 1) for mode in MODES if mode.endswith(("--bound 2", "--bound 3", "--bound 4, gate 5% to 20%", " 8%"))), ("norm", "24e-4", 1),
         *((mode, "12e-4", 1) for mode in MODES if mode.endswith(("--bound 3", "4, gate 5% to 60%", "4, gate 5% to 80%"))), (CHANNELS, "12e-4", 1),
         *((mode, "12e-4", 1) for mode in MODES if mode.startswith("taper-all, channels,")),
         *((mode, "12e-4", 1) for mode in MODES if "--scale-loss " in mode and B3F not in mode),
         *((mode, "12e-4", seed) for seed in (2, 3) for mode in MODES if mode in ("norm", B3, "taper, channels, --bound 4", f"{B3}, --scale-loss 0.01")),
         (f"{B3}, --carry-moments", "12e-4", 1), *((mode, "12e-4", 1) for mode in OTHERS if not mode.endswith("clipped input")),
         *((B3, "6e-4", seed) for seed in (2, 3)), (f"{B3}, --distill 1", "3e-4", 1),
         *((mode, rate, seed) for rate in ("12e-4", "18e-4", "6e-4") for seed in (1, 2, 3) for mode in ("norm", B3F)),
         *((ALL_INIT, "18e-4", seed) for seed in (1, 2, 3)), *((f"{B3F}, --distill 1", rate, 1) for rate in ("3e-4", "12e-4"))]
SHORT_CASES = [(updates, mode, "12e-4", 1) for updates in (12, 60) for mode in MODES if mode in ("norm", B3F) or f"{B3F}, --scale-loss" in mode]
LONG = f"{NAME}-long"  # the same validation text, and more to train on, for 2,500 updates
LONG_CASES = [(2500, mode, "12e-4", seed) for seed in (1, 2) for mode in ("norm", B3)]
LONG_CASES += [(2500, f"{B3}, a factor for first positions", "12e-4", 1), (2500, B3F, "12e-4", 2), (2500, "norm", "12e-4", 3), (2500, B3F, "12e-4", 3)]
LONG_CASES += [(625, mode, "12e-4", 1) for mode in ("norm", B3, "taper, channels, --bound 8", f"{B3}, --scale-loss 0.01", f"{B3}, gate 5% to 20%",
                                                   f"{B3}, --weight-decay 0", f"{B3}, fits of the clipped input",
                                                   f"{B3}, gate 16% to 40%")]
LONG_CASES += [(625, mode, "24e-4", 1) for mode in ("norm", B3)]
BATCHES = {NAME: {11: 5, 12: 6}, LONG: {13: 15, 14: 15}}  # seed: batches of 768 documents; LONG's are behind NAME's
VAL_TOKENS, KL_TOKENS = 100_000, 19_968  # whole rows of 256


def make_run(updates, mode, rate, seed):
    keep = updates == 250 and (seed > 1 or mode in FINAL_BOUNDS or mode.endswith("3, --distill 1")) and rate not in ("6e-4", "18e-4")
    return Run(NAME, f"-x {updates} -l {rate} {MODES[mode]} -v 0", seed, BASE, keep, other=OTHERS.get(mode, ""))


YOUNG = Run("shakespeare", f"{SHAPE} -g norm -x 150 -l 3e-3 -v 0", keep=True)  # a model whose logits have yet to grow
YOUNG_MODES = {"norm": "-g norm", **{name: f"{flags} --calibration channels --scale-loss-kind relative --bound 3" for name, flags in (
    ("taper", "-g taper"), *((f"taper, --scale-loss {x}", f"-g taper --scale-loss {x}") for x in (0.01, 1)), *((f"taper-all, final bound {k}", f"-g taper-all --final-bound {k}") for k in (1.5, 3, 8)))}}
YOUNG_SEEDS = (1, 2, 3)


def make_young_run(mode, seed):
    return Run("shakespeare", f"{SHAPE} -x 150 -l 6e-4 {YOUNG_MODES[mode]} -v 0", seed, YOUNG)


def young_table(args):
    records = runs.run_all(args, [make_young_run(mode, seed) for mode in YOUNG_MODES for seed in YOUNG_SEEDS])
    losses = {mode: [records[run]["val_loss"] for seed in YOUNG_SEEDS if (run := make_young_run(mode, seed)) in records]
              for mode in YOUNG_MODES}
    return runs.table(["mode", "validation loss, by seed", "nats above norm, mean"], [
        [mode, " ".join(f"{loss:.4f}" for loss in of), f"{statistics.mean(of) - statistics.mean(losses['norm']):+.3f}" if mode != "norm" else ""]
        for mode, of in losses.items() if of])


def make_long_run(updates, mode, rate, seed):
    return Run(LONG, f"-x {updates} -l {rate} {MODES[mode]} -v {updates // 10}", seed, BASE, keep=updates == 2500, other=OTHERS.get(mode, ""))


def figure(losses):
    """What removing the norms costs after 250 updates, by rate, and by updates at 12e-4: a dot per seed, lines through the means."""
    plt, colors = plot_style.load()
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    of_runs = {"as before": MODES["taper, as before"], "relative scale loss": MODES["taper, relative scale loss"], "and calibrated by channel": MODES[CHANNELS],
               "and --bound 3": MODES[B3], "and a factor for first positions (--init)": MODES[B3F]}
    for ax, x_of, chosen in ((axes[0], lambda case: float(case[2]), lambda case: case[0] == 250),
                             (axes[1], lambda case: case[0], lambda case: case[2] == "12e-4" and case[0] > 12)):
        for color, (name, flags) in zip(colors, of_runs.items(), strict=False):
            gaps = {}
            for case, loss in losses.items():
                if MODES[case[1]] == flags and case[1] not in OTHERS and chosen(case) and (norm := (case[0], "norm", *case[2:])) in losses:
                    gaps.setdefault(x_of(case), []).append(loss - losses[norm])
            for x, of_seeds in gaps.items():
                ax.plot([x] * len(of_seeds), of_seeds, "o", ms=4, alpha=0.6, color=color)
            ax.plot(sorted(gaps), [statistics.mean(gaps[x]) for x in sorted(gaps)], color=color, label=name if ax is axes[0] else None)
        ax.set(xscale="log", yscale="log")
    axes[0].axhline(0.07, color="black", lw=1, ls="--", label="the target")
    axes[0].set(xlabel="rate, 250 updates", ylabel="nats above norm, fine-tuned alike", xticks=[1e-4, 3e-4, 6e-4, 12e-4, 18e-4],
                xticklabels=["1e-4", "3e-4", "6e-4", "12e-4", "18e-4"])
    axes[1].plot([2500], [0.02], "k_", ms=14, mew=1.5)
    axes[1].plot([250], [0.07], "k_", ms=14, mew=1.5)
    axes[1].set(xlabel="updates, rate 12e-4", xticks=[60, 250, 625, 2500], xticklabels=["60", "250", "625", "2500"])
    for ax in axes:
        ax.minorticks_off()
        ax.set(yticks=[0.02, 0.05, 0.1, 0.2, 0.5], yticklabels=["0.02", "0.05", "0.1", "0.2", "0.5"])
    fig.suptitle("What the norms of a pretrained GPT-2 of 9M parameters cost to remove", fontweight="bold")
    fig.legend(loc="outside lower center", ncols=3)
    plot_style.save(fig, runs.RESULTS / "pretrained", ["png"])


def write_shard(path, tokens):
    path.write_bytes(struct.pack("<3i", 20240520, 1, len(tokens)).ljust(1024, b"\0") + struct.pack(f"<{len(tokens)}H", *tokens))


def read_shard(path):
    content = path.read_bytes()[1024:]
    return list(struct.unpack(f"<{len(content) // 2}H", content))


def key(run):
    return f"{run.key}-compared"


def compare(args, run):
    """The record of a run's distance from its start, and of how often its bounds act."""
    import torch
    rows = torch.tensor(read_shard(args.data / NAME / "val.bin")[:KL_TOKENS]).view(-1, 256)
    model = exported.load(args, run)
    first, behind = exported.clamped(model, rows)
    return {"key": key(run), "of": run.key, "kl": exported.divergence(exported.load(args, run.start), model, rows),
            "clamped_first": first, "clamped_behind": behind}


def from_package(args, run):
    """The record of a run's distance from the model of the package, before any fine-tuning."""
    import torch
    import transformers
    rows = torch.tensor(read_shard(args.data / NAME / "val.bin")[:KL_TOKENS]).view(-1, 256)
    package = transformers.GPT2LMHeadModel.from_pretrained(args.data / NAME / "hf").eval()
    return {"key": f"{run.key}-package", "of": run.key, "kl": exported.divergence(package, exported.load(args, run), rows)}


def random_loss(args, run):
    """The record of a run's loss on random tokens."""
    import torch
    torch.manual_seed(3)
    model = exported.load(args, run)
    rows = torch.randint(model.config.vocab_size, (KL_TOKENS // 256, 256))
    return {"key": f"{run.key}-random", "of": run.key, "text": "random tokens", "loss": exported.loss(model, rows)}


def draw(folder, seed, batches):
    """The tokens of batches of documents, one behind the other."""
    import torch
    import transformers
    torch.set_num_threads(1)  # a process each
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    begin, end, pad, together, tokens = 2, 3, 0, 768, []
    torch.manual_seed(seed)
    for batch in range(batches):
        with torch.no_grad():
            documents, past = [[begin] for _ in range(together)], None
            live, x = documents, torch.full((together, 1), begin)
            for _ in range(model.config.n_positions - 1):
                out = model(x, past_key_values=past, use_cache=True)
                past, x = out.past_key_values, torch.multinomial(out.logits[:, -1].softmax(-1), 1)
                for document, token in zip(live, x[:, 0].tolist(), strict=True):
                    document.append(token)
                going = [i for i, token in enumerate(x[:, 0].tolist()) if token not in (end, pad)]
                if not going:
                    break
                past.batch_select_indices(torch.tensor(going))
                live, x = [live[i] for i in going], x[going]
            tokens += sum(documents, [])
            print(f"seed {seed}: {batch + 1} of {batches} batches, {len(tokens)} tokens", flush=True)
    return tokens


def sample(data, jobs):
    """Writes data/NAME/hf, and train.bin and val.bin of NAME and LONG, those that are not there yet."""
    import transformers
    source = data / NAME / "mgm" / "resources" / "general_model"
    if not source.is_dir():
        sys.exit(f"{source}: no such folder; unzip the wheel of microformer-mgm 0.5.8 into {data / NAME}")
    transformers.GPT2LMHeadModel.from_pretrained(source).save_pretrained(data / NAME / "hf")
    with concurrent.futures.ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        tokens = []
        for name, batches in BATCHES.items():
            if (data / name / "train.bin").exists():
                tokens = [token for part in ("val", "train") for token in read_shard(data / name / f"{part}.bin")]
                continue
            (data / name).mkdir(exist_ok=True)
            drawn = [pool.submit(draw, data / NAME / "hf", *of) for of in batches.items()]
            tokens = sum((future.result() for future in drawn), tokens)
            write_shard(data / name / "val.bin", tokens[:VAL_TOKENS])
            write_shard(data / name / "train.bin", tokens[VAL_TOKENS:])


def main():
    args = runs.arguments(__doc__, lambda parser: parser.add_argument(
        "--sample", action="store_true", help="make the folder of the model, and its corpus"))
    if args.sample:
        return sample(args.data, args.jobs)
    of = {case: make_run(*case) for case in [*((250, *case) for case in CASES), *SHORT_CASES]}
    of |= {case: make_long_run(*case) for case in LONG_CASES}
    records = runs.run_all(args, [BASE]) | runs.run_all(args, list(of.values()))
    losses = {case: records[run]["val_loss"] for case, run in of.items() if run in records}

    rows = []
    for updates, rate in sorted({case[::2][:2] for case in losses}, key=lambda at: (at[0], float(at[1]))):
        for mode in MODES:
            of_mode = {seed: losses[case] for case in losses for seed in case[3:] if case[:3] == (updates, mode, rate)}
            if not of_mode:
                continue
            gaps = [loss - losses[updates, "norm", rate, seed] for seed, loss in of_mode.items() if (updates, "norm", rate, seed) in losses]
            rows.append([updates, rate, mode, " ".join(f"{loss:.4f}" for loss in of_mode.values()),
                         f"{statistics.mean(gaps):+.3f}" if gaps and mode != "norm" and "--distill" not in MODES[mode] else "",
                         f"{statistics.mean(of_mode.values()) - records[BASE]['val_loss']:+.3f}"])
    kept = [(case, run) for case, run in sorted(of.items()) if run in records and run.keep]
    for _, run in kept if not args.report else ():
        if key(run) not in runs.read_records() and (args.work / run.key / "model.bin").exists():
            runs.append_record(compare(args, run))
        if f"{run.key}-random" not in runs.read_records() and (args.work / run.key / "model.bin").exists():
            runs.append_record(random_loss(args, run))
    for run in (BASE, *(run for case, run in kept if case[1] in ("norm", B3F, f"{B3F}, --distill 1"))) if not args.report else ():
        if f"{run.key}-package" not in runs.read_records() and (args.work / run.key / "model.bin").exists():
            runs.append_record(from_package(args, run))
    compared = [(case, run, runs.read_records()[key(run)]) for case, run in kept if key(run) in runs.read_records()]
    package = {run: runs.read_records().get(f"{run.key}-package", {}).get("kl") for run in (BASE, *(run for _, run in kept))}
    start = f"Before these updates: {records[BASE]['val_loss']}" + (f", KL from the package's model {package[BASE]:.3f}" if package[BASE] else "")
    text = f"{start}.\n\n" + runs.table(
        ["updates", "rate", "mode", "validation loss, by seed", "nats above norm, mean", "above the start"], rows)
    text += "\nThe distance from the model before these updates, and the share of numbers that bounds clip:\n\n" + runs.table(
        ["updates", "rate", "mode", "seed", "KL (nats)", "KL from the package's model", "clipped, first positions", "clipped, behind them", "loss on random tokens"],
        [[updates, rate, mode, seed, f"{record['kl']:.3f}", f"{package[run]:.3f}" if package[run] else "", *(f"{record[share]:.2g}" for share in ("clamped_first", "clamped_behind")),
          f"{runs.read_records()[f'{run.key}-random']['loss']:.2f}" if f"{run.key}-random" in runs.read_records() else ""]
         for (updates, mode, rate, seed), run, record in compared])
    text += "\nA model of 0.2M parameters that has seen 150 updates, after 150 more:\n\n" + young_table(args)
    print(text)
    figure(losses)
    runs.write_block(runs.RESULTS / "experiments.md", "pretrained", text)


if __name__ == "__main__":
    main()
