"""TaperNorm GPT-2 in PyTorch: the reference that the C++ program is measured against.

Written from the formulas alone and differentiated by autograd, so that a mistake in a hand-written derivative
cannot be shared. It favours one obvious line per formula over speed.

    h        residual stream entering a norm site                    [B, T, C]
    LayerNorm kind   mu = mean(h)   u = h - mu   s = sqrt(mean(u^2) + eps)   eps 1e-5
    RMSNorm kind                    u = h        s = sqrt(mean(h^2) + eps)   eps 1e-6, no biases
    site(h)  = g (gamma u/s + beta) + (1 - g) (c gamma~ v + beta~)      v = u, or with a bound kappa: u clipped to +- kappa / c
               (first positions may have a c of their own, c_0)
    loss     = cross_entropy + lambda mean((s(h_final) - s_tgt)^2)      second term from update k_warm + 1 on
               relative: lambda / max(s_tgt, 1)^2 in place of lambda

Parameters carry Hugging Face's names (with the `transformer.` prefix) and orientation: y = x W + b.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

EPS = {"layernorm": 1e-5, "rmsnorm": 1e-6}
FINAL = "transformer.ln_f"


@dataclass(frozen=True)
class ModelConfig:
    V: int
    T: int
    L: int
    NH: int
    C: int
    norm: str = "layernorm"  # layernorm | rmsnorm
    mode: str = "norm"  # norm | taper | taper-all
    bound: float = 0.0  # kappa; 0: none
    final_bound: float = 0.0  # that of the final site; 0: the same

    def bound_at(self, site):
        return self.final_bound if site == FINAL and self.final_bound else self.bound

    def sites(self):
        blocks = [f"transformer.h.{l}.{ln}" for l in range(self.L) for ln in ("ln_1", "ln_2")]
        return blocks + [FINAL]

    def tapered_sites(self):
        return {"norm": [], "taper": self.sites()[:-1], "taper-all": self.sites()}[self.mode]


@dataclass(frozen=True)
class TrainConfig:
    updates: int
    micro_batches: int  # per update
    B: int  # sequences per micro-batch
    k_warm: int
    k_end: int
    scale_loss: float  # lambda
    ema_decay: float
    lr: float
    lr_warmup: int
    lr_final_frac: float
    beta1: float
    beta2: float
    adam_eps: float
    weight_decay: float
    clip: float
    scale_loss_kind: str = "absolute"  # absolute | relative
    calibration: str = "scalar"  # scalar | channels | channels+first
    optimizer: str = "adamw"  # adamw | muon


def gate(k, mode, k_warm, k_end):
    """The gate of update k, counted from 1."""
    if mode == "norm" or k <= k_warm:
        return 1.0
    if k >= k_end:
        return 0.0
    return (1 + math.cos(math.pi * (k - k_warm) / (k_end - k_warm))) / 2


def learning_rate(k, t):
    """Linear warm-up to lr at update lr_warmup, then a cosine to lr * lr_final_frac at the last update."""
    if k <= t.lr_warmup:
        return t.lr * k / t.lr_warmup
    low = t.lr * t.lr_final_frac
    return low + (t.lr - low) * (1 + math.cos(math.pi * (k - t.lr_warmup) / (t.updates - t.lr_warmup))) / 2


def is_decayed(name):
    """Weight decay: both embeddings and the four matrices of a block; no bias, no vector of a norm site."""
    return name.endswith(("wte.weight", "wpe.weight", "c_attn.weight", "c_proj.weight", "c_fc.weight"))


def is_block_matrix(name):
    return is_decayed(name) and ".h." in name


def orthogonalized(u):
    """What five Newton-Schulz steps x -> (a I + b x x^T + c (x x^T)^2) x make of u / (|u| + 1e-7): they leave singular vectors alone."""
    left, s, right = torch.linalg.svd(u / (u.norm() + 1e-7), full_matrices=False)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return left @ (s[:, None] * right)


class Muon:
    """For [in, out] matrices; one that is three times as wide as high holds three (queries, keys, values)."""

    MOMENTUM = 0.95

    def __init__(self, matrices, weight_decay):
        self.matrices, self.weight_decay = matrices, weight_decay
        self.m = [torch.zeros_like(w) for w in matrices]

    @torch.no_grad()
    def step(self, lr):
        for w, m in zip(self.matrices, self.m):
            m.mul_(self.MOMENTUM).add_(w.grad)
            parts = 3 if w.shape[1] == 3 * w.shape[0] else 1
            steps = [orthogonalized(u) * 0.2 * max(u.shape)**0.5
                     for u in (w.grad + self.MOMENTUM * m).chunk(parts, dim=1)]
            w.mul_(1 - lr * self.weight_decay).sub_(lr * torch.cat(steps, dim=1))


def parameter_shapes(m):
    """Name -> shape of everything a `norm` model stores, in file order."""
    shapes = {"transformer.wte.weight": (m.V, m.C), "transformer.wpe.weight": (m.T, m.C)}

    def norm_site(site):
        shapes[f"{site}.weight"] = (m.C,)
        if m.norm == "layernorm":
            shapes[f"{site}.bias"] = (m.C,)

    def linear(name, fan_in, fan_out):
        shapes[f"{name}.weight"] = (fan_in, fan_out)
        shapes[f"{name}.bias"] = (fan_out,)

    for l in range(m.L):
        block = f"transformer.h.{l}"
        norm_site(f"{block}.ln_1")
        linear(f"{block}.attn.c_attn", m.C, 3 * m.C)
        linear(f"{block}.attn.c_proj", m.C, m.C)
        norm_site(f"{block}.ln_2")
        linear(f"{block}.mlp.c_fc", m.C, 4 * m.C)
        linear(f"{block}.mlp.c_proj", 4 * m.C, m.C)
    norm_site(FINAL)
    return shapes


class Gpt:
    """Parameters by name, one calibrated scalar c per tapered site, and the forward pass."""

    def __init__(self, config, weights, dtype):
        self.config = config
        self.p = {name: w.to(dtype).clone() for name, w in weights.items()}
        self.c = {site: math.nan for site in config.tapered_sites()}
        self.c_0 = {}  # c of first positions, where it is their own
        for site in config.tapered_sites():  # unused until calibration overwrites them
            for plain, taper in (("weight", "taper_weight"), ("bias", "taper_bias")):
                if f"{site}.{plain}" in self.p:
                    self.p[f"{site}.{taper}"] = torch.zeros_like(self.p[f"{site}.{plain}"])
        for w in self.p.values():
            w.requires_grad_()

    def u_and_s(self, h):
        """The numerator u [B, T, C] and the statistic s [B, T] of a site."""
        u = h - h.mean(-1, keepdim=True) if self.config.norm == "layernorm" else h
        return u, (u.square().mean(-1) + EPS[self.config.norm]).sqrt()

    def scaled_input(self, u, site):
        bound = self.config.bound_at(site)
        c = torch.full((u.shape[1], 1), self.c[site], dtype=u.dtype)
        c[0] = self.c_0.get(site, self.c[site])
        return c * (u.clamp(-bound / c, bound / c) if bound else u)

    def affine(self, x, weight, bias):
        y = x * self.p[weight]
        return y + self.p[bias] if bias in self.p else y

    def norm_site(self, h, site, g, stats):
        """stats, where given, receives the calibration means of this site: num and den."""
        u, s = self.u_and_s(h)
        if site == FINAL and stats is not None:
            stats["s"] = s.detach().mean()
        if site not in self.c:
            g = 1.0
        elif g == 1.0 and stats is not None:
            q = (self.p[f"{site}.weight"] * u).detach().square().sum(-1)
            stats[site] = torch.stack([(q / s.detach()).mean(), q.mean()])
        if site in self.c and g > 0.0 and stats is not None:
            rows, n = u.detach()[:, 1:].flatten(0, 1), (u / s[..., None]).detach()[:, 1:].flatten(0, 1)
            stats[f"{site}.channels"] = torch.stack([rows.mean(0), (rows * rows).mean(0), (rows * n).mean(0), n.mean(0)])
            stats[f"{site}.first"] = (1 / s).detach()[:, 0].mean()
        if g == 0.0:
            return self.affine(self.scaled_input(u, site), f"{site}.taper_weight", f"{site}.taper_bias")
        normed = self.affine(u / s[..., None], f"{site}.weight", f"{site}.bias")
        if g == 1.0:
            return normed
        scaled = self.affine(self.scaled_input(u, site), f"{site}.taper_weight", f"{site}.taper_bias")
        return g * normed + (1 - g) * scaled

    def linear(self, x, name):
        return x @ self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

    def attention(self, x, block):
        m = self.config
        B, T, C = x.shape
        q, k, v = self.linear(x, f"{block}.attn.c_attn").split(C, dim=-1)
        q, k, v = (t.view(B, T, m.NH, C // m.NH).transpose(1, 2) for t in (q, k, v))  # [B, NH, T, hs]
        scores = q @ k.transpose(-1, -2) / math.sqrt(C // m.NH)  # [B, NH, T, T]
        future = torch.ones(T, T, dtype=torch.bool).triu(1)
        y = scores.masked_fill(future, -math.inf).softmax(-1) @ v
        return self.linear(y.transpose(1, 2).reshape(B, T, C), f"{block}.attn.c_proj")

    def mlp(self, x, block):
        x = self.linear(x, f"{block}.mlp.c_fc")
        x = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return self.linear(x, f"{block}.mlp.c_proj")

    def tokens(self):
        return self.p["transformer.wte.weight"]

    def final_residual(self, tokens, g, stats=None):
        """The residual stream h [B, T, C] that enters the final site."""
        h = self.tokens()[tokens] + self.p["transformer.wpe.weight"][: tokens.shape[1]]
        for l in range(self.config.L):
            block = f"transformer.h.{l}"
            h = h + self.attention(self.norm_site(h, f"{block}.ln_1", g, stats), block)
            h = h + self.mlp(self.norm_site(h, f"{block}.ln_2", g, stats), block)
        return h

    def logits(self, h, g, stats=None):
        return self.norm_site(h, FINAL, g, stats) @ self.p["transformer.wte.weight"].T

    def losses(self, tokens, targets, g, s_tgt=None, stats=None):
        """Cross-entropy and the mean of (s - s_tgt)^2 (None without a target) over the tokens given."""
        h = self.final_residual(tokens, g, stats)
        ce = F.cross_entropy(self.logits(h, g, stats).flatten(0, 1), targets.flatten())
        drift = None if s_tgt is None else (self.u_and_s(h)[1] - s_tgt).square().mean()
        return ce, drift

    def folded(self):
        """Weights of the model without its tapered sites, at gate 0. The head is then stored on its own.

        With a bound, a row of the stream must have mean 0 before it is clipped: the matrices that write it lose the mean of
        their outputs, the embeddings that of their rows (`tokens`, apart from the head, which may be tied).
        """
        p, m = self.p, self.config
        reader = {"ln_1": "attn.c_attn", "ln_2": "mlp.c_fc"}
        out = {name: w.detach().clone() for name, w in p.items()}
        for site in m.tapered_sites():
            if site == FINAL:
                W = p["transformer.wte.weight"].T
                b = torch.zeros(m.V, dtype=W.dtype)
            else:
                name = site.rsplit(".", 1)[0] + "." + reader[site.rsplit(".", 1)[1]]
                W, b = p[f"{name}.weight"], p[f"{name}.bias"]
            A = self.c[site] * p[f"{site}.taper_weight"][:, None] * W
            if m.norm == "layernorm":
                if not m.bound:  # z = h (I - 11^T/C): subtract every column's mean over the inputs
                    A = A - A.mean(0, keepdim=True)
                b = b + p[f"{site}.taper_bias"] @ W
            if site == FINAL:
                out["lm_head.weight"], out["lm_head.bias"] = A.T.detach(), b.detach()
            else:
                out[f"{name}.weight"], out[f"{name}.bias"] = A.detach(), b.detach()
        out["tokens"] = out["transformer.wte.weight"]
        if m.bound and m.norm == "layernorm":
            writers = ["tokens", "transformer.wpe.weight"]
            writers += [name for name in out if ".c_proj." in name]
            for name in writers:
                out[name] = out[name] - out[name].mean(-1, keepdim=True)
        return out


class FoldedGpt(Gpt):
    """Runs Gpt.folded(): tapered sites are the identity, the head may be untied."""

    def __init__(self, model):
        self.config, self.p, self.c, self.c_0 = model.config, model.folded(), model.c, model.c_0

    def tokens(self):
        return self.p["tokens"]

    def norm_site(self, h, site, g, stats):
        if site not in self.c:
            return super().norm_site(h, site, 1.0, None)
        bound = self.config.bound_at(site) / self.c[site]
        factor = torch.ones(h.shape[1], 1, dtype=h.dtype)
        factor[0] = self.c_0.get(site, self.c[site]) / self.c[site]
        return (factor * h).clamp(-bound, bound) if bound else h

    def logits(self, h, g=0.0, stats=None):
        y = self.norm_site(h, FINAL, g, stats)
        if "lm_head.weight" in self.p:
            return y @ self.p["lm_head.weight"].T + self.p["lm_head.bias"]
        return y @ self.p["transformer.wte.weight"].T


class Trainer:
    """One call of update() is one optimizer step over all its micro-batches.

    What is easy to get differently:
    * Calibration runs at updates 1..k_warm, with the gamma of before the update and all its tokens.
      The scale target is the same kind of average of mean s(h), in every mode.
    * At the END of update k_warm, after its optimizer step: c = EMA(num)/EMA(den), gamma~ = gamma,
      beta~ = beta, s_tgt = bias-corrected EMA of mean s(h). c and s_tgt are frozen from there.
    * A parameter that the current gate leaves without gradient has gradient zero, and AdamW still steps it:
      its moments decay and keep moving it for a while (without weight decay: norm vectors have none). So
      gamma~ and beta~ enter the taper with zero moments, and Adam's bias correction counts from update 1.
    * Calibration by channel fits a u + o to n = u / s in each channel, over all positions but a sequence's first, from averages
      that go on while the gate is above 0 (decay 0.9 at most from k_warm + 1 on). After every such update's optimizer step, taper_weight
      and taper_bias are moved from the fit before to the new one; from the start of the taper, the fit before is c u.
    * c_0 is the same kind of average of 1 / s over first positions.
    * Clipping looks at all parameters together: coefficient min(1, clip / (norm + 1e-6)).
    """

    def __init__(self, model, config):
        assert config.k_warm >= 1, "the calibration needs at least one update at gate 1"
        self.model, self.config, self.k = model, config, 0
        self.ema = {}
        self.s_tgt = None
        self.channels, self.channel_weight, self.fits, self.first = {}, 0.0, {}, {}
        self.muon = Muon([w for name, w in model.p.items() if is_block_matrix(name)] if config.optimizer == "muon" else [],
                         config.weight_decay)
        decayed = [w for name, w in model.p.items()
                   if is_decayed(name) and not (config.optimizer == "muon" and is_block_matrix(name))]
        rest = [w for name, w in model.p.items() if not is_decayed(name)]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}],
            lr=config.lr, betas=(config.beta1, config.beta2), eps=config.adam_eps, foreach=False)

    def gate(self):
        return gate(self.k, self.model.config.mode, self.config.k_warm, self.config.k_end)

    def update(self, batches):
        """batches: (tokens, targets) of each micro-batch, [B, T] each. Returns what a log line would hold."""
        t, p = self.config, self.model.p
        self.k += 1
        g, lr = self.gate(), learning_rate(self.k, t)
        log = {"g": g, "lr": lr, "ce": 0.0, "loss": 0.0}
        sums = {}
        for w in p.values():
            w.grad = None
        for tokens, targets in batches:
            stats = {}
            target = self.s_tgt if self.k > t.k_warm and t.scale_loss > 0 else None
            ce, drift = self.model.losses(tokens, targets, g, target, stats)
            unit = max(target, 1.0) if target is not None and t.scale_loss_kind == "relative" else 1.0
            loss = ce if drift is None else ce + t.scale_loss * drift / unit**2
            (loss / len(batches)).backward()
            log["ce"] += ce.item() / len(batches)
            log["loss"] += loss.item() / len(batches)
            for key, value in stats.items():
                sums[key] = sums.get(key, 0) + value / len(batches)
        for w in p.values():
            if w.grad is None:
                w.grad = torch.zeros_like(w)
        log["grads"] = {name: w.grad.norm().item() for name, w in p.items()}
        log["grad_norm"] = torch.nn.utils.clip_grad_norm_(p.values(), t.clip, foreach=False).item()
        log["s"] = sums["s"].item()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.muon.step(lr)
        if self.k <= t.k_warm:
            for key, value in sums.items():
                if key.endswith((".channels", ".first")):
                    continue
                self.ema[key] = t.ema_decay * self.ema.get(key, 0) + (1 - t.ema_decay) * value
        if t.calibration != "scalar" and g > 0 and self.model.c:
            keep = t.ema_decay if self.k <= t.k_warm else min(t.ema_decay, 0.9)
            self.channel_weight = keep * self.channel_weight + 1 - keep
            for site in self.model.c:
                self.channels[site] = keep * self.channels.get(site, 0) + (1 - keep) * sums[f"{site}.channels"]
                self.first[site] = keep * self.first.get(site, 0) + (1 - keep) * sums[f"{site}.first"].item()
            if self.k > t.k_warm:
                self.follow_channels()
        if self.k == t.k_warm:
            self.start_taper()
            if t.calibration != "scalar":
                self.follow_channels()
        return log

    @torch.no_grad()
    def follow_channels(self):
        for site, c in self.model.c.items():
            weight, bias = self.model.p[f"{site}.taper_weight"], self.model.p.get(f"{site}.taper_bias")
            u, uu, un, n = self.channels[site] / self.channel_weight
            slope = un / uu if bias is None else (un - u * n) / (uu - u * u)
            all_channels = un.sum() / uu.sum()
            slope = slope.clamp(all_channels / 64, 64 * all_channels)
            offset = torch.zeros_like(u) if bias is None else n - slope * u
            slope_before, offset_before = self.fits.get(site, (torch.full_like(u, c), torch.zeros_like(u)))
            if bias is not None:
                bias += weight * c / slope_before * (offset - offset_before)
            weight *= slope / slope_before
            self.fits[site] = slope, offset
            if self.config.calibration == "channels+first":
                self.model.c_0[site] = self.first[site] / self.channel_weight

    @torch.no_grad()
    def start_taper(self):
        p = self.model.p
        self.s_tgt = (self.ema["s"] / (1 - self.config.ema_decay**self.k)).item()
        for site in self.model.c:
            num, den = self.ema[site]
            self.model.c[site] = (num / den).item()  # the bias corrections cancel
            p[f"{site}.taper_weight"].copy_(p[f"{site}.weight"])
            if f"{site}.bias" in p:
                p[f"{site}.taper_bias"].copy_(p[f"{site}.bias"])

    @torch.no_grad()
    def validation_loss(self, batches):
        """Mean cross-entropy at the gate of the current update."""
        return sum(self.model.losses(x, y, self.gate())[0].item() for x, y in batches) / len(batches)
