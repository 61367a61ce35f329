// A model file, as fold and infer read it, to its logits.
#include "inference/decoder.cuh"
#include "inference/info.h"
#include "io/json.h"
#include "io/tokenizer.h"
#include "model/model_file.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/safetensors_mutator.h"

namespace tapernorm {

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
    return mutate_safetensors(data, size, max_size, seed);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string path = file_with(with_checksum(safetensors_bytes(as_text(data, size))));
    return expect_clean([&] {
        Cpu dev(1, Isa::base);
        const auto model = load_model(dev, path);
        const Config& c = model->info.config;
        const auto file = ModelFile::open(path);
        const std::string info = info_text(*file);
        require(printable(info, "\n") == info, "--info prints what must not reach a terminal");
        require(info_json(*file).is_object(), "--info has no JSON object");
        std::optional<Tokenizer> tokenizer;
        try {
            tokenizer = model_tokenizer(model->info, path);
        } catch (const Error&) {  // infer goes on with ids, fold without a vocabulary
            warn_of_vocabulary(path, model->info.vocabulary_problem);
        }
        require(ids_with_text(c, tokenizer) <= c.V, "more ids with a text than ids");
        Decoder<Cpu, float> decoder(dev, c, model->tensors, model->info.scales, model->info.gate);
        std::vector<float> logits(c.V);
        const int tokens[] = {0, 1};
        decoder.feed(tokens, std::min<size_t>(2, c.T), Logits::last, logits.data());
    });
}

}  // namespace tapernorm
