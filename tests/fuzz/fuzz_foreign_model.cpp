// A Hugging Face GPT-2: config.json, then model.safetensors, cut at a byte 0xff; or a checkpoint of llm.c, by its magic number.
// Letters in front of config.json say what else is in the folder: an index (i; before config.json, cut at 0xff), an adapter (a),
// PyTorch's own file (p), a tokenizer (t), a broken one (v); or that the weights are not (n).
#include <filesystem>

#include "io/output_folder.h"
#include "model/model_file.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/safetensors_mutator.h"

namespace tapernorm {

namespace {

namespace fs = std::filesystem;

size_t count_letters(std::string_view input) { return std::min(input.find_first_not_of("aiptvn"), input.size()); }

// Where the weights begin.
size_t end_of_config(std::string_view input) {
    size_t cuts = input.substr(0, count_letters(input)).find('i') == input.npos ? 1 : 2, at = 0;
    while (cuts-- > 0 && at < input.size()) at = std::min(input.find('\xff', at), input.size() - 1) + 1;
    return at;
}

void write_folder(std::string_view input, const std::string& folder) {
    const std::string_view letters = input.substr(0, count_letters(input));
    const auto has = [&](char letter) { return letters.find(letter) != letters.npos; };
    const std::string_view config = input.substr(letters.size(), end_of_config(input) - letters.size());
    const auto part = parts(config, 2);
    if (has('i')) file_with(part[0], "model.safetensors.index.json");
    file_with(has('i') ? part[1].substr(0, part[1].size() - part[1].ends_with('\xff')) : part[0], "config.json");
    const std::string weights = safetensors_bytes(input.substr(end_of_config(input)));
    if (!has('n'))
        file_with(weights, has('i') ? "one.safetensors" : has('p') ? "pytorch_model.bin" : "model.safetensors");
    if (has('a')) file_with("{}", "adapter_config.json");
    if (has('v')) file_with("[1]", "vocab.json"), file_with("", "merges.txt");
    if (!has('t')) return;
    OutputFolder files(folder);
    Tokenizer().save(files);
    files.keep();
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
    return mutate_safetensors(data, size, max_size, seed, end_of_config(as_text(data, size)));
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view input = as_text(data, size);
    const bool llmc = input.starts_with("\xc6\xd7\x34\x01");  // 20240326
    const std::string file = file_with(llmc ? input : "", "llmc.bin"), folder = fs::path(file).parent_path().string();
    if (!llmc) fs::remove(file), write_folder(input, folder);
    const int status = expect_clean([&] {
        Cpu dev(1, Isa::base);
        const auto model = load_model(dev, llmc ? file : folder);
        describe(model->info);
        const auto again = ModelFile::open(llmc ? file : folder);
        for (const auto& tensor : tensor_list(model->info.config, model->tensors)) {
            std::vector<double> numbers(tensor.spec.count());
            again->read(tensor.spec, numbers.data());
            require(std::equal(numbers.begin(), numbers.end(), tensor.data,
                               [](double exact, float rounded) { return float(exact) == rounded; }),
                    "other numbers in double");
        }
    });
    for (const auto& entry : fs::directory_iterator(folder)) fs::remove(entry.path());
    return status;
}

}  // namespace tapernorm
