#!/usr/bin/env python3
"""Rows and low bits: how uneven the streams of tapered and normalized models are, and what few bits do to their losses.

    dev/experiments/low_bits.py [--report]        (--help: where corpora, program and work folder are; ./fold must be built)

The models that tuned.py kept (its fresh seeds, at most SEEDS of each mode and size), folded (norms: their gains and biases), in PyTorch
through `train_gpt export`, on ROWS rows evenly spread over the validation text. Weights of the blocks' matrices, with the scale of the
largest magnitude of an output channel (int8, int4), or of a group of 32 inputs of it (int4, 32); activations that enter these
matrices, with the scale of the largest magnitude of their row (int8, as a program would do it) or of the whole pass (int8, one scale: what
a fixed-point machine would like to use). Rounding to nearest; nothing is calibrated or trained for it. Embeddings and the head stay as they are.

Stated before the first run. Of every measure the taper is compared with the best norm of its size, by seed: "easier" where the interval of
the difference of (loss rounded - loss) is below 0, "harder" where it is above. Expected: no difference for int8 by channel and row, since a fold
moves gains into weights; with one scale for all activations the taper, whose rows are not brought to one size, is harder. Kurtosis and largest
coordinates: no expectation (published: models without norms have fewer outliers).
"""
import json
import pathlib
import statistics
import subprocess
import tempfile
import types

import exported
import runs
import tuned

SEEDS, ROWS = 5, 128
LOSSES = ["int8 weights", "int4 weights", "int4 weights, 32", "int8 activations", "int8 activations, one scale",
          "int8 weights and activations"]
SHAPES = ["kurtosis, stream", "largest / rms, stream", "kurtosis, into matrices", "largest / rms, into matrices"]


def key(run):
    return f"{run.key}-low-bits"


def to_grid(x, bits, scale):
    most = 2 ** (bits - 1) - 1
    step = scale.clamp(min=1e-30) / most
    return (x / step).round().clamp(-most, most) * step


def round_weights(model, bits, group=None):
    """Rounds the blocks' matrices [in, out] (Conv1D) in place."""
    for block in model.transformer.h:
        for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            w = layer.weight.data
            parts = w.reshape(-1, group or w.shape[0], w.shape[1])
            layer.weight.data = to_grid(parts, bits, parts.abs().amax(1, keepdim=True)).reshape(w.shape)


def round_activations(model, by_row):
    """Hooks that round what enters the blocks' matrices to int8."""
    def hook(_, inputs):
        x = inputs[0]
        return (to_grid(x, 8, x.abs().amax(-1, keepdim=True) if by_row else x.abs().amax()), *inputs[1:])
    return [layer.register_forward_pre_hook(hook) for block in model.transformer.h
            for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)]


def shapes(model, rows):
    """Means over rows and sites: kurtosis (3: a normal distribution) and the largest coordinate over the root mean square, of the centered
    rows of the stream behind every block, and of the rows that enter c_attn and c_fc; first positions are left out."""
    import torch
    found = {"stream": [], "into matrices": []}

    def look(name, x):
        x = x[:, 1:] - x[:, 1:].mean(-1, keepdim=True)
        rms = x.square().mean(-1).sqrt()
        found[name].append(((x / rms[..., None]).pow(4).mean().item(), (x.abs().amax(-1) / rms).mean().item()))

    hooks = []
    for block in model.transformer.h:
        hooks.append(block.register_forward_hook(lambda _, __, out: look("stream", out[0] if isinstance(out, tuple) else out)))
        for layer in (block.attn.c_attn, block.mlp.c_fc):
            hooks.append(layer.register_forward_pre_hook(lambda _, inputs: look("into matrices", inputs[0])))
    with torch.no_grad():
        model(rows[:32])
    for hook in hooks:
        hook.remove()
    means = {name: [statistics.mean(pair[i] for pair in pairs) for i in (0, 1)] for name, pairs in found.items()}
    return {f"{what}, {name}": means[name][i] for name in means for i, what in enumerate(("kurtosis", "largest / rms"))}


def measure(args, run, T):
    import torch
    text = (args.data / runs.CORPORA[run.corpus].get("-j", runs.CORPORA[run.corpus]["-i"])).read_bytes()
    if "-j" not in runs.CORPORA[run.corpus]:
        text = text[-(len(text) // 10):]
    every = (len(text) - T) // (ROWS - 1)
    rows = torch.tensor([list(text[i * every:i * every + T]) for i in range(ROWS)])
    with tempfile.TemporaryDirectory() as folder:
        source, folded = args.work / run.key / "model.bin", pathlib.Path(folder) / "model.bin"
        done = subprocess.run([runs.ROOT / "fold", source, folded], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{source}: {done.stderr}")
        place = types.SimpleNamespace(key=".")
        def fresh():
            return exported.load(types.SimpleNamespace(program=args.program, work=pathlib.Path(folder)), place)
        model = fresh()
        exact = exported.loss(model, rows)
        found = {"loss": exact, **shapes(model, rows)}
        for name in LOSSES:
            model = fresh()
            if "weights" in name:
                round_weights(model, 4 if "int4" in name else 8, 32 if name.endswith("32") else None)
            hooks = round_activations(model, "one scale" not in name) if "activations" in name else []
            found[name] = exported.loss(model, rows) - exact
            for hook in hooks:
                hook.remove()
    record = {"key": key(run), "of": run.key, **{name: runs.digits(value) for name, value in found.items()}}
    runs.append_record(record)
    return record


def chosen_runs(args, size):
    report = types.SimpleNamespace(**{**vars(args), "report": True})
    result = tuned.result_of(report, size)
    return result, {mode: [tuned.make_run(size, mode, cell, seed) for seed in size.seeds[:SEEDS]] for mode, cell in result.best.items()}


def main():
    args = runs.arguments(__doc__)
    rows, differences = [], []
    for size in (next(s for s in tuned.SIZES if s.name == name) for name in tuned.BY_SIZE):
        result, chosen = chosen_runs(args, size)
        T = int(size.shape.split("-t ")[1].split()[0])
        records = runs.read_records()
        for run in (run for some in chosen.values() for run in some):
            if key(run) not in records and not args.report and (args.work / run.key / "model.bin").exists():
                print(size.name, run.flags, run.seed, json.dumps(measure(args, run, T)), flush=True)
        records = runs.read_records()
        found = {mode: {run.seed: records[key(run)] for run in some if key(run) in records} for mode, some in chosen.items()}
        for mode, by_seed in found.items():
            if by_seed:
                def mean(name):
                    return statistics.mean(record[name] for record in by_seed.values())
                rows.append([tuned.TITLES[size.name], mode, len(by_seed), f"{mean('loss'):.4f}", *(f"{mean(name):.3g}" for name in SHAPES),
                             *(f"{mean(name):+.4f}" for name in LOSSES)])
        base = tuned.best_norm(result) if result.best else None
        for mode in (mode for mode in found if not mode.startswith("norm") and len(found[mode]) > 1 and found.get(base)):
            cells = []
            for name in LOSSES:
                gaps = [found[mode][seed][name] - found[base][seed][name] for seed in found[mode] if seed in found[base]]
                mean, half = runs.mean_and_half(gaps)
                cells.append(f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]")
            differences.append([tuned.TITLES[size.name], mode, base, *cells])
    text = runs.table(["corpus, size", "mode", "seeds", "loss", *SHAPES, *LOSSES], rows) + "\n"
    text += runs.table(["corpus, size", "mode", "against", *LOSSES], differences)
    print(text)
    runs.write_block(runs.RESULTS / "experiments.md", "low-bits", text)


if __name__ == "__main__":
    main()
