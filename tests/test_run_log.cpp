// The log: what a reader of the lines may rely on, after a crash too.
#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

#include "tests/errors.h"
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
        fs::remove(path);
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
    const std::string end = "{\"end\": \"complete\", \"updates\": 2}\n";
    for (const std::string& behind :
         {three + torn, three + three, torn, std::string("{"), end, three + end, end.substr(0, 9), end + three}) {
        write_bytes(path, one + two + behind);
        CHECK(stderr_of(dir / "stderr", [&] { RunLog(path, 2).write(3, {}); }) == "");
        CHECK(read_bytes(path) == one + two + "{\"step\": 3}\n");
    }
    CHECK(!fs::exists(path + ".tapernorm-tmp"));
    for (const std::string& log : {one + three + two, one + two.substr(0, two.size() - 1)}) {
        write_bytes(path, log);
        CHECK(stderr_of(dir / "stderr", [&] { RunLog(path, 2); }) == "");
        CHECK(read_bytes(path) == one + two);
    }
    RunLog(path, 0);
    CHECK(read_bytes(path) == "");
    CHECK(!fs::exists(dir / "log.1"));
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

TEST_CASE("run log: resuming keeps what is no record under another name, and says what is missing") {
    TemporaryFolder dir;
    const std::string path = dir / "a.log.jsonl", link = dir / "link";
    const std::string one = "{\"step\": 1, \"loss\": 3}\n", two = "{\"step\": 2}\n", five = "{\"step\": 5}\n";
    fs::create_symlink("a.log.jsonl", link);
    size_t kept = 0;
    const auto resumed = [&](const std::string& log, const std::string& as = "") {
        write_bytes(path, log);
        return stderr_of(dir / "stderr", [&] { RunLog(as.empty() ? path : as, 5); });
    };
    const auto old = [&] { return read_bytes(dir / ("a.log." + std::to_string(++kept) + ".jsonl")); };
    const std::string three_four = "{\"step\": 3}\n{\"step\": 4}\n", whole = one + two + three_four + five;
    for (const std::string& strange :
         {std::string("my notes\n"), std::string("\n"), std::string("[]\n"), std::string("{\"step\": \"1\"}\n"),
          std::string("{\"run\": \"0123\"}\n"), std::string(100, '\0') + "\n", std::string(3 << 20, '\0') + "\n",
          "{\"step\": 3}" + std::string(2 << 20, ' ') + "!\n", two}) {
        const std::string log = one + two + strange + three_four + five, said = resumed(log);
        CHECK_MESSAGE(contains(said,
                               "a.log.jsonl': lines left out because they are no records or repeat an update: 1 ("),
                      said);
        CHECK(said.find('\n') == said.size() - 1);
        CHECK(read_bytes(path) == whole);
        CHECK(old() == log);
    }
    for (const std::string& last : {std::string("my notes"), std::string(100, '\0')}) {
        CHECK(contains(resumed(whole + last, link), "repeat an update: 1 ("));
        CHECK(read_bytes(path) == whole);
        CHECK(old() == whole + last);
        CHECK(fs::is_symlink(link));
    }
    CHECK(contains(resumed(one + two + five), "no record: 2, the first of them 3\n"));
    CHECK(contains(resumed(one + two), "no record: 3, the first of them 3\n"));
    CHECK(resumed(five) == "");  // begun where there was none
    CHECK(contains(resumed(""), "no record: 5, the first of them 1\n"));
    CHECK(!fs::exists(dir / ("a.log." + std::to_string(kept + 1) + ".jsonl")));
    write_bytes(path, "{\"run\": \"0123\"}\n" + whole);
    CHECK(updates_in_log(path) == 5);
}

TEST_CASE("run log: nothing that has its name is replaced, written to or waited for") {
    TemporaryFolder dir;
    write_bytes(dir / "file", "a user's own");
    fs::create_symlink("file", dir / "link");
    fs::create_symlink("nowhere", dir / "dangling");
    REQUIRE(mkfifo((dir / "pipe").c_str(), 0600) == 0);
    for (const std::string name : {"file", "link", "dangling", "pipe"}) {
        const std::string text = stderr_of(dir / "stderr", [&] { RunLog(dir / name).write(1, {}); });
        CHECK_MESSAGE(contains(text, "something else has its name"), text);
    }
    CHECK(read_bytes(dir / "file") == "a user's own");
    CHECK(!fs::exists(dir / "nowhere"));
    CHECK(stderr_of(dir / "stderr", [&] { RunLog(dir / "pipe", 3).write(1, {}); }) != "");  // at once
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
    CHECK(text.find("something else has its name") != std::string::npos);
    CHECK(text.find('\n') == text.size() - 1);
    text = stderr_of(dir / "stderr", [&] {
        RunLog log(dir / "removed");
        log.write(1, {});
        fs::remove(dir / "removed");
        for (size_t step = 2; step < 4; step++) log.write(step, {});
    });
    CHECK(text ==
          "warning: cannot write the log '" + (dir / "removed") + "': it was removed; the run continues without it\n");
    // As on a disk that is full.
    struct rlimit before, limit;
    getrlimit(RLIMIT_FSIZE, &before), limit = before, limit.rlim_cur = 1000;
    const auto handler = std::signal(SIGXFSZ, SIG_IGN);
    text = stderr_of(dir / "stderr", [&] {
        RunLog log(dir / "log");
        setrlimit(RLIMIT_FSIZE, &limit);
        for (size_t step = 1; step < 4; step++) log.write(step, {{"note", std::string(900, 'a')}});
        setrlimit(RLIMIT_FSIZE, &before);
    });
    std::signal(SIGXFSZ, handler);
    CHECK(text.find("File too large") != std::string::npos);
    CHECK(text.find('\n') == text.size() - 1);
    CHECK(read_bytes(dir / "log").ends_with("aaa\"}\n"));
}

}  // namespace tapernorm::train
