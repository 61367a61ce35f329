// What a model is: its sizes, the state of its norm sites, and the one table of its tensors.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

#include "runtime/error.h"
#include "tapernorm.cuh"

namespace tapernorm {

// Which norm sites have been folded away.
enum class Fold {
    none,
    affine,  // gamma and beta of every norm are folded into the next matrix; the statistics stay (norms without weights)
    internal,  // the tapered sites inside the blocks are gone; the final norm stays
    all,       // no norm anywhere
};

struct Config {
    size_t V = 256;  // vocabulary
    size_t T = 256;  // longest context (rows of wpe)
    size_t L = 4, NH = 4, C = 128;
    NormKind norm = NormKind::layernorm;
    double eps = 1e-5;
    GateMode mode = GateMode::taper;
    Fold fold = Fold::none;
    double bound = 0;          // kappa of every tapering or folded site (tapernorm.cuh); 0: none
    double final_bound = 0;    // that of the final site, where it tapers; 0: the same
    bool own_head = false;     // not folded, with a head that is not wte: only other programs make such models
    bool first_apart = false;  // with a bound: rows of first positions have a factor of their own (tapernorm.cuh: c_0)

    size_t head_size() const { return C / NH; }
    bool internal_tapers() const { return mode != GateMode::norm && fold == Fold::none; }
    bool final_tapers() const { return mode == GateMode::taper_all && fold == Fold::none; }
    bool untied_head() const { return own_head || fold == Fold::affine || fold == Fold::all; }
    bool head_has_bias() const { return untied_head() && !own_head && norm == NormKind::layernorm; }
    // Folded, with clamps of the stream in place of the sites inside the blocks.
    bool clamps() const { return bound > 0 && (fold == Fold::internal || fold == Fold::all); }
    double bound_at(bool final) const { return final && final_bound > 0 ? final_bound : bound; }
    // Its tied wte, whose rows keep their mean in the head, has to lose it where it enters the stream.
    bool centers_tokens() const { return clamps() && norm == NormKind::layernorm && fold == Fold::internal; }
    // How many sites have a taper_scale: those that taper, and those that left a clamp.
    size_t tapering_sites() const {
        const bool blocks = internal_tapers() || clamps(), final = final_tapers() || (clamps() && fold == Fold::all);
        return (blocks ? 2 * L : 0) + (final ? 1 : 0);
    }
};

// A smaller Config::bound would leave nothing of a row.
constexpr double kLeastBound = 1e-6;

inline double default_eps(NormKind kind) { return kind == NormKind::layernorm ? 1e-5 : 1e-6; }

// The vectors of a norm site, [C] each. Those that a site does not have are null: `bias` and `taper_bias` in the RMSNorm kind,
// the taper vectors if the site does not taper, and all of them if it is folded.
template <class Real>
struct SiteTensors {
    Real *weight, *bias, *taper_weight, *taper_bias;
};

template <class Real>
struct BlockTensors {
    SiteTensors<Real> ln_1;
    Real *attn_qkv, *attn_qkv_bias;    // [C, 3C], [3C]
    Real *attn_proj, *attn_proj_bias;  // [C, C], [C]
    SiteTensors<Real> ln_2;
    Real *mlp_fc, *mlp_fc_bias;      // [C, 4C], [4C]
    Real *mlp_proj, *mlp_proj_bias;  // [4C, C], [C]
};

// Parameters, or anything of the same shape: gradients, moments.
template <class Real>
struct GptTensors {
    Real* wte;       // [V, C]
    Real* wte_mean;  // [V], the mean of each of its rows; null unless Config::centers_tokens
    Real* wpe;       // [T, C]
    std::vector<BlockTensors<Real>> h;
    SiteTensors<Real> ln_f;
    Real *lm_head,
        *lm_head_bias;  // [V, C], [V]; null while the head is tied to wte (and no bias where folding makes none)

    const Real* head() const { return lm_head ? lm_head : wte; }
};

// How a tensor is initialized: normal(0, std), or a constant.
struct Init {
    double std = 0, constant = 0;
};

// One row of the table.
struct TensorSpec {
    std::string name;           // Hugging Face's GPT-2 name
    std::vector<size_t> shape;  // weights are [in, out]
    Init init;
    bool decay;  // whether weight decay applies (to matrices and embeddings)

    size_t count() const {
        size_t n = 1;
        for (size_t d : shape) n *= d;
        return n;
    }
};

// The table: calls visit(TensorSpec, Real*& slot) for every tensor that a model of this configuration has, in the order of the
// file. Allocation, files, initial values, optimizer groups and the labels of tests all come from it.
template <class Real, class Visit>
void visit_tensors(const Config& c, GptTensors<Real>& t, Visit&& visit) {
    const double std = 0.02, residual_std = 0.02 / std::sqrt(2.0 * double(c.L));  // GPT-2's initial values
    const bool has_bias = c.norm == NormKind::layernorm;
    auto matrix = [&](const std::string& name, Real*& w, size_t in, size_t out, double s) {
        visit(TensorSpec{name, {in, out}, {s, 0}, true}, w);
    };
    auto vector = [&](const std::string& name, Real*& v, size_t n, double value) {
        visit(TensorSpec{name, {n}, {0, value}, false}, v);
    };
    auto linear = [&](const std::string& name, Real*& w, Real*& b, size_t in, size_t out, double s) {
        matrix(name + ".weight", w, in, out, s);
        vector(name + ".bias", b, out, 0);
    };
    auto site = [&](const std::string& name, SiteTensors<Real>& s, bool weighted, bool tapers) {
        if (weighted) vector(name + ".weight", s.weight, c.C, 1);
        if (weighted && has_bias) vector(name + ".bias", s.bias, c.C, 0);
        if (tapers) vector(name + ".taper_weight", s.taper_weight, c.C, 1);
        if (tapers && has_bias) vector(name + ".taper_bias", s.taper_bias, c.C, 0);
    };
    matrix("transformer.wte.weight", t.wte, c.V, c.C, std);
    if (c.centers_tokens()) vector("transformer.wte.mean", t.wte_mean, c.V, 0);
    matrix("transformer.wpe.weight", t.wpe, c.T, c.C, std);
    t.h.resize(c.L);
    for (size_t l = 0; l < c.L; l++) {
        BlockTensors<Real>& b = t.h[l];
        const std::string h = "transformer.h." + std::to_string(l) + ".";
        site(h + "ln_1", b.ln_1, c.fold == Fold::none, c.internal_tapers());
        linear(h + "attn.c_attn", b.attn_qkv, b.attn_qkv_bias, c.C, 3 * c.C, std);
        linear(h + "attn.c_proj", b.attn_proj, b.attn_proj_bias, c.C, c.C, residual_std);
        site(h + "ln_2", b.ln_2, c.fold == Fold::none, c.internal_tapers());
        linear(h + "mlp.c_fc", b.mlp_fc, b.mlp_fc_bias, c.C, 4 * c.C, std);
        linear(h + "mlp.c_proj", b.mlp_proj, b.mlp_proj_bias, 4 * c.C, c.C, residual_std);
    }
    site("transformer.ln_f", t.ln_f, c.fold == Fold::none || c.fold == Fold::internal, c.final_tapers());
    if (c.untied_head()) {
        matrix("lm_head.weight", t.lm_head, c.V, c.C, std);
        if (c.head_has_bias()) vector("lm_head.bias", t.lm_head_bias, c.V, 0);
    }
}

template <class Real>
struct Tensor {
    TensorSpec spec;
    Real* data;
};

// The table as a list. The lists of a configuration's parameters, gradients and moments have the same order.
template <class Real>
std::vector<Tensor<Real>> tensor_list(const Config& c, GptTensors<Real>& tensors) {
    std::vector<Tensor<Real>> list;
    visit_tensors(c, tensors, [&](const TensorSpec& spec, Real*& slot) { list.push_back({spec, slot}); });
    return list;
}

// Whether a tensor is gamma, beta, gamma~ or beta~ of a norm site inside a block.
inline bool is_block_gain(const std::string& tensor) {
    return tensor.find(".ln_1.") != std::string::npos || tensor.find(".ln_2.") != std::string::npos;
}

// How many matrices of a block lie side by side in a tensor: those of queries, keys and values do; 0 where it is no matrix of a block.
inline size_t block_matrices(const TensorSpec& tensor) {
    if (tensor.shape.size() != 2 || !tensor.name.starts_with("transformer.h.")) return 0;
    return tensor.name.ends_with("attn.c_attn.weight") ? 3 : 1;
}

// For each tensor of the table, whether AdamW updates it; --optimizer muon does the others.
inline std::vector<bool> updated_by_adamw(const Config& c, const std::string& optimizer) {
    std::vector<bool> list;
    GptTensors<float> none{};
    visit_tensors(c, none, [&](const TensorSpec& spec, float*&) {
        list.push_back(optimizer == "adamw" || block_matrices(spec) == 0);
    });
    return list;
}

inline size_t parameter_count(const Config& c) {
    size_t n = 0;
    GptTensors<float> none{};
    visit_tensors(c, none, [&](const TensorSpec& spec, float*&) { n += spec.count(); });
    return n;
}

// The names of all norm sites, in the order of the forward pass.
inline std::vector<std::string> site_names(const Config& c) {
    std::vector<std::string> names;
    for (size_t l = 0; l < c.L; l++)
        for (const char* site : {"ln_1", "ln_2"}) names.push_back("transformer.h." + std::to_string(l) + "." + site);
    names.push_back("transformer.ln_f");
    return names;
}

// The names of the tapering sites, in the order of Calibration::sites and of the values of taper_scale.
inline std::vector<std::string> taper_site_names(const Config& c) {
    std::vector<std::string> names = site_names(c);
    names.resize(c.tapering_sites());  // the final site, which may stay, is the last
    return names;
}

// The site before the attention (which = 0) or the MLP (which = 1) of block l, or the final site (l = L), as it is evaluated
// at gate g. scales: of every tapering site, or of every site that left a clamp. Where rows of first positions are apart, which
// rows these are is left to the caller (SiteArgs::positions, T).
template <class Real>
Site<Real> site_at(const Config& config, const GptTensors<Real>& t, const std::vector<TaperScale>& scales, double g,
                   size_t l, size_t which) {
    const bool final = l == config.L;
    const SiteTensors<Real>& v = final ? t.ln_f : which == 0 ? t.h[l].ln_1 : t.h[l].ln_2;
    const bool tapers = final ? config.final_tapers() : config.internal_tapers();
    Phase phase = tapers ? phase_of(g) : Phase::norm;
    if (config.fold == Fold::affine) phase = Phase::unweighted;
    const bool folded = config.fold == Fold::all || (config.fold == Fold::internal && !final);
    if (folded) phase = config.clamps() ? Phase::clamp : Phase::folded;
    const bool scaled = tapers || (folded && config.clamps());
    const TaperScale own = scaled ? scales[final ? 2 * config.L : 2 * l + which] : TaperScale{};
    const Acc<Real> scale = Acc<Real>(own.c);
    Site<Real> site{config.norm,
                    phase,
                    Acc<Real>(config.eps),
                    Acc<Real>(phase == Phase::blend ? g : phase == Phase::norm),
                    scale,
                    v.weight,
                    v.bias,
                    v.taper_weight,
                    v.taper_bias};
    if (scaled && config.bound > 0) site.bound = Acc<Real>(config.bound_at(final)) / scale;
    if (config.first_apart) site.first = Acc<Real>(own.first);
    return site;
}

}  // namespace tapernorm
