#include "train/gguf.h"

#include <bit>
#include <sstream>

#include "io/atomic_file.h"

namespace tapernorm::train {

static_assert(std::endian::native == std::endian::little, "numbers are written as they are");

namespace {

constexpr size_t kAlignment = 32;
enum Type : uint32_t { kUint32 = 4, kInt32 = 5, kFloat32 = 6, kBool = 7, kText = 8, kArray = 9 };
enum TensorType : uint32_t { kTensorF32 = 0, kTensorBf16 = 30 };
enum FileType : uint32_t { kAllF32 = 0, kMostlyBf16 = 32 };
enum TokenType : int32_t { kNormal = 1, kControl = 3, kUnused = 5 };

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

template <class T>
void append(std::string& bytes, T x) {
    bytes.append(reinterpret_cast<const char*>(&x), sizeof x);
}
void append_text(std::string& bytes, const std::string& text) {
    append(bytes, uint64_t(text.size()));
    bytes += text;
}

struct Keys {
    std::string bytes;
    uint64_t count = 0;

    void key(const std::string& name, Type type) {
        append_text(bytes, name);
        append(bytes, type);
        count++;
    }
    void add(const std::string& name, const std::string& text) { key(name, kText), append_text(bytes, text); }
    void add(const std::string& name, size_t n) { key(name, kUint32), append(bytes, uint32_t(n)); }
    void add_real(const std::string& name, double x) { key(name, kFloat32), append(bytes, float(x)); }
    void add_flag(const std::string& name, bool x) { key(name, kBool), append(bytes, x); }
    void add(const std::string& name, const std::vector<std::string>& texts) {
        list(name, kText, texts.size());
        for (const std::string& text : texts) append_text(bytes, text);
    }
    void add(const std::string& name, const std::vector<int32_t>& numbers) {
        list(name, kInt32, numbers.size());
        for (const int32_t n : numbers) append(bytes, n);
    }

  private:
    void list(const std::string& name, Type type, size_t n) {
        key(name, kArray), append(bytes, type), append(bytes, uint64_t(n));
    }
};

// The lines of merges.txt, without its first, the version.
std::vector<std::string> merges_of(const Tokenizer& tokenizer) {
    const auto metadata = tokenizer.metadata();
    const auto found = metadata.find("tokenizer.merges");
    std::vector<std::string> merges;
    if (found == metadata.end()) return merges;
    std::istringstream lines(found->second);
    for (std::string line; std::getline(lines, line);)
        if (!line.empty() && !(merges.empty() && line.starts_with("#version"))) merges.push_back(line);
    return merges;
}

void add_tokenizer(Keys& keys, const Tokenizer& tokenizer, size_t V) {
    std::vector<std::string> tokens;
    std::vector<int32_t> types;
    size_t end = 0;
    for (size_t id = 0; id < tokenizer.vocab_size(); id++) {
        if (tokenizer.token(id) == std::string_view("\0", 1)) end = id;
        tokens.push_back(printable_from_bytes(tokenizer.token(id)));
        types.push_back(kNormal);
    }
    if (tokenizer.end_of_text()) end = *tokenizer.end_of_text();
    types[end] = kControl;
    for (size_t id = tokens.size(); id < V; id++) {  // padding of the vocabulary
        tokens.push_back("[PAD" + std::to_string(id) + "]");
        types.push_back(kUnused);
    }
    keys.add("tokenizer.ggml.model", std::string("gpt2"));
    keys.add("tokenizer.ggml.pre", std::string("gpt-2"));
    keys.add("tokenizer.ggml.tokens", tokens);
    keys.add("tokenizer.ggml.token_type", types);
    keys.add("tokenizer.ggml.merges", merges_of(tokenizer));
    keys.add("tokenizer.ggml.bos_token_id", end);
    keys.add("tokenizer.ggml.eos_token_id", end);
    keys.add_flag("tokenizer.ggml.add_bos_token", false);
}

// "transformer.h.0.attn.c_attn.weight" -> "blk.0.attn_qkv.weight"
std::string name_in_gguf(std::string name) {
    constexpr std::pair<std::string_view, std::string_view> kNames[] = {{"transformer.wte", "token_embd"},
                                                                        {"transformer.wpe", "position_embd"},
                                                                        {"transformer.ln_f", "output_norm"},
                                                                        {"lm_head", "output"},
                                                                        {"transformer.h.", "blk."},
                                                                        {"ln_1", "attn_norm"},
                                                                        {"ln_2", "ffn_norm"},
                                                                        {"attn.c_attn", "attn_qkv"},
                                                                        {"attn.c_proj", "attn_output"},
                                                                        {"mlp.c_fc", "ffn_up"},
                                                                        {"mlp.c_proj", "ffn_down"}};
    for (const auto& [theirs, ours] : kNames)
        if (const size_t at = name.find(theirs); at != name.npos) name.replace(at, theirs.size(), ours);
    return name;
}

struct TensorPlan {
    std::string name;
    std::vector<size_t> shape;  // as written, the slowest first
    bool transposed;            // where the model has [in, out]
    Dtype dtype;
    size_t place, bytes;
};

std::vector<TensorPlan> plan(const Gpt2Tensors& model, Dtype dtype) {
    std::vector<TensorPlan> list;
    size_t place = 0;
    for (const TensorSpec& spec : model.specs) {
        const bool matrix = spec.shape.size() == 2, positions = spec.name == "transformer.wpe.weight";
        TensorPlan t{name_in_gguf(spec.name),
                     spec.shape,
                     matrix && spec.name.find(".h.") != spec.name.npos,
                     matrix && !positions ? dtype : Dtype::F32,
                     place,
                     0};
        if (t.transposed) std::swap(t.shape[0], t.shape[1]);
        t.bytes = spec.count() * dtype_bytes(t.dtype);
        place += aligned(t.bytes);
        list.push_back(t);
    }
    return list;
}

std::string data_of(const TensorPlan& t, const std::vector<float>& values) {
    std::string bytes;
    bytes.reserve(aligned(t.bytes));
    auto add = [&](float x) { t.dtype == Dtype::BF16 ? append(bytes, bf16_from_float(x)) : append(bytes, x); };
    if (t.transposed) {
        for (size_t o = 0; o < t.shape[0]; o++)
            for (size_t i = 0; i < t.shape[1]; i++) add(values[i * t.shape[0] + o]);
    } else {
        for (const float x : values) add(x);
    }
    bytes.resize(aligned(t.bytes), '\0');
    return bytes;
}

}  // namespace

void write_gguf(const std::string& path, const std::string& name, const ModelInfo& info, const Gpt2Tensors& model,
                Dtype dtype, const Tokenizer& tokenizer) {
    const Config& c = info.config;
    Keys keys;
    keys.add("general.architecture", std::string("gpt2"));
    keys.add("general.name", name);
    keys.add("general.file_type", size_t(dtype == Dtype::BF16 ? kMostlyBf16 : kAllF32));
    keys.add("gpt2.context_length", c.T);
    keys.add("gpt2.embedding_length", c.C);
    keys.add("gpt2.feed_forward_length", 4 * c.C);
    keys.add("gpt2.block_count", c.L);
    keys.add("gpt2.attention.head_count", c.NH);
    keys.add_real("gpt2.attention.layer_norm_epsilon", model.eps);
    add_tokenizer(keys, tokenizer, c.V);
    keys.add("tapernorm.provenance", info.provenance);

    const std::vector<TensorPlan> tensors = plan(model, dtype);
    std::string header = "GGUF";
    append(header, uint32_t(3));
    append(header, uint64_t(tensors.size()));
    append(header, keys.count);
    header += keys.bytes;
    for (const TensorPlan& t : tensors) {
        append_text(header, t.name);
        append(header, uint32_t(t.shape.size()));
        for (size_t i = t.shape.size(); i-- > 0;) append(header, uint64_t(t.shape[i]));
        append(header, t.dtype == Dtype::BF16 ? kTensorBf16 : kTensorF32);
        append(header, uint64_t(t.place));
    }
    header.resize(aligned(header.size()), '\0');

    AtomicFile file(path);
    file.write(header.data(), header.size());
    for (size_t i = 0; i < tensors.size(); i++) {
        const std::string bytes = data_of(tensors[i], model.values[i]);
        file.write(bytes.data(), bytes.size());
    }
    MappedFile::check_all();
    file.commit();
}

}  // namespace tapernorm::train
