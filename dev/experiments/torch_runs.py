"""Training runs of the PyTorch reference, beside those of the program: the same initial weights, the same batches.

For what the trainer does not have (baselines.py, ideas.py). 0.2M parameters, tinyshakespeare, 2000 updates, parity.py's recipe.
torch_models.py has the models; PyTorch is loaded only when something is trained.
"""
import datetime
import math
import subprocess

import parity
import runs
from runs import Run

SETTING = parity.SETTINGS[0]
L, NH, C, T, B = 4, 4, 64, 64, 12  # of its shape
WARM, END = round(0.05 * SETTING.steps), round(0.4 * SETTING.steps)  # k_warm, k_end


def make_run(mode, rate, seed):
    return Run("shakespeare", f"PyTorch, {mode}: {runs.SHAPE} -x {SETTING.steps} -l {rate} -u 5% -q 0.1", seed)


def program_losses():
    """{mode: {seed: validation loss}} of the program's own runs of this setting, each mode at its best rate."""
    records = runs.read_records()
    found = {run: records[run.key] for run in parity.tuning_runs(SETTING).values() if run.key in records}
    best = parity.best_rates(SETTING, found)
    found |= {run: records[run.key] for run in parity.seed_runs(SETTING, best).values() if run.key in records}
    return parity.losses_of(SETTING, "layernorm", found, best)


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
    """Where the row number `position` of a run begins in a corpus of `size` tokens."""
    rows = size // T - 1
    key = mix(mix(seed) ^ position // rows)
    return permute(position % rows, rows, key) * T + mix(~key & MASK) % min(T, size - rows * T)


# ---- training -------------------------------------------------------------------------------------------------------


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
        import torch_models
        torch.set_num_threads(1)
        mode, rate = run.flags.removeprefix("PyTorch, ").split(":")[0], float(run.flags.split("-l ")[1].split()[0])
        model = torch_models.MODELS[mode](self.initial_weights(run))
        text = torch.frombuffer(bytearray((self.data / "tinyshakespeare.txt").read_bytes()), dtype=torch.uint8).long()
        train, val = text[:len(text) - len(text) // 10], text[len(text) - len(text) // 10:]
        losses, scales = torch_models.optimize(model, train, rate, run.seed)
        shown = range(0, len(losses), 100)
        record = {"key": run.key, "corpus": run.corpus, "flags": run.flags, "seed": run.seed, "start": None, "val_loss": None,
                  "error": None, "date": datetime.date.today().isoformat(), "commit": self.commit, "steps": len(losses),
                  "curve": {"step": [i + 1 for i in shown], "loss": [runs.digits(losses[i]) for i in shown],
                            "stream_scale": [runs.digits(scales[i]) for i in shown]}}
        if math.isfinite(losses[-1]):
            record["val_loss"] = round(torch_models.validate(model, val), 4)
        else:
            record["error"] = f"the loss of update {len(losses)} is not finite"
        runs.append_record(record)
        return record["val_loss"] or record["error"]
