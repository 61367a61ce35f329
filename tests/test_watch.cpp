// Watching a run: norms by layer in the log, the site that moved first, TensorBoard beside the log.
#include <doctest/doctest.h>

#include <cmath>

#include "tests/model_in.h"
#include "tests/read_log.h"
#include "tests/run_program.h"
#include "train/watch.cuh"

namespace tapernorm::train {

TEST_CASE("watch: the first site beyond the limit moved first; else the one that is furthest") {
    const double inf = INFINITY, nan = std::nan("");
    const std::vector<SiteScale> calm = {{"a", 1, 1}, {"b", 3, 2}, {"c", 1, 3}, {"d", 5, 4}};
    CHECK(which_moved_first(calm, 4) == "furthest off its scale is c: s(h) 1, calibrated at 3");
    CHECK(which_moved_first(calm, 1.2) == "the first site to leave its scale is b: s(h) 3, calibrated at 2");
    CHECK(which_moved_first({{"a", 1, 1}, {"b", 9, 2}, {"c", 90, 2}}, 4).find("leave its scale is b:") !=
          std::string::npos);
    CHECK(which_moved_first({{"a", 1, 1}, {"b", 0.1, 2}, {"c", nan, 2}}, 4).find("leave its scale is b:") !=
          std::string::npos);
    for (double bad : {nan, inf})
        CHECK(which_moved_first({{"a", 2, 1}, {"b", bad, 2}, {"c", bad, 2}}, 4) ==
              "the stream into b is the first that is not finite");
    // Without a calibration: -g norm, or before it.
    CHECK(which_moved_first({{"a", 2, 0}, {"b", 7, 0}, {"c", 3, 0}}, 4) == "the largest stream is that into b: s(h) 7");
    CHECK(which_moved_first({{"a", 2, 0}, {"b", 7, 0}, {"c", inf, 0}}, 4).starts_with("the stream into c"));
}

TEST_CASE("watch: --log-norms adds every tensor's gradient norm and every site's s(h), which fit the totals") {
    for (const std::string more : {" -g taper", " -g norm -d 64 -b 2 -r 2"}) {
        INFO(more);
        const Workplace plain, w;
        plain.ok(kTiny + more);
        w.ok(kTiny + more + " --log-norms 3 --tensorboard board/run");
        CHECK(model_in(w.at("model.bin")) == model_in(plain.at("model.bin")));  // looking changes nothing
        for (const auto& line : read_log(w.at("model.log.jsonl"))) {
            double squares = 0;
            size_t norms = 0, sites = 0;
            for (const auto& [key, value] : line.items()) {
                if (key.starts_with("grad_norm/")) norms++, squares += double(value) * double(value);
                if (key.starts_with("stream_scale/")) sites++;
            }
            const bool asked = int(line.at("step")) % 3 == 0;
            CHECK(sites == (asked ? 3 : 0));
            CHECK((norms > 15) == asked);
            if (!asked) continue;
            // Both are sums of the same squares in double, in another order.
            CHECK(std::sqrt(squares) == doctest::Approx(double(line.at("grad_norm"))).epsilon(1e-12));
            if (more == " -g taper")  // one micro-batch: the mean is over the same rows
                CHECK(line.at("stream_scale/transformer.ln_f") == line.at("stream_scale"));
        }
        CHECK(read_file(w.at("board/run/events.out.tfevents.0000000001.train_gpt"))
                  .find("grad_norm/transformer.wpe.weight") != std::string::npos);
    }
}

TEST_CASE("watch: a run that diverges or drifts names a site; TensorBoard's file may fail alone") {
    const Workplace w;
    const Outcome diverged = w.run(kTiny + " -l 1e30");
    CHECK_MESSAGE(diverged.err.find("the stream into transformer.h.0.ln_1 is the first that is not finite") !=
                      std::string::npos,
                  diverged.err);
    const std::string drifted = w.ok(kTiny + " -l 0.3 -u 0 -x 60 --clip 0 --scale-loss 0");
    CHECK_MESSAGE(drifted.find("; the first site to leave its scale is transformer.") != std::string::npos, drifted);
    CHECK_MESSAGE(drifted.find("--gate-warmup or a larger --scale-loss (0)") != std::string::npos, drifted);
    // On its way to a target of its own it has not drifted.
    const std::string steered = w.ok(kTiny + " --scale-target 100 --scale-loss 10 -x 60");
    CHECK_MESSAGE(steered.find("warning: s(h)") == std::string::npos, steered);
    // The last number there is, and a folder has it.
    const std::string file = "board/events.out.tfevents.9999999999.train_gpt";
    std::filesystem::create_directories(w.at(file));
    const Outcome alone = w.run(kTiny + " --tensorboard board");
    CHECK(alone.status == 0);
    CHECK_MESSAGE(alone.err.starts_with("warning: cannot write the TensorBoard file '" + file), alone.err);
    CHECK(std::count(alone.err.begin(), alone.err.end(), '\n') == 1);
}

}  // namespace tapernorm::train
