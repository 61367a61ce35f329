#!/usr/bin/env python3
"""Other ways to do without norms, against norm and taper: DyT, nothing at all, removal one site after another.

    dev/experiments/baselines.py [--report]     (--help: where corpora, program and work folder are; needs PyTorch)

The trainer has none of these; they are trained by dev/reference/tapernorm_torch.py, from the same initial weights and on the
same batches as the program's runs of parity.py, whose gaps are taken seed by seed. `norm` is trained here, too: that
it meets the program's own `norm` is the check of this file. 0.2M parameters, tinyshakespeare, 2000 updates, parity.py's
recipe. Rates: with a seed used for nothing else (100), then each mode at its own best one.

  norm             LayerNorm
  DyT              every site gamma tanh(alpha x) + beta, alpha a trained scalar from 0.5 (arXiv 2503.10622)
  none             no site at all, the final one included
  none, scaled     the same, each branch's output divided by sqrt(2 L)
  one by one       taper's sites, each calibrated and then fixed in a single update, evenly spaced from 5% to 40%: first
                   every ln_2, then every ln_1 (the order of arXiv 2507.02559, there for fine-tuning); scale loss 0.1
  staggered        the same sites in the order of depth, each with a cosine gate half as long as taper's; scale loss 0.1

Stated before the first run, of the gap of the final validation loss over seeds 1 to 5, with its paired 95% interval:
  * check: the interval of norm here against the program's norm contains 0, and is narrower than 1.5% to each side.
  * "none" trains, and is worse than norm (interval above 0), as is DyT at this size.
  * staggered or one by one counts as a win over taper + scale loss if the interval lies below 0.
"""
import datetime
import json
import math
import subprocess
import sys

import parity
import runs
from runs import Run

sys.path.append(str(runs.ROOT / "dev" / "reference"))

SETTING = parity.SETTINGS[0]
SITES_REMOVED = {"one by one": 0.0, "staggered": 0.5}  # length of a site's taper, over that of all
MODES = ["norm", "DyT", "none", "none, scaled", *SITES_REMOVED]
RATES = ("1e-3", "2e-3", "4e-3", "8e-3", "16e-3")
L, NH, C, T, B = 4, 4, 64, 64, 12
LAMBDA, EMA_DECAY = 0.1, 0.99


def make_run(mode, rate, seed):
    return Run("shakespeare", f"PyTorch, {mode}: {runs.SHAPE} -x {SETTING.steps} -l {rate} -u 5% -q 0.1", seed)


# ---- the program's batches, io/tokens.cpp ---------------------------------------------------------------------------

MASK = (1 << 64) - 1


def mix(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & MASK
    return x ^ x >> 31


def permute(i, n, key):
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    while True:
        left, right = i >> half, i & (1 << half) - 1
        for r in range(6):
            turn = mix((key + r * 0xD1342543DE82EF95 + mix(right)) & MASK)
            left, right = right, left ^ turn & (1 << half) - 1
        i = left << half | right
        if i < n:
            return i


def row_begin(position, size, seed):
    rows = size // T - 1
    key = mix(mix(seed) ^ position // rows)
    return permute(position % rows, rows, key) * T + mix(~key & MASK) % min(T, size - rows * T)


# ---- training -------------------------------------------------------------------------------------------------------


def windows(model, mode):
    """Each tapering site's last update at gate 1 and first at gate 0."""
    warm, end = round(0.05 * SETTING.steps), round(0.4 * SETTING.steps)
    sites = model.config.tapered_sites()
    if mode == "one by one":
        sites = [site for which in ("ln_2", "ln_1") for site in sites if site.endswith(which)]
    length = max(1, round(SITES_REMOVED[mode] * (end - warm)))
    starts = [warm + round(i * (end - length - warm) / (len(sites) - 1)) for i in range(len(sites))]
    return {site: (start, start + length) for site, start in zip(sites, starts)}


def make_model(mode, weights):
    import torch
    from tapernorm_torch import Gpt, ModelConfig, gate

    class Model(Gpt):
        k = 1  # the update under way

        def norm_site(self, h, site, g, stats):
            if mode == "DyT":
                return self.affine(torch.tanh(self.p[f"{site}.alpha"] * h), f"{site}.weight", f"{site}.bias")
            if mode.startswith("none"):
                return h
            return super().norm_site(h, site, self.gate(site), stats)

        def gate(self, site):
            return gate(self.k, "taper", *self.windows[site]) if site in self.c else 1.0

        def branch(self, y):
            return y / math.sqrt(2 * L) if mode == "none, scaled" else y

        def attention(self, x, block):
            return self.branch(super().attention(x, block))

        def mlp(self, x, block):
            return self.branch(super().mlp(x, block))

    config = ModelConfig(V=256, T=T, L=L, NH=NH, C=C, mode="taper" if mode in SITES_REMOVED else "norm")
    unused = [name for name in weights if mode.startswith("none") and ".ln_" in name]
    model = Model(config, {name: w for name, w in weights.items() if name not in unused}, torch.float32)
    if mode in SITES_REMOVED:
        model.windows = windows(model, mode)
    if mode == "DyT":
        for site in config.sites():
            model.p[f"{site}.alpha"] = torch.full((), 0.5, requires_grad=True)
    return model


class TorchTrainer(runs.Trainer):
    def initial_weights(self, run):
        """What the program begins with: a model after one update at rate 0."""
        from safetensors.torch import load_file
        path = self.model(run)
        command = [self.program, "-i", str(self.data / "tinyshakespeare.txt"), "-g", "norm", "-o", str(path), "-x", "1",
                   "-l", "0", "-v", "0", "-m", "1", "--seed", str(run.seed), "--threads", "1", *runs.SHAPE.split()]
        subprocess.run(command, check=True, capture_output=True)
        weights = load_file(path)
        path.unlink()
        return weights

    def train_claimed(self, run):
        import torch
        torch.set_num_threads(1)
        mode, rate = next(mode for mode in MODES if f"PyTorch, {mode}:" in run.flags), float(run.flags.split("-l ")[1].split()[0])
        model = make_model(mode, self.initial_weights(run))
        text = torch.frombuffer(bytearray((self.data / "tinyshakespeare.txt").read_bytes()), dtype=torch.uint8).long()
        train, val = text[:len(text) - len(text) // 10], text[len(text) - len(text) // 10:]
        losses = optimize(model, train, rate, run.seed)
        record = {"key": run.key, "corpus": run.corpus, "flags": run.flags, "seed": run.seed, "start": None, "val_loss": None,
                  "error": None, "date": datetime.date.today().isoformat(), "commit": self.commit, "steps": len(losses),
                  "curve": {"step": list(range(1, len(losses) + 1))[::100], "loss": [runs.digits(x) for x in losses[::100]]}}
        if math.isfinite(losses[-1]):
            record["val_loss"] = round(validate(model, val), 4)
        else:
            record["error"] = f"the loss of update {len(losses)} is not finite"
        with runs.RECORDS.open("a") as file:
            file.write(json.dumps(record) + "\n")
        return record["val_loss"] or record["error"]


def optimize(model, train, rate, seed):
    """The program's update, from its formulas; the loss of every update, up to one that is not finite."""
    import torch
    from tapernorm_torch import is_decayed, learning_rate, TrainConfig
    steps = SETTING.steps
    recipe = TrainConfig(steps, 1, B, 0, 0, 0, 0, rate, round(0.05 * steps), 0.1, 0.9, 0.99, 1e-8, 0.1, 1.0)
    groups = [{"params": [w for name, w in model.p.items() if is_decayed(name) == decayed], "weight_decay": 0.1 * decayed}
              for decayed in (True, False)]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99), eps=1e-8)
    removes, ema, target, losses = hasattr(model, "windows"), {}, None, []
    warm = min(start for start, _ in model.windows.values()) if removes else 0
    for k in range(1, steps + 1):
        model.k, stats = k, {} if removes else None
        rows = torch.stack([train[b:b + T + 1] for b in (row_begin((k - 1) * B + i, len(train), seed) for i in range(B))])
        loss, drift = model.losses(rows[:, :-1], rows[:, 1:], 1.0, target, stats)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        optimizer.zero_grad(set_to_none=False)
        (loss + (LAMBDA * drift if drift is not None else 0)).backward()
        for w in model.p.values():  # what has no gradient yet is stepped all the same, as in the program
            w.grad = torch.zeros_like(w) if w.grad is None else w.grad
        torch.nn.utils.clip_grad_norm_(model.p.values(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(k, recipe)
        optimizer.step()
        if removes:
            for key, value in stats.items():
                ema[key] = EMA_DECAY * ema.get(key, 0) + (1 - EMA_DECAY) * value
            calibrate(model, ema, k)
            if k == warm:
                target = float(ema["s"] / (1 - EMA_DECAY ** k))
    return losses


def calibrate(model, ema, k):
    import torch
    for site, (start, _) in model.windows.items():
        if k == start:
            num, den = ema[site]
            model.c[site] = float(num / den)
            with torch.no_grad():
                for part in ("weight", "bias"):
                    model.p[f"{site}.taper_{part}"].copy_(model.p[f"{site}.{part}"])


def validate(model, val):
    """Mean loss of the windows that the program validates on: in sequence, whole batches."""
    import torch
    rows = (len(val) - 1) // T // B * B
    with torch.no_grad():
        losses = [model.losses(val[a:a + B * T].view(B, T), val[a + 1:a + B * T + 1].view(B, T), 1.0)[0].item()
                  for a in range(0, rows * T, B * T)]
    return sum(losses) / len(losses)


# ---- report ---------------------------------------------------------------------------------------------------------


def main():
    args = runs.arguments(__doc__)
    tuning = {(mode, rate): make_run(mode, rate, parity.TUNING_SEED) for rate in RATES for mode in MODES}
    records = runs.run_all(args, tuning.values(), TorchTrainer)
    tried = {mode: {rate: records[tuning[mode, rate]]["val_loss"] for rate in RATES
                    if tuning[mode, rate] in records and records[tuning[mode, rate]]["val_loss"]} for mode in MODES}
    best = {mode: min(losses, key=losses.get) for mode, losses in tried.items() if losses}
    seeds = {(mode, seed): make_run(mode, best[mode], seed) for seed in parity.SEEDS for mode in best}
    records |= runs.run_all(args, seeds.values(), TorchTrainer)

    all_records = runs.read_records()
    program = parity.losses_of(SETTING, "layernorm", all_records_by_run(all_records), parity.best_rates(
        SETTING, all_records_by_run(all_records)))
    rows = []
    for mode in MODES:
        losses = {seed: records[run]["val_loss"] for (m, seed), run in seeds.items()
                  if m == mode and run in records and records[run]["val_loss"]}
        rates = ", ".join(f"{rate}: " + (f"{tried[mode][rate]:.4f}" if rate in tried[mode] else "diverged")
                          for rate in RATES if tuning[mode, rate] in records)
        rows.append([mode, rates, best.get(mode, ""), len(losses), runs.losses_text(losses)] +
                    [runs.gap_text(losses, program[base]) if losses else "" for base in ("norm", "taper + scale loss")])
    text = runs.table(["mode", "rates tried (seed 100)", "rate", "seeds", "validation loss", "gap to the program's norm [95%]",
                       "gap to its taper + scale loss [95%]"], rows)
    print(text)
    runs.write_block(runs.RESULTS / "experiments.md", "baselines", text)


def all_records_by_run(records):
    """parity.py's runs of this setting that have a record."""
    tuning = list(parity.tuning_runs(SETTING).values())
    found = {run: records[run.key] for run in tuning if run.key in records}
    best = parity.best_rates(SETTING, found)
    return found | {run: records[run.key] for run in parity.seed_runs(SETTING, best).values() if run.key in records}


if __name__ == "__main__":
    main()
