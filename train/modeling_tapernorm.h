// The Python file that the export (train/export.h) writes beside a model that GPT2LMHeadModel cannot hold.
#pragma once

namespace tapernorm::train {

inline constexpr const char* kModelingTapernormPy =
    R"py(# A GPT-2 with TaperNorm sites (arXiv 2602.10408), for Hugging Face's transformers:
#
#     AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
#
# Written by train_gpt export. It is GPT2LMHeadModel with other norms: a site computes
#     y = g (weight n + bias) + (1 - g) (taper_weight v + taper_bias)
# where u is the row, centered in the LayerNorm kind, n is u over its root mean square, and v is c u, clipped to -bound .. bound where
# there is a bound. A folded site is gone; of one with a bound a clamp is left. Where first positions are apart, their rows have another c.
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

class TaperNormConfig(GPT2Config):
    model_type = "tapernorm_gpt2"
    norm = "layernorm"   # or rmsnorm
    gate_mode = "taper"  # norm, taper, taper-all: which sites taper
    gate = 0.0           # g of the sites that taper
    folded = "none"      # affine (norms without weights), internal (no norm in the blocks), all
    bound = 0.0          # 0: none
    final_bound = 0.0    # that of ln_f, where it tapers or was folded
    first_apart = False  # rows of first positions are scaled by first_scale before all others' c

class PositionEmbedding(nn.Embedding):
    def forward(self, ids):
        self.first = (ids == 0)[..., None]  # for the sites behind it: one forward pass at a time
        return super().forward(ids)

class Scales(nn.Module):
    def __init__(self, bound):
        super().__init__()
        self.bound, self.positions = bound, []  # [the PositionEmbedding] where first positions are apart; not a submodule
        self.taper_scale = nn.Parameter(torch.ones(1))

    def set_apart(self, positions):
        self.positions, self.first_scale = [positions], nn.Parameter(torch.ones(1))

    def row_scaled(self, u):
        return torch.where(self.positions[0].first.to(u.device), self.first_scale * u, u) if self.positions else u

class Site(Scales):
    def __init__(self, config, tapers, bound):
        super().__init__(bound or torch.inf)
        self.centered, self.eps = config.norm == "layernorm", config.layer_norm_epsilon
        self.gate = config.gate if tapers else 1.0
        names = ["weight"] + ["bias"] * self.centered if config.folded != "affine" else []
        if tapers:
            names += ["taper_weight"] + ["taper_bias"] * self.centered
        else:
            del self.taper_scale
        for name in ("weight", "bias", "taper_weight", "taper_bias"):
            values = torch.ones(config.n_embd) if name.endswith("weight") else torch.zeros(config.n_embd)
            self.register_parameter(name, nn.Parameter(values) if name in names else None)

    @staticmethod
    def affine(x, weight, bias):
        if weight is not None:
            x = x * weight
        return x if bias is None else x + bias

    def forward(self, h):
        u = h.float()
        if self.centered:
            u = u - u.mean(-1, keepdim=True)
        g, y = self.gate, 0
        if g != 0:
            n = u * torch.rsqrt(u.square().mean(-1, keepdim=True) + self.eps)
            y = g * self.affine(n, self.weight, self.bias)
        if g != 1:
            v = (self.taper_scale * self.row_scaled(u)).clamp(-self.bound, self.bound)
            y = y + (1 - g) * self.affine(v, self.taper_weight, self.taper_bias)
        return y.to(h.dtype)

class Clamp(Scales):
    def forward(self, h):
        limit = self.bound / self.taper_scale
        return self.row_scaled(h.float()).clamp(-limit, limit).to(h.dtype)

class CenteredEmbedding(nn.Embedding):
    def __init__(self, config):
        super().__init__(config.vocab_size, config.n_embd)
        self.mean = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, ids):
        return super().forward(ids) - self.mean[ids][..., None]

class TaperNormGPT2LMHeadModel(GPT2LMHeadModel):
    config_class = TaperNormConfig

    def __init__(self, config):
        super().__init__(config)
        unfolded = config.folded == "none"

        def site(folded, tapers, bound):
            if folded:
                return Clamp(bound) if bound else nn.Identity()
            return Site(config, unfolded and tapers, bound)

        for block in self.transformer.h:
            for name in ("ln_1", "ln_2"):
                setattr(block, name, site(config.folded in ("internal", "all"), config.gate_mode != "norm", config.bound))
        self.transformer.ln_f = site(config.folded == "all", config.gate_mode == "taper-all", config.final_bound)
        if config.folded == "internal" and config.bound and config.norm == "layernorm":
            self.transformer.wte = CenteredEmbedding(config)
        if config.first_apart:  # a recomputed block would see the first positions of the newest forward pass
            self.supports_gradient_checkpointing = False
            self.transformer.wpe = PositionEmbedding(config.n_positions, config.n_embd)
            for module in self.modules():
                if hasattr(module, "taper_scale"):
                    module.set_apart(self.transformer.wpe)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=config.norm == "layernorm" and not unfolded)
        self.post_init()
)py";

}  // namespace tapernorm::train
