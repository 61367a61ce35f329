// The log: what a reader of the lines may rely on, after a crash too.
#include <doctest/doctest.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

#include "tests/temporary_folder.h"
#include "train/run_log.h"

namespace tapernorm::train {

namespace fs = std::filesystem;

namespace {

void write_bytes(const std::string& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

std::string read_bytes(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

// What `f` writes to stderr.
template <class F>
std::string stderr_of(const std::string& path, F&& f) {
    std::fflush(stderr);
    const int saved = dup(2);
    FILE* file = std::fopen(path.c_str(), "w");
    REQUIRE(file != nullptr);
    dup2(fileno(file), 2);
    f();
    std::fflush(stderr);
    dup2(saved, 2);
    close(saved);
    std::fclose(file);
    return read_bytes(path);
}

}  // namespace

TEST_CASE("run log: one JSON object per line, written at once") {
    TemporaryFolder dir;
    const std::string path = dir / "model.log.jsonl";
    write_bytes(path, "from an older run\n");
    RunLog log(path);
    CHECK(read_bytes(path) == "");
    log.write(1, {{"loss", 0.1}, {"tokens", size_t(1) << 63}, {"delta", -3}, {"note", "a \"b\"\n\xff"}});
    CHECK(read_bytes(path) ==
          "{\"step\": 1, \"loss\": 0.1, \"tokens\": 9223372036854775808, \"delta\": -3, "
          "\"note\": \"a \\\"b\\\"\\n\xef\xbf\xbd\"}\n");
    log.write(2, {{"nan", std::nan("")}, {"inf", -INFINITY}, {"zero", -0.0}, {"one", 1.0}});
    CHECK(read_bytes(path).find("{\"step\": 2, \"nan\": null, \"inf\": null, \"zero\": -0, \"one\": 1}\n") > 1);
}

TEST_CASE("run log: numbers read back to the same bits") {
    TemporaryFolder dir;
    const std::string path = dir / "log";
    for (const double x : {1.0 / 3, 5e-324, std::numeric_limits<double>::max(), 1e22, 123456789.125, 0.1 + 0.2}) {
        RunLog(path).write(1, {{"x", x}});
        const std::string line = read_bytes(path);
        CHECK(std::strtod(line.c_str() + line.find("\"x\": ") + 5, nullptr) == x);
    }
}

TEST_CASE("run log: resuming drops later lines and a torn one") {
    TemporaryFolder dir;
    const std::string path = dir / "log";
    const std::string one = "{\"step\": 1, \"loss\": 3}\n", two = "{\"loss\": 2, \"step\": 2}\n";
    const std::string three = "{\"step\": 3, \"loss\": 1}\n", torn = "{\"step\": 2, \"lo";
    write_bytes(path, one + two + two + three + torn);
    RunLog(path, 2).write(3, {});
    CHECK(read_bytes(path) == one + two + two + "{\"step\": 3}\n");
    CHECK(!fs::exists(path + ".tapernorm-tmp"));
    write_bytes(path, one + "no JSON\n[]\n{\"step\": -1}\n{\"step\": \"1\"}\n\n" + two);
    RunLog(path, 2);
    CHECK(read_bytes(path).ends_with("\n" + two));  // only the end is looked at, however long the log is
    write_bytes(path, one + two + "no JSON\n[]\n{\"step\": -1}\n{\"step\": \"1\"}\n\n");
    RunLog(path, 2);
    CHECK(read_bytes(path) == one + two);
    RunLog(path, 0);
    CHECK(read_bytes(path) == "");
    RunLog(dir / "new", 5).write(6, {});
    CHECK(read_bytes(dir / "new") == "{\"step\": 6}\n");
    const std::string head = "{\"run\": \"0123\"}\n";
    RunLog(dir / "owned", std::nullopt, "0123").write(1, {});
    CHECK(read_bytes(dir / "owned") == head + "{\"step\": 1}\n");
    CHECK(run_of_log(dir / "owned") == "0123");
    RunLog(dir / "owned", 0, "0123").write(1, {});  // the head stays, and is not written twice
    CHECK(read_bytes(dir / "owned") == head + "{\"step\": 1}\n");
    for (const std::string other : {"", "no JSON\n", "{\"step\": 1}\n", "{\"run\": 1}\n", "[\"run\"]\n"}) {
        write_bytes(path, other);
        CHECK(run_of_log(path) == "");
    }
    CHECK(run_of_log(dir / "nowhere") == "");
}

TEST_CASE("run log: a log that cannot be written is one warning, and the run continues") {
    TemporaryFolder dir;
    std::string text = stderr_of(dir / "stderr", [&] {
        RunLog log(dir / "missing/log");
        log.write(1, {{"loss", 1.0}});
    });
    CHECK(text.find("warning: cannot write the log") == 0);
    CHECK(text.find("No such file") != std::string::npos);
    CHECK(text.find('\n') == text.size() - 1);
    text = stderr_of(dir / "stderr", [&] { RunLog(dir.path, 3).write(1, {}); });
    CHECK(text.find("is a directory") != std::string::npos);
    CHECK(text.find('\n') == text.size() - 1);
    if (fs::exists("/dev/full")) {  // a device on which every write finds the disk full
        text = stderr_of(dir / "stderr", [&] {
            RunLog log("/dev/full");
            for (size_t step = 1; step < 4; step++) log.write(step, {});
        });
        CHECK(text.find("No space left") != std::string::npos);
        CHECK(text.find('\n') == text.size() - 1);
    }
}

}  // namespace tapernorm::train
