// Files of every version of the formats (tests/museum, made by tests/museum/make.sh): every later build must read them.
#include <doctest/doctest.h>

#include "tests/read_log.h"
#include "tests/run_program.h"

namespace tapernorm {

namespace {

// What one of the museum's folders holds, where programs may write.
struct Exhibit : Workplace {
    std::map<std::string, double> losses;  // nats per token on corpus.txt, by the program that wrote the folder

    explicit Exhibit(const std::filesystem::path& folder) {
        std::filesystem::copy(folder, path,
                              std::filesystem::copy_options::recursive |
                                  std::filesystem::copy_options::overwrite_existing);
        std::ifstream lines(at("losses.txt"));
        std::string model;
        for (double loss; lines >> model >> loss;) losses[model] = loss;
    }
    double loss_of(const std::string& model) const {
        const std::string out = ok("infer " + model + " --eval corpus.txt"), key = "\nloss ";
        const size_t found = out.find(key);
        REQUIRE(found != std::string::npos);
        return std::stod(out.substr(found + key.size()));
    }
};

}  // namespace

TEST_CASE("museum: the files of every version of the formats are read, run, folded and resumed") {
    size_t folders = 0;
    for (const auto& entry : std::filesystem::directory_iterator("tests/museum")) {
        if (!entry.is_directory()) continue;
        folders++;
        CAPTURE(entry.path().string());
        const Exhibit w(entry.path());
        REQUIRE(w.losses.size() == 2);
        std::filesystem::rename(w.at("model.state.bin"), w.at("state"));  // beside a later model infer would warn
        for (const auto& [model, loss] : w.losses) {
            CHECK(w.loss_of(model) == doctest::Approx(loss).epsilon(1e-5));
            CHECK(w.ok("infer " + model + " --prompt The -n 4 --top-k 1").starts_with("model "));
        }
        w.ok("fold model.bin again.bin");
        CHECK(w.loss_of("again.bin") == doctest::Approx(w.losses.at("folded.bin")).epsilon(1e-5));

        // The state is that of update 4 of 7: from there to the model that is here, the log's lines behind it once more.
        // (The gradient of some tensors is rounding alone, which AdamW makes large: the losses are compared, not they.)
        std::filesystem::rename(w.at("state"), w.at("model.state.bin"));
        const auto log = read_log(w.at("model.log.jsonl"));
        CHECK(w.run("train_gpt -y").err.find("is not what the run was trained on") == std::string::npos);
        CHECK(w.loss_of("model.bin") == doctest::Approx(w.losses.at("model.bin")).epsilon(1e-5));
        CHECK(read_log(w.at("model.log.jsonl")).size() == log.size());
    }
    CHECK(folders > 0);
}

TEST_CASE("museum: only models of version 1 of their format may lack the checksum") {
    const Workplace w;
    for (const std::string number : {"1", "2", "3"}) {
        std::string model = read_file("tests/museum/" + number + "/model.bin");
        const size_t key = model.find("\"checksum\":");
        CHECK((key == model.npos) == (number == "1"));
        if (key != model.npos) model[key + 3] ^= 1;
        write_file(w.at("model.bin"), model);
        if (number == "3")
            w.refused("infer model.bin -n 1", {"'model.bin' has no checksum"});
        else
            w.ok("infer model.bin -n 1");
    }
}

}  // namespace tapernorm
