// The same model and tokens by the inner loops of every instruction set that this machine has: the logits are those of the
// same model in double, within rounding.
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/logits_case.h"

#include <random>

namespace tapernorm {

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

// Most inputs are drawn anew: coverage prefers the largest models to those of another size, which are as good.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
    std::minstd_rand random(seed);
    if (random() % 16 == 0) return LLVMFuzzerMutate(data, size, max_size);
    size = std::min<size_t>(max_size, 8 + random() % 25);
    std::generate_n(data, size, [&] { return uint8_t(random() >> 8); });
    return size;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const LogitsCase c(as_text(data, size));
    Cpu reference(1, Isa::base);
    const RandomModel<float> model(reference, c.config);
    const ExactLogits exact = exact_logits(reference, c);
    for (const Isa isa : {Isa::base, Isa::avx2, Isa::avx512}) {
        if (isa > best_isa()) break;
        Cpu dev(1, isa);
        const PackedModel panels(dev, c.config, model.tensors, WeightType::fp32);
        for (const PackedModel* packed : {static_cast<const PackedModel*>(nullptr), &panels}) {
            const std::vector<double> found = c.logits<Cpu, float>(dev, model.tensors, model.scales, packed);
            require(max_difference(found.data(), exact.logits.data(), found.size()) <= exact.allowed, isa_name(isa));
        }
    }
    return 0;
}

}  // namespace tapernorm
