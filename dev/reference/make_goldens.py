"""Writes the golden values of tests/golden/ from the PyTorch reference, or compares them with a fresh run.

    dev/.venv/bin/python dev/reference/make_goldens.py            verifies the reference, writes
    dev/.venv/bin/python dev/reference/make_goldens.py --check    verifies it, compares, writes nothing

The values come from float64. The same run in float32 gives `fp32_gap`, the largest relative distance of each
quantity from float64: how far an honest single-precision implementation ends up, so the unit of a tolerance.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import struct
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save

from tapernorm_torch import EPS, FINAL, FoldedGpt, Gpt, ModelConfig, Muon, TrainConfig, Trainer, parameter_shapes

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden"
TRAIN = TrainConfig(updates=20, micro_batches=2, B=2, k_warm=5, k_end=12, scale_loss=0.0, ema_decay=0.99,
                    lr=1e-2, lr_warmup=3, lr_final_frac=0.1, beta1=0.9, beta2=0.95, adam_eps=1e-8,
                    weight_decay=0.1, clip=1.0)
SHAPES = {"even": dict(V=37, T=16, L=2, NH=2, C=16), "odd": dict(V=37, T=7, L=2, NH=3, C=12)}
# name: mode, --scale-loss and its kind, a factor for both embeddings, by which s_tgt becomes larger than 1, and the bounds
RUNS = {"norm": ("norm", 0.0, "absolute", 1, {}), "taper": ("taper", 0.0, "absolute", 1, {}),
        "taper_scale": ("taper", 0.1, "absolute", 1, {}), "taper_all_scale": ("taper-all", 0.1, "absolute", 1, {}),
        "taper_relative": ("taper", 0.1, "relative", 16, {}), "taper_all_channels": ("taper-all", 0.1, "relative", 16, {}),
        "taper_muon": ("taper", 0.1, "absolute", 1, {}),
        "taper_bound": ("taper", 0.1, "absolute", 1, {"bound": 1.2}),
        "taper_all_bound_channels": ("taper-all", 0.1, "relative", 16, {"bound": 1.2, "final_bound": 0.7}),
        "taper_all_first": ("taper-all", 0.1, "relative", 16, {"bound": 1.2, "final_bound": 0.7})}
GRAD_UPDATES = (1, 8, 20)  # one per phase: gate 1, between, 0
VAL_BATCHES = 2


class SplitMix64:
    """Integer arithmetic only, so that every machine and every library version draws the same numbers."""

    def __init__(self, seed):
        self.state = seed

    def next(self):
        mask = (1 << 64) - 1
        self.state = (self.state + 0x9E3779B97F4A7C15) & mask
        z = self.state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        return z ^ (z >> 31)

    def uniform(self, low, high):
        return low + (high - low) * ((self.next() >> 11) * 2.0**-53)


def initial_weights(m):
    """All away from their usual start (gamma 1, beta 0, bias 0), so that each one matters."""
    rng = SplitMix64(1000 * m.C + m.T)
    weights = {}
    for name, shape in parameter_shapes(m).items():
        center, width = (1.0, 0.2) if ".ln_" in name and name.endswith(".weight") else (0.0, 0.15)
        values = [center + rng.uniform(-width, width) for _ in range(math.prod(shape))]
        weights[name] = torch.tensor(values, dtype=torch.float64).view(shape).float()
    return weights


def metadata(m):
    return {"format_version": "1", "n_layer": str(m.L), "n_head": str(m.NH), "n_embd": str(m.C),
            "n_positions": str(m.T), "vocab_size": str(m.V), "norm": m.norm, "norm_eps": repr(EPS[m.norm]),
            "gate_mode": "norm", "gate": "1", "step": "0", "tokenizer": "none", "folded": "none"}


def make_tokens(m, t):
    """Streams of tokens, learnable: the next token mostly follows from the last one. Rows of T + 1 tokens
    share their border with the next row, as in a corpus read in sequence."""
    rng = SplitMix64(7 * m.T)

    def stream(rows):
        tokens = [rng.next() % m.V]
        while len(tokens) < rows * m.T + 1:
            tokens.append(rng.next() % m.V if rng.next() % 4 == 0 else (3 * tokens[-1] + 5) % m.V)
        return tokens

    return {"train": stream(t.updates * t.micro_batches * t.B), "val": stream(VAL_BATCHES * t.B)}


def batches(stream, m, t):
    """(tokens, targets) pairs of [B, T]."""
    rows = torch.tensor(stream).unfold(0, m.T + 1, m.T)
    return [(r[:, :-1], r[:, 1:]) for r in rows.split(t.B)]


def checksum(name, w, m):
    """Sum, sum of squares and the first, middle and last element. A constant added to the key bias changes no
    attention weight, so its gradient is rounding noise that Adam blows up to full steps: it is left out."""
    w = w.detach()
    if name.endswith("c_attn.bias"):
        w = torch.cat([w[: m.C], w[2 * m.C:]])
    flat = w.double().flatten()
    return [flat.sum().item(), flat.square().sum().item(), *(flat[i].item() for i in (0, len(flat) // 2, -1))]


def run_case(m, t, weights, tokens, dtype):
    model = Gpt(m, weights, dtype)
    trainer = Trainer(model, t)
    train, val = batches(tokens["train"], m, t), batches(tokens["val"], m, t)
    row = val[0][0][:1]  # one sequence of the validation set
    out = {"initial_last_logits": model.logits(model.final_residual(row, 1.0), 1.0)[0, -1].tolist()}
    series = {key: [] for key in ("g", "lr", "ce", "loss", "grad_norm", "s", "val_loss")}
    grads = {}
    for k in range(1, t.updates + 1):
        log = trainer.update(train[(k - 1) * t.micro_batches:k * t.micro_batches])
        log["val_loss"] = trainer.validation_loss(val)
        for key, values in series.items():
            values.append(log[key])
        if k in GRAD_UPDATES:
            grads[str(k)] = log["grads"]
    g = trainer.gate()
    out |= series | {"s_tgt": trainer.s_tgt, "c": model.c}
    out["final_last_logits"] = model.logits(model.final_residual(row, g), g)[0, -1].tolist()
    out["tensors"] = {name: checksum(name, w, m) for name, w in model.p.items()}
    out["grad_norms"] = grads
    return out, trainer


def distance(a, b):
    """Largest |a - b| of two lists or numbers, relative to the largest |b|. Infinite where there is a NaN."""
    a, b = (x if isinstance(x, list) else [x] for x in (a, b))
    if len(a) != len(b):
        return math.inf
    d = max(abs(x - y) for x, y in zip(a, b)) / max(max(map(abs, b)), 1e-12)
    return d if math.isfinite(d) else math.inf


def walk(tree, path=""):
    """Leaves of the nested values: (path, number or list of numbers)."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from walk(value, f"{path}/{key}")
    else:
        yield path, tree


def gaps(low, high):
    """fp32_gap: per top-level quantity the largest distance over its leaves."""
    out = {}
    low = dict(walk(low))
    for path, value in walk(high):
        top = path.split("/")[1]
        out[top] = max(out.get(top, 0.0), distance(low[path], value))
    return out


def golden_case(shape, norm, run):
    mode, scale_loss, kind, embedding_factor, bounds = RUNS[run]
    m = ModelConfig(**SHAPES[shape], norm=norm, mode=mode, **bounds)
    t = dataclasses.replace(TRAIN, scale_loss=scale_loss, scale_loss_kind=kind,
                            calibration="channels" if run.endswith("channels") else
                            "channels+first" if run.endswith("first") else "scalar",
                            optimizer="muon" if run.endswith("muon") else "adamw")
    weights, tokens = initial_weights(m), make_tokens(m, t)
    for name in ("transformer.wte.weight", "transformer.wpe.weight"):
        weights[name] = weights[name] * embedding_factor
    high, trainer = run_case(m, t, weights, tokens, torch.float64)
    low, _ = run_case(m, t, weights, tokens, torch.float32)
    shown = {key: value for key, value in dataclasses.asdict(m).items() if not key.endswith("bound") or value}
    train = {key: value for key, value in dataclasses.asdict(t).items() if key != "optimizer" or value != "adamw"}
    case = {"model": shown | {"norm_eps": EPS[norm]}, "train": train,
            "weights": f"{shape}_{norm}.safetensors", "embedding_factor": embedding_factor,
            "tokens": f"{shape}_tokens.json"}
    return case | high | {"fp32_gap": gaps(low, high)}, trainer


def dump(case):
    """One line per quantity or tensor, 10 significant digits: reviewable, and small."""
    def short(x):
        if isinstance(x, float):
            return float(f"{x:.10g}")
        if isinstance(x, list):
            return [short(v) for v in x]
        return {k: short(v) for k, v in x.items()} if isinstance(x, dict) else x

    def text(x, depth):
        if isinstance(x, dict) and depth < 2 and x:
            pad = " " * (depth + 1)
            body = ",\n".join(f"{pad}{json.dumps(k)}: {text(v, depth + 1)}" for k, v in x.items())
            return "{\n" + body + "\n" + " " * depth + "}"
        return json.dumps(x, separators=(",", ":"))

    return text(short(case), 0) + "\n"


# --------------------------------------------------------------------------------------------------
# Facts that the reference itself must satisfy


def expect(what, value, bound):
    ok = value <= bound
    print(f"{'ok  ' if ok else 'FAIL'} {what}: {value:.3g} (bound {bound:.3g})")
    return ok


def tapered_model(norm, mode, bound=0.0, first=False):
    """A float64 model with arbitrary c, gamma~, beta~ and a batch."""
    m = ModelConfig(**SHAPES["odd"], norm=norm, mode=mode, bound=bound, final_bound=bound / 2)
    model, rng = Gpt(m, initial_weights(m), torch.float64), SplitMix64(5)
    for site in model.c:
        model.c[site] = rng.uniform(0.5, 2.0)
        if first:
            model.c_0[site] = 0.3 * model.c[site]
    with torch.no_grad():
        for name, w in model.p.items():
            if ".taper_" in name:
                w.copy_(torch.tensor([rng.uniform(0.4, 1.4) for _ in range(m.C)]))
    return m, model, batches(make_tokens(m, TRAIN)["val"], m, TRAIN)[0]


def check_derivatives(norm, bound, first=False):
    """Central differences of the loss, scale term included, at an element of every tensor and three gates."""
    m, model, (x, y) = tapered_model(norm, "taper-all", bound, first)
    worst, step = 0.0, 1e-5

    def loss(g):
        ce, drift = model.losses(x, y, g, s_tgt=0.2)
        return ce + 0.1 * drift

    for g in (1.0, 0.3, 0.0):
        grads = torch.autograd.grad(loss(g), list(model.p.values()), allow_unused=True)
        for (name, w), dw in zip(model.p.items(), grads):
            at = len(w.view(-1)) // 3
            with torch.no_grad():
                flat = w.view(-1)
                kept = flat[at].item()
                values = []
                for shift in (step, -step):
                    flat[at] = kept + shift
                    values.append(loss(g).item())
                flat[at] = kept
            slope = (values[0] - values[1]) / (2 * step)
            worst = max(worst, abs(slope - (0.0 if dw is None else dw.view(-1)[at].item())))
    return expect(f"{norm}, bound {bound}: central differences of the loss", worst, 1e-9)


def check_plain_norm():
    m, model, (x, y) = tapered_model("layernorm", "taper-all")
    h = model.final_residual(x, 1.0).detach()
    w, b = model.p[f"{FINAL}.weight"], model.p[f"{FINAL}.bias"]
    ours, theirs = model.norm_site(h, FINAL, 1.0, None), F.layer_norm(h, (m.C,), w, b, EPS["layernorm"])
    ok = expect("layernorm: gate 1 against torch layer_norm", (ours - theirs).abs().max().item(), 1e-14)
    m, model, (x, y) = tapered_model("rmsnorm", "taper-all")
    h = model.final_residual(x, 1.0).detach()
    ours = model.norm_site(h, FINAL, 1.0, None)
    theirs = F.rms_norm(h, (m.C,), model.p[f"{FINAL}.weight"], EPS["rmsnorm"])
    return expect("rmsnorm: gate 1 against torch rms_norm", (ours - theirs).abs().max().item(), 1e-14) and ok


def check_calibration(norm):
    """c = num/den is the least-squares scalar: it beats its neighbours."""
    m, model, (x, _) = tapered_model(norm, "taper-all")
    stats = {}
    h = model.final_residual(x, 1.0, stats)
    model.logits(h, 1.0, stats)
    num, den = stats[FINAL]
    u, s = model.u_and_s(h.detach())
    gu = (model.p[f"{FINAL}.weight"] * u).detach()
    error = lambda c: (gu / s[..., None] - c * gu).square().sum().item()
    c = (num / den).item()
    excess = max(error(c) - error(c * f) for f in (0.999, 1.001))
    return expect(f"{norm}: least-squares c against its neighbours", excess, 0.0)


def check_paper_facts(norm):
    """<dL/dh, h> is 0 under a final norm (eps -> 0), and at most -(1 - p_y) m without one where m > 0."""
    m, model, (x, y) = tapered_model(norm, "taper-all")
    W = model.p["transformer.wte.weight"].detach()
    rng = SplitMix64(11)
    h = 50 * W[y[0]] + torch.tensor([[rng.uniform(-1, 1) for _ in range(m.C)] for _ in y[0]])
    h.requires_grad_()
    if norm == "layernorm":  # a bias does not scale with h, but the loss still only sees h / s
        assert model.p[f"{FINAL}.bias"].abs().max() > 0
    loss = F.cross_entropy(model.logits(1e6 * h[None], 1.0)[0], y[0], reduction="sum")
    (dh,) = torch.autograd.grad(loss, h)
    ok = expect(f"{norm}: radial gradient under a final norm", (dh * h).sum(-1).abs().max().item(), 1e-9)
    logits = h @ W.T
    (dh,) = torch.autograd.grad(F.cross_entropy(logits, y[0], reduction="sum"), h)
    right = logits.gather(1, y[0][:, None])[:, 0]
    margin = right - logits.scatter(1, y[0][:, None], -math.inf).max(-1).values
    bound = -(1 - (logits.log_softmax(-1).gather(1, y[0][:, None])[:, 0]).exp()) * margin
    excess = ((dh * h).sum(-1) - bound)[margin > 0]
    assert len(excess) > 0
    return expect(f"{norm}: radial gradient without one, above its bound", excess.max().item(), 1e-12) and ok


def check_folding(norm, mode, bound, first=False):
    _, model, (x, _) = tapered_model(norm, mode, bound, first)
    folded = FoldedGpt(model)
    plain, h = model.logits(model.final_residual(x, 0.0), 0.0), folded.final_residual(x, 0.0)
    what = f"{norm} {mode}, bound {bound}"
    ok = expect(f"{what}: folded logits", (plain - folded.logits(h)).abs().max().item(), 1e-12)
    if bound and norm == "layernorm":
        ok = expect(f"{what}: means of the folded stream's rows", h.mean(-1).abs().max().item(), 1e-15) and ok
    return ok


def check_muon():
    """Three steps against torch.optim.Muon, whose Newton-Schulz steps are in bf16 (2^-9, through five of them and their factors)."""
    rng = SplitMix64(13)
    draw = lambda *shape: torch.tensor([rng.uniform(-1, 1) for _ in range(math.prod(shape))], dtype=torch.float64).view(shape)
    matrices = [draw(12, 12), draw(12, 48), draw(48, 12)]
    theirs = [torch.nn.Parameter(w.clone()) for w in matrices]
    ours, start = [w.clone() for w in matrices], [w.clone() for w in matrices]
    optimizer = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    muon = Muon(ours, 0.1)
    for _ in range(3):
        for w, v in zip(ours, theirs):
            w.grad = draw(*w.shape)
            v.grad = w.grad.clone()
        optimizer.step(), muon.step(0.02)
    moved = max(((w - v).norm() / (w - s).norm()).item() for w, v, s in zip(ours, theirs, start))
    return expect("muon: three steps against torch.optim.Muon, of the way gone", moved, 0.02)


def check_hugging_face():
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        print("skip Hugging Face GPT-2: transformers is not installed")
        return True
    m = ModelConfig(**SHAPES["even"])
    weights = initial_weights(m)
    config = GPT2Config(vocab_size=m.V, n_positions=m.T, n_embd=m.C, n_layer=m.L, n_head=m.NH,
                        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)
    theirs = GPT2LMHeadModel(config).double().eval()
    missing = theirs.load_state_dict({k: v.double() for k, v in weights.items()}, strict=False)
    assert missing.missing_keys == ["lm_head.weight"] and not missing.unexpected_keys, missing
    theirs.tie_weights()
    x = batches(make_tokens(m, TRAIN)["val"], m, TRAIN)[0][0]
    model = Gpt(m, weights, torch.float64)
    ours = model.logits(model.final_residual(x, 1.0), 1.0)
    return expect("gate 1 against Hugging Face GPT-2", (ours - theirs(x).logits).abs().max().item(), 1e-12)


def check_facts():
    checks = [check_plain_norm(), check_hugging_face(), check_muon()]
    for norm in ("layernorm", "rmsnorm"):
        checks += [check_derivatives(norm, 0.0), check_derivatives(norm, 0.2), check_derivatives(norm, 0.2, True)]
        checks += [check_calibration(norm), check_paper_facts(norm)]
        checks += [check_folding(norm, mode, bound) for mode in ("taper", "taper-all") for bound in (0.0, 0.3)]
        checks += [check_folding(norm, mode, 0.3, True) for mode in ("taper", "taper-all")]
    return all(checks)


# --------------------------------------------------------------------------------------------------


def all_files():
    """Name -> bytes of every golden file."""
    files = {}
    for shape in SHAPES:
        for norm in EPS:
            m = ModelConfig(**SHAPES[shape], norm=norm)
            files[f"{shape}_{norm}.safetensors"] = save(initial_weights(m), metadata(m))
            for run in RUNS:
                case, _ = golden_case(shape, norm, run)
                files[f"{shape}_{norm}_{run}.json"] = dump(case).encode()
                last = {k: case[k][-1] for k in ("ce", "val_loss", "s")}
                print(f"{shape}_{norm}_{run}: ", *(f"{k} {v:.4f}" for k, v in last.items()),
                      "  fp32 gap", f"{max(case['fp32_gap'].values()):.1e}")
        files[f"{shape}_tokens.json"] = (json.dumps(make_tokens(ModelConfig(**SHAPES[shape]), TRAIN),
                                                    separators=(",", ":")) + "\n").encode()
    return files


def same_tensors(a, b):
    """Two safetensors files compared by content; the order in the header is the writer's choice."""
    def parts(x):
        n = struct.unpack("<Q", x[:8])[0]
        header, data = json.loads(x[8:8 + n]), x[8 + n:]
        meta = header.pop("__metadata__")
        return meta, {k: (v["dtype"], v["shape"], data[slice(*v["data_offsets"])]) for k, v in header.items()}
    return parts(a) == parts(b)


def compare(files, tolerance):
    ok = True
    present = {p.name for p in GOLDEN.iterdir() if p.suffix in (".json", ".safetensors")}
    for name in sorted(present ^ files.keys()):
        print(f"FAIL {name}: {'not generated any more' if name in present else 'missing'}")
        ok = False
    for name in sorted(present & files.keys()):
        old, new = (GOLDEN / name).read_bytes(), files[name]
        if name.endswith(".safetensors"):
            good, worst = same_tensors(old, new), ""
        else:
            old, new = json.loads(old), json.loads(new)
            old.pop("fp32_gap", None), new.pop("fp32_gap", None)  # rounding of the machine at hand
            good, worst = compare_values(dict(walk(old)), dict(walk(new)), tolerance)
        ok = ok and good
        print(f"{'ok  ' if good else 'FAIL'} {name} {worst}")
    return ok


def compare_values(old, new, tolerance):
    if old.keys() != new.keys():
        return False, f"different keys: {sorted(old.keys() ^ new.keys())[:4]}"
    worst, where = 0.0, ""
    for path, value in old.items():
        numbers = isinstance(value, (list, float))
        d = distance(new[path], value) if numbers else 0.0 if new[path] == value else math.inf
        if d > worst:
            worst, where = d, path
    return worst <= tolerance, f"largest relative difference {worst:.1e} {where}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the files, write nothing")
    parser.add_argument("--tolerance", type=float, default=1e-8, help="relative, for --check (default 1e-8)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ok = check_facts()
    if ok:
        files = all_files()
        if args.check:
            ok = compare(files, args.tolerance)
        else:
            GOLDEN.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                (GOLDEN / name).write_bytes(content)
            print(f"{len(files)} files, {sum(map(len, files.values()))} bytes in {GOLDEN}")
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
