"""Models that the trainer does not have, on the PyTorch reference (dev/reference/tapernorm_torch.py), and their training.

A model overrides what is different in it; MODELS names them as the records do.
"""
import math
import sys

import runs

runs.needs.need("torch", "dev-env")
import torch  # noqa: E402
import torch.nn.functional as F
from torch_runs import B, C, END, L, NH, SETTING, T, WARM, row_begin

sys.path.append(str(runs.ROOT / "dev" / "reference"))
from tapernorm_torch import Gpt, ModelConfig, TrainConfig, gate, is_decayed, learning_rate  # noqa: E402

LAMBDA, EMA_DECAY = 0.1, 0.99


class Norm(Gpt):
    """The reference's `norm`. The methods down to end_update are what models of experiments change."""
    mode = "norm"
    scale_loss = False
    unused = ""  # weights whose names contain this are not there

    def __init__(self, weights):
        kept = {name: w for name, w in weights.items() if not self.unused or self.unused not in name}
        super().__init__(ModelConfig(V=256, T=T, L=L, NH=NH, C=C, mode=self.mode), kept, torch.float32)
        self.k = 1  # the update under way
        self.ema = {}
        self.target = None  # of the scale loss, once calibrated

    def attention(self, x, block):  # as the reference's, by PyTorch's fused operators; so the MLP
        q, k, v = self.linear(x, f"{block}.attn.c_attn").view(*x.shape[:2], 3, NH, C // NH).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.linear(y.transpose(1, 2).reshape(x.shape), f"{block}.attn.c_proj")

    def mlp(self, x, block):
        return self.linear(F.gelu(self.linear(x, f"{block}.mlp.c_fc"), approximate="tanh"), f"{block}.mlp.c_proj")

    def linear(self, x, name):
        return F.linear(x, self.p[f"{name}.weight"].T, self.p[f"{name}.bias"])

    def embedded(self, h):
        return h

    def final_residual(self, tokens, g, stats=None):
        h = self.embedded(self.p["transformer.wte.weight"][tokens] + self.p["transformer.wpe.weight"][:tokens.shape[1]])
        for l in range(L):
            block = f"transformer.h.{l}"
            h = h + self.attention(self.norm_site(h, f"{block}.ln_1", g, stats), block)
            h = h + self.mlp(self.norm_site(h, f"{block}.ln_2", g, stats), block)
        return h

    def rate_factor(self):
        return 1.0

    def end_update(self, stats, optimizer):
        """After the optimizer's step; stats: this update's calibration means."""
        for key, value in stats.items():
            self.ema[key] = EMA_DECAY * self.ema.get(key, 0) + (1 - EMA_DECAY) * value
        if self.k == WARM and self.scale_loss:
            self.target = self.unbiased("s")

    def unbiased(self, key):
        return float(self.ema[key] / (1 - EMA_DECAY ** self.k))


# ---- without norms --------------------------------------------------------------------------------------------------


class ScaledEmbedding(Norm):
    """Without norms GPT-2's initial embeddings (deviation 0.02) vanish in the blocks: a trained scalar, from sqrt(C), multiplies them."""

    def __init__(self, weights):
        super().__init__(weights)
        self.p["embedding_scale"] = torch.tensor(math.sqrt(C), requires_grad=True)

    def norm_site(self, h, site, g, stats):
        return h

    def embedded(self, h):
        return self.p["embedding_scale"] * h


class NoNorm(ScaledEmbedding):
    unused = ".ln_"


class NoNormScaled(NoNorm):
    """Each branch's output divided by sqrt(2 L)."""

    def attention(self, x, block):
        return super().attention(x, block) / math.sqrt(2 * L)

    def mlp(self, x, block):
        return super().mlp(x, block) / math.sqrt(2 * L)


# ---- tapers ---------------------------------------------------------------------------------------------------------


class Taper(Norm):
    """`taper` with the scale loss, as the program has it. A site has a window: its last update at gate 1, its first at 0."""
    mode = "taper"
    scale_loss = True

    def __init__(self, weights):
        super().__init__(weights)
        self.windows = self.make_windows()

    def make_windows(self):
        return dict.fromkeys(self.config.tapered_sites(), (WARM, END))

    def gate(self, site):
        return gate(self.k, "taper", *self.windows[site]) if site in self.windows else 1.0

    def norm_site(self, h, site, g, stats):
        return super().norm_site(h, site, self.gate(site), stats)

    def end_update(self, stats, optimizer):
        super().end_update(stats, optimizer)
        for site, (start, _) in self.windows.items():
            if self.k == start:
                self.calibrate(site, optimizer)

    @torch.no_grad()
    def calibrate(self, site, optimizer):
        num, den = self.ema[site]
        self.c[site] = float(num / den)
        for part in ("weight", "bias"):
            self.p[f"{site}.taper_{part}"].copy_(self.p[f"{site}.{part}"])


def spread(sites, length):
    """Windows that begin one after another in this order, evenly, the last to end at END."""
    starts = [WARM + round(i * (END - length - WARM) / (len(sites) - 1)) for i in range(len(sites))]
    return {site: (start, start + length) for site, start in zip(sites, starts)}


class OneByOne(Taper):
    """Each site fixed in one update: first every ln_2, then every ln_1 (the order of arXiv 2507.02559, there for fine-tuning)."""

    def make_windows(self):
        return spread(sorted(self.config.tapered_sites(), key=lambda site: site.endswith("ln_1")), 1)


class Staggered(Taper):
    """In the order of depth, each site's taper half as long as all."""

    def make_windows(self):
        return spread(self.config.tapered_sites(), (END - WARM) // 2)


class QuietestFirst(Taper):
    """Staggered, beginning with the site whose 1/s varies least (its deviation over its mean) at the taper start."""

    def make_windows(self):
        return {}  # until they are known

    def norm_site(self, h, site, g, stats):
        if site in self.c and stats is not None and not self.windows:
            inverse = 1 / self.u_and_s(h.detach())[1]
            stats["1/s " + site] = torch.stack([inverse.mean(), inverse.square().mean()])
        return super().norm_site(h, site, g, stats)

    def end_update(self, stats, optimizer):
        if self.k == WARM:  # the averages of the update before do
            def variation(site):
                mean, square = self.ema["1/s " + site] / (1 - EMA_DECAY ** (WARM - 1))
                return float(square / mean ** 2)
            self.windows = spread(sorted(self.config.tapered_sites(), key=variation), (END - WARM) // 2)
        super().end_update(stats, optimizer)


class Following(Taper):
    """c keeps following an EMA of decay 0.999, from its calibrated value, as long as the gate is above 0."""
    SLOW = 0.999

    def norm_site(self, h, site, g, stats):
        if site in self.c and stats is not None and 0 < self.gate(site) < 1:
            u, s = (x.detach() for x in self.u_and_s(h))
            q = (self.p[f"{site}.weight"].detach() * u).square().sum(-1)
            stats[site] = torch.stack([(q / s).mean(), q.mean()])
        return super().norm_site(h, site, g, stats)

    def end_update(self, stats, optimizer):
        slow = {site: self.unbiased_pair(site) for site in self.c} if self.k == WARM + 1 else getattr(self, "slow", None)
        super().end_update(stats, optimizer)
        if slow is not None:
            self.slow = {site: self.SLOW * slow[site] + (1 - self.SLOW) * stats.get(site, slow[site]) for site in slow}
            for site, (num, den) in self.slow.items():
                self.c[site] = float(num / den)

    def unbiased_pair(self, site):
        return self.ema[site] / (1 - EMA_DECAY ** WARM)


class Moments(Taper):
    """gamma~ and beta~ enter with AdamW's moments of gamma and beta, not with zeros."""

    @torch.no_grad()
    def calibrate(self, site, optimizer):
        super().calibrate(site, optimizer)
        for part in ("weight", "bias"):
            old, new = (optimizer.state[self.p[f"{site}.{name}"]] for name in (part, f"taper_{part}"))
            for moment in ("exp_avg", "exp_avg_sq"):
                new[moment].copy_(old[moment])


class RateAgain(Taper):
    """The learning rate warms up again, from 0 in 5% of the updates, once the taper has ended."""

    def rate_factor(self):
        return min(1.0, (self.k - END) / WARM) if self.k > END else 1.0


class EveryBlock(Taper):
    """The scale loss as the mean over the stream behind every block, each with its own target."""

    def norm_site(self, h, site, g, stats):
        if not site.startswith("transformer.h.0.") and not site.endswith("ln_2"):
            scale = self.u_and_s(h)[1]
            self.scales[site] = scale
            if stats is not None:
                stats["s " + site] = scale.detach().mean()
        return super().norm_site(h, site, g, stats)

    def losses(self, tokens, targets, g, s_tgt=None, stats=None):
        self.scales = {}
        loss, _ = super().losses(tokens, targets, g, None, stats)
        if s_tgt is None:
            return loss, None
        return loss, sum((s - self.targets[site]).square().mean() for site, s in self.scales.items()) / len(self.scales)

    def end_update(self, stats, optimizer):
        super().end_update(stats, optimizer)
        if self.k == WARM:
            self.targets = {site: self.unbiased("s " + site) for site in self.scales}


class HalfTarget(Taper):
    """A target below the average."""

    def end_update(self, stats, optimizer):
        super().end_update(stats, optimizer)
        if self.k == WARM:
            self.target *= 0.5


class FrozenGain(Norm):
    """`norm` with the scale loss; gamma and beta of the sites in the blocks are frozen at k_warm, where the taper freezes c."""
    scale_loss = True
    frozen = ("ln_1.", "ln_2.")

    def end_update(self, stats, optimizer):
        super().end_update(stats, optimizer)
        if self.k == WARM:
            for name, w in self.p.items():
                if any(part in name for part in self.frozen):
                    w.requires_grad_(False)
                    w.grad = None
            for group in optimizer.param_groups:
                group["params"] = [w for w in group["params"] if w.requires_grad]


class FrozenGainAlone(FrozenGain):
    """The same without the scale loss."""
    scale_loss = False


class TaperFrozenGain(FrozenGain, Taper):
    """`taper` whose gamma, beta, gamma~ and beta~ are frozen at k_warm: what is left of a site at gate 0 is a constant map."""


MODELS = {"norm": Norm, "no norm": NoNorm, "no norm, scaled branches": NoNormScaled, "one by one": OneByOne, "staggered": Staggered,
          "taper": Taper, "quietest first": QuietestFirst, "following": Following, "moments": Moments, "rate again": RateAgain,
          "every block": EveryBlock, "half target": HalfTarget, "frozen gain": FrozenGain,
          "frozen gain alone": FrozenGainAlone, "taper, frozen gain": TaperFrozenGain}


# ---- training -------------------------------------------------------------------------------------------------------


def optimize(model, train, rate, seed):
    """The program's update, from its formulas. Training loss and s(h) of every update, up to a loss that is not finite."""
    steps = SETTING.steps
    recipe = TrainConfig(steps, 1, B, 0, 0, 0, 0, rate, WARM, 0.1, 0.9, 0.99, 1e-8, 0.1, 1.0)
    groups = [{"params": [w for name, w in model.p.items() if is_decayed(name) == decayed], "weight_decay": 0.1 * decayed}
              for decayed in (True, False)]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99), eps=1e-8)
    losses, scales = [], []
    for k in range(1, steps + 1):
        model.k, stats = k, {}
        rows = torch.stack([train[b:b + T + 1] for b in (row_begin((k - 1) * B + i, len(train), seed) for i in range(B))])
        loss, drift = model.losses(rows[:, :-1], rows[:, 1:], 1.0, model.target if model.scale_loss else None, stats)
        losses.append(loss.item())
        scales.append(float(stats["s"]) if "s" in stats else None)
        if not math.isfinite(losses[-1]):
            break
        optimizer.zero_grad(set_to_none=False)
        (loss + (LAMBDA * drift if drift is not None else 0)).backward()
        for w in model.p.values():  # what has no gradient yet is stepped all the same, as in the program
            w.grad = torch.zeros_like(w) if w.grad is None else w.grad
        torch.nn.utils.clip_grad_norm_(model.p.values(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(k, recipe) * model.rate_factor()
        optimizer.step()
        model.end_update(stats, optimizer)
    return losses, scales


def validate(model, val):
    """Mean loss of the windows that the program validates on: in sequence, whole batches."""
    rows = (len(val) - 1) // T // B * B
    with torch.no_grad():
        losses = [model.losses(val[a:a + B * T].view(B, T), val[a + 1:a + B * T + 1].view(B, T), 1.0)[0].item()
                  for a in range(0, rows * T, B * T)]
    return sum(losses) / len(losses)
