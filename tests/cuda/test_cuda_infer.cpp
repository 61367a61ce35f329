// infer on a GPU, as a user runs it: the loss of a text, many prompts at a time; and bench_infer's table.
#ifdef TN_CUDA
#include <doctest/doctest.h>

#include <cmath>

#include "tests/cuda/cuda_test.h"
#include "tests/run_program.h"

namespace tapernorm {

namespace {

// A folder with model.bin, of T tokens of context, made on the CPU.
struct ModelFolder : Workplace {
    explicit ModelFolder(size_t T) {
        run("train_gpt",
            "-i corpus.txt -b 1 -x 2 --gate-warmup 1 --gate-end 2 --n-layer 1 --n-embd 16 --n-head 2 -v 0 "
            "--device cpu -t " +
                std::to_string(T));
    }
    std::string run(const std::string& program, const std::string& flags, int status = 0) const {
        std::vector<std::string> command = words(flags + " --threads 1");
        command.insert(command.begin(), gpu_program(program));
        const Outcome outcome = run_program_in(path, command);
        CHECK_MESSAGE(outcome.status == status, outcome.err);
        return status ? outcome.err : outcome.out;
    }
    double loss(const std::string& flags) const {
        const std::string out = run("infer", "model.bin --eval text.txt " + flags), key = "loss      ";
        REQUIRE(out.find(key) != std::string::npos);
        return std::stod(out.substr(out.find(key) + key.size()));
    }
};

}  // namespace

CUDA_TEST(
    "cuda infer: the loss of a text is the CPU's, the texts after prompts are the CPU's, and those of one by one") {
    const ModelFolder w(16);
    write_file(w.at("text.txt"), "Once upon a time, there was a cat.");
    const double loss = w.loss("--device cpu");
    CHECK(std::abs(w.loss("--device cuda --precision fp32") - loss) <= 2e-6);  // printed with 6 digits
    // A block of about 20 roundings of the stream at 2^-9, whose signs differ: as much of a logit, and so of the loss.
    CHECK(std::abs(w.loss("--device cuda") - loss) <= 20 * 0x1p-9 * loss);

    // The third prompt is as long as the context, and is read again from its second half while others go on.
    const std::vector<std::string> prompts = {"T", "The cat", "Once upon a time"};
    write_file(w.at("lines.txt"), "T\nThe cat\nOnce upon a time\n");
    // One by one with the streams that they have together.
    const std::string flags = "model.bin --device cuda --precision fp32 -n 10 ";
    const std::string all = w.run("infer", flags + "--prompts lines.txt --batch 2");
    CHECK(all == w.run("infer", "model.bin --device cpu -n 10 --prompts lines.txt"));
    std::string one_by_one;
    for (size_t i = 0; i < prompts.size(); i++) {
        write_file(w.at("line.txt"), prompts[i]);
        one_by_one += w.run("infer", flags + "--prompts line.txt --stream " + std::to_string(i + 1));
    }
    CHECK(all == one_by_one);
    const std::string refusal = w.run("infer", "model.bin --device cuda --weights int8 --last-token", 1);
    CHECK_MESSAGE(refusal.find("--weights int8") != std::string::npos, refusal);
}

CUDA_TEST("cuda infer --persistent: the same texts, and what it is not for") {
    const ModelFolder w(16);
    const std::string flags = "model.bin --device cuda --precision fp32 --prompt Once -n 20 --batch 3 --samples 3";
    CHECK(w.run("infer", flags + " --persistent") == w.run("infer", flags));
    CHECK(w.run("infer", "model.bin --device cuda --prompt Once --samples 5 --persistent", 1)
              .ends_with("\ninfer: error: --persistent: expected at most 4 texts at a time, found 5; use --batch 4\n"));
    CHECK(w.run("infer", "model.bin --device cpu --prompt Once --persistent", 1) ==
          "infer: error: --persistent: expected a GPU, found none (as --device says); leave it out\n");
    CHECK(
        w.run("infer", "model.bin --device cuda --last-token --persistent", 1).find("--persistent and --last-token") !=
        std::string::npos);
}

CUDA_TEST("cuda bench_infer: the table, with what one decoding step launches") {
    const ModelFolder w(3);  // decoding: one token after 2
    const std::string out = w.run("bench_infer", "model.bin --device cuda --seconds 0 --persistent");
    CAPTURE(out);
    CHECK(out.find("| explicit scaling | clamped | folded |") != std::string::npos);
    for (const char* row :
         {"| last-token logits, T 3, tokens/s | 4 |", "| decoding, ms per step (GB/s of weights) | 1 |",
          "| decoding, ms per step (GB/s of weights) | 16 |",
          "| decoding at temperature 0.8, ms per step (GB/s of weights) | 1 |",
          "| decoding by one kernel, ms per step (GB/s of weights) | 4 |",
          "| decoding by one kernel at temperature 0.8, ms per step (GB/s of weights) | 1 |"})
        CHECK(out.find(row) != std::string::npos);
    // Passes over the stream: the embedding, four a block for its two sums, and a site's matrix reads it: with its mean
    // once more. The final norm reads it twice for its statistics and once for its matrix.
    CHECK(out.find("| explicit scaling | 12 | 7 | 0 |") != std::string::npos);
    for (const char* row : {"| clamped | 10 | 7 | 0 |", "| folded | 10 | 7 | 0 |"})
        CHECK(out.find(row) != std::string::npos);
}

}  // namespace tapernorm
#endif  // TN_CUDA
