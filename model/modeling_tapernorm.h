// The Python file that the export (model/export.h) writes beside a model that GPT2LMHeadModel cannot hold.
#pragma once

namespace tapernorm {

inline constexpr const char* kModelingTapernormPy =
    R"py(# A GPT-2 with TaperNorm sites (arXiv 2602.10408), for Hugging Face's transformers:
#
#     AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
#
# Written by train_gpt export. It is GPT2LMHeadModel with other norms: a site computes
#     y = g (weight n + bias) + (1 - g) (taper_weight v + taper_bias)
# where u is the row, centered in the LayerNorm kind, n is u over its root mean square, and v is c u, clipped to -bound .. bound where
# there is a bound. A folded site is gone; of one with a bound a clamp is left.
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

class Site(nn.Module):
    def __init__(self, config, tapers, bound):
        super().__init__()
        self.centered, self.eps = config.norm == "layernorm", config.layer_norm_epsilon
        self.gate, self.bound = config.gate if tapers else 1.0, bound or torch.inf
        names = ["weight"] + ["bias"] * self.centered if config.folded != "affine" else []
        if tapers:
            names += ["taper_weight"] + ["taper_bias"] * self.centered
            self.taper_scale = nn.Parameter(torch.ones(1))
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
            v = (self.taper_scale * u).clamp(-self.bound, self.bound)
            y = y + (1 - g) * self.affine(v, self.taper_weight, self.taper_bias)
        return y.to(h.dtype)

class Clamp(nn.Module):
    def __init__(self, bound):
        super().__init__()
        self.bound, self.taper_scale = bound, nn.Parameter(torch.ones(1))

    def forward(self, h):
        limit = self.bound / self.taper_scale
        return h.float().clamp(-limit, limit).to(h.dtype)

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
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=config.norm == "layernorm")
        self.post_init()
)py";

}  // namespace tapernorm
