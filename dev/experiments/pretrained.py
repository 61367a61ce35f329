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
and, as earlier gates were worse, later ones. 3 and 4 came out within 0.004 of each other: both get the other seeds.
"""
import statistics
import struct
import sys

import exported
import runs
from runs import Run

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
    "taper, --distill 1": "-g taper --calibration channels --scale-loss-kind relative --distill 1",
}
CHANNELS = "taper, and channels"
CASES = [("norm", "3e-4", 1), ("taper, as before", "3e-4", 1), ("taper, relative scale loss", "3e-4", 1), (CHANNELS, "3e-4", 1),
         *((mode, "6e-4", seed) for seed in (1, 2, 3) for mode in ("norm", CHANNELS)), ("taper, relative scale loss", "6e-4", 1),
         *(("taper, --distill 1", "3e-4", seed) for seed in (1, 2, 3)), ("norm", "1e-4", 1), (CHANNELS, "1e-4", 1),
         *((f"taper, channels, --bound {k}", "6e-4", 1) for k in (4, 8, 16)),
         ("norm", "12e-4", 1), ("taper, channels, --bound 4", "12e-4", 1),
         *((mode, "6e-4", 1) for mode in MODES if mode.endswith((" 2", " 3", " 20%", " 8%"))), ("norm", "24e-4", 1),
         *((mode, "12e-4", 1) for mode in MODES if mode.endswith((" 3", " 60%", " 80%"))), (CHANNELS, "12e-4", 1),
         *((mode, "12e-4", seed) for seed in (2, 3) for mode in MODES if mode == "norm" or mode.endswith(("--bound 3", "--bound 4")))]
BATCHES = {11: 5, 12: 6}  # seed: batches of 768 documents
VAL_TOKENS, KL_TOKENS = 100_000, 19_968  # whole rows of 256


def make_run(mode, rate, seed):
    return Run(NAME, f"-x 250 -l {rate} {MODES[mode]} -v 0", seed, BASE, keep=seed > 1)


def write_shard(path, tokens):
    path.write_bytes(struct.pack("<3i", 20240520, 1, len(tokens)).ljust(1024, b"\0") + struct.pack(f"<{len(tokens)}H", *tokens))


def key(run):
    return f"{run.key}-compared"


def compare(args, run):
    """The record of a run's distance from its start, and of how often its bounds act."""
    import torch
    data = (args.data / NAME / "val.bin").read_bytes()[1024:][:2 * KL_TOKENS]
    rows = torch.tensor(struct.unpack(f"<{KL_TOKENS}H", data)).view(-1, 256)
    model = exported.load(args, run)
    first, behind = exported.clamped(model, rows)
    return {"key": key(run), "of": run.key, "kl": exported.divergence(exported.load(args, run.start), model, rows),
            "clamped_first": first, "clamped_behind": behind}


def sample(folder):
    """Writes folder/hf, train.bin and val.bin."""
    import torch
    import transformers
    source = folder / "mgm" / "resources" / "general_model"
    if not source.is_dir():
        sys.exit(f"{source}: no such folder; unzip the wheel of microformer-mgm 0.5.8 into {folder}")
    model = transformers.GPT2LMHeadModel.from_pretrained(source).eval()
    model.save_pretrained(folder / "hf")
    begin, end, pad, together, tokens = 2, 3, 0, 768, []
    for seed, batch in ((seed, batch) for seed, batches in BATCHES.items() for batch in range(batches)):
        if batch == 0:
            torch.manual_seed(seed)
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
            print(f"{len(tokens)} tokens", flush=True)
    write_shard(folder / "val.bin", tokens[:VAL_TOKENS])
    write_shard(folder / "train.bin", tokens[VAL_TOKENS:])


def main():
    args = runs.arguments(__doc__, lambda parser: parser.add_argument(
        "--sample", action="store_true", help="make the folder of the model, and its corpus"))
    if args.sample:
        return sample(args.data / NAME)
    records = runs.run_all(args, [BASE]) | runs.run_all(args, [make_run(*case) for case in CASES])

    def loss(mode, rate, seed):
        return records.get(make_run(mode, rate, seed), {}).get("val_loss")

    rows = []
    for rate in sorted({rate for _, rate, _ in CASES}, key=float):
        for mode in MODES:
            seeds = [seed for m, r, seed in CASES if (m, r) == (mode, rate) and loss(mode, rate, seed)]
            if not seeds:
                continue
            gaps = [loss(mode, rate, seed) - loss("norm", rate, seed) for seed in seeds if loss("norm", rate, seed)]
            rows.append([rate, mode, " ".join(f"{loss(mode, rate, seed):.4f}" for seed in seeds),
                         f"{statistics.mean(gaps):+.3f}" if gaps and mode != "norm" and "--distill" not in MODES[mode] else "",
                         f"{statistics.mean(loss(mode, rate, seed) for seed in seeds) - records[BASE]['val_loss']:+.3f}"])
    kept = [(case, make_run(*case)) for case in CASES if make_run(*case) in records and make_run(*case).keep]
    for _, run in kept if not args.report else ():
        if key(run) not in runs.read_records() and (args.work / run.key / "model.bin").exists():
            runs.append_record(compare(args, run))
    compared = [(case, runs.read_records()[key(run)]) for case, run in kept if key(run) in runs.read_records()]
    text = f"Before these updates: {records[BASE]['val_loss']}.\n\n" + runs.table(
        ["rate", "mode", "validation loss, by seed", "nats above norm, mean", "above the start"], rows)
    text += "\nThe distance from the model before these updates, and the share of numbers that bounds clip:\n\n" + runs.table(
        ["rate", "mode", "seed", "KL (nats)", "clipped, first positions", "clipped, behind them"],
        [[rate, mode, seed, f"{record['kl']:.3f}", *(f"{record[share]:.2g}" for share in ("clamped_first", "clamped_behind"))]
         for (mode, rate, seed), record in compared])
    print(text)
    runs.write_block(runs.RESULTS / "experiments.md", "pretrained", text)


if __name__ == "__main__":
    main()
