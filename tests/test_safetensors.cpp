// The container of models and states: what a reader must reject, what a writer must never lose.
#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "io/atomic_file.h"
#include "io/safetensors.h"
#include "runtime/error.h"
#include "tests/errors.h"
#include "tests/temporary_folder.h"

namespace tapernorm {

namespace fs = std::filesystem;

namespace {

void write_bytes(const std::string& path, const std::string& bytes) {
    fs::remove(path);  // some file systems flush a file that is emptied and written again: slow in loops
    std::ofstream(path, std::ios::binary) << bytes;
}

std::string read_bytes(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

// A file from its parts, written by hand rather than by the writer under test.
std::string container(const std::string& header, const std::string& data) {
    std::string bytes(8, '\0');
    const uint64_t length = header.size();
    std::memcpy(bytes.data(), &length, 8);
    return bytes + header + data;
}

// The error of opening the file; "" if it opens. A message must be one line of printable text.
std::string open_error(const std::string& path) {
    try {
        SafetensorsFile file(path);
    } catch (const Error& e) {
        const std::string message = e.what();
        for (const char c : message) CHECK((unsigned char)(c) >= 0x20);
        CHECK(message.find(fs::path(path).filename().string()) != std::string::npos);
        return message;
    }
    return "";
}

}  // namespace

TEST_CASE("safetensors: a file written by hand is read as the format says") {
    TemporaryFolder dir;
    const std::string path = dir / "hand.bin";
    const float a[2] = {1.5f, -2.0f};
    std::string data(reinterpret_cast<const char*>(a), 8);
    data += std::string("\x80\x3f\x00\xc0", 4);  // bf16 1, -2
    data += std::string("\x00\x3c\x01\x00", 4);  // f16 1, 2^-24
    write_bytes(path, container(R"({"__metadata__":{"step":"7","note":"a\nb"},)"
                                R"("b":{"dtype":"BF16","shape":[2,1],"data_offsets":[8,12]},)"
                                R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                                R"("scalar":{"dtype":"F16","shape":[],"data_offsets":[12,14]},)"
                                R"("empty":{"dtype":"F32","shape":[0,5],"data_offsets":[12,12]},)"
                                R"("h":{"dtype":"F16","shape":[1],"data_offsets":[14,16]}}   )",
                                data));
    const SafetensorsFile file(path);
    CHECK(file.metadata().at("step") == "7");
    CHECK(file.metadata().at("note") == "a\nb");
    REQUIRE(file.entries().size() == 5);
    CHECK(file.entries()[0].name == "a");
    CHECK(file.entries()[1].name == "b");
    CHECK(file.entries()[1].shape == std::vector<size_t>{2, 1});
    CHECK(file.find("nothing") == nullptr);

    double x[2];
    file.read(*file.find("a"), x);
    CHECK((x[0] == 1.5 && x[1] == -2.0));
    file.read(*file.find("b"), x);
    CHECK((x[0] == 1.0 && x[1] == -2.0));
    float y = 0;
    file.read(*file.find("scalar"), &y);
    CHECK(y == 1.0f);
    file.read(*file.find("h"), &y);
    CHECK(y == 0x1p-24f);
    CHECK(file.find("empty")->count() == 0);
    file.read(*file.find("empty"), &y);
}

TEST_CASE("safetensors: what is written comes back, aligned, with the old file's permissions") {
    TemporaryFolder dir;
    const std::string path = dir / "model.bin";
    const std::vector<float> w = {1, 2, 3, -0.0f, std::numeric_limits<float>::infinity(), 6};
    const std::vector<double> m = {0.1, -1e300};
    const uint64_t position = 0x0123456789abcdefu;
    const std::vector<uint16_t> half = {bf16_from_float(3.0f)};
    const std::map<std::string, std::string> metadata = {{"norm", "layernorm"}, {"path", "caf\xc3\xa9 \"x\"\t\xff"}};
    const auto save = [&] {
        write_safetensors(path, metadata,
                          {{"w", Dtype::F32, {2, 3}, w.data()},
                           {"odd name \n\"\x01", Dtype::BF16, {1}, half.data()},
                           {"none", Dtype::F32, {0}, nullptr},
                           {"m", Dtype::F64, {2}, m.data()},
                           {"position", Dtype::U64, {}, &position}});
    };
    save();
    chmod(path.c_str(), 0640);
    save();
    struct stat info;
    REQUIRE(stat(path.c_str(), &info) == 0);
    CHECK((info.st_mode & 0777) == 0640);
    CHECK(!fs::exists(path + ".tapernorm-tmp"));

    const SafetensorsFile file(path);
    CHECK(file.metadata().at("norm") == "layernorm");
    CHECK(file.metadata().at("path") == "caf\xc3\xa9 \"x\"\t\xef\xbf\xbd");  // no UTF-8: replaced, not refused
    REQUIRE(file.entries().size() == 5);
    CHECK(uintptr_t(file.data(file.entries()[0])) % 64 == 0);
    std::vector<float> w2(6);
    file.read(*file.find("w"), w2.data());
    CHECK(std::memcmp(w.data(), w2.data(), 6 * sizeof(float)) == 0);
    std::vector<double> m2(2);
    file.read(*file.find("m"), m2.data());
    CHECK(m2 == m);
    float h = 0;
    file.read(*file.find("odd name \n\"\x01"), &h);
    CHECK(h == 3.0f);
    CHECK(std::memcmp(file.data(*file.find("position")), &position, 8) == 0);
    CHECK(contains(error_of([&] { file.read(*file.find("position"), m2.data()); }), "'position' has dtype U64"));
}

TEST_CASE("safetensors: bf16 and f16") {
    const auto f32 = [](uint32_t bits) { return std::bit_cast<float>(bits); };
    CHECK(bf16_from_float(1.0f) == 0x3f80);
    CHECK(bf16_from_float(f32(0x3f808000)) == 0x3f80);  // a tie, to even: down
    CHECK(bf16_from_float(f32(0x3f818000)) == 0x3f82);  // a tie, to even: up
    CHECK(bf16_from_float(f32(0x3f808001)) == 0x3f81);
    CHECK(bf16_from_float(f32(0x3f807fff)) == 0x3f80);
    CHECK(bf16_from_float(f32(0x7f7fffff)) == 0x7f80);  // the largest float rounds to infinity
    CHECK(bf16_from_float(f32(0xff800000)) == 0xff80);
    CHECK(bf16_from_float(-0.0f) == 0x8000);
    for (const uint32_t nan : {0x7f800001u, 0x7fc00000u, 0xffffffffu, 0xff800001u}) {
        const float back = float_from_bf16(bf16_from_float(f32(nan)));
        CHECK(std::isnan(back));
        CHECK(std::signbit(back) == (nan >> 31 == 1));
    }
    for (uint32_t bits = 0; bits < 65536; bits++) {
        const float x = float_from_bf16(uint16_t(bits));
        if (!std::isnan(x)) REQUIRE(bf16_from_float(x) == bits);

        const uint32_t exponent = bits >> 10 & 31, mantissa = bits & 1023;
        const double sign = bits >> 15 ? -1 : 1;
        const float half = float_from_f16(uint16_t(bits));
        if (exponent == 31) {
            REQUIRE((mantissa ? std::isnan(half) : double(half) == sign * INFINITY));
        } else {
            const double expected =
                exponent ? std::ldexp(1024.0 + mantissa, int(exponent) - 25) : std::ldexp(double(mantissa), -24);
            REQUIRE(double(half) == sign * expected);
            REQUIRE(std::signbit(half) == (bits >> 15 == 1));
        }
    }
}

TEST_CASE("safetensors: bad files are refused in one line that names the tensor") {
    TemporaryFolder dir;
    const std::string path = dir / "bad.bin";
    const auto error = [&](const std::string& header, size_t data_bytes) {
        write_bytes(path, container(header, std::string(data_bytes, 'x')));
        return open_error(path);
    };
    const std::string good = R"("w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
    CHECK(error("{" + good + "}", 8) == "");
    CHECK(error("{}", 0) == "");

    const struct {
        const char* header;
        size_t data_bytes;
        const char* expected;
    } cases[] = {
        {R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[0],"data_offsets":[8,8]}})",
         8, "'w' is listed twice"},
        {R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"v":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
         12, "overlap"},
        {R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"v":{"dtype":"U8","shape":[1],"data_offsets":[9,10]}})",
         10, "a gap"},
        {R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12, "a gap"},
        {R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 9, "fill 8"},
        {R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 7, "ends at byte 8"},
        {R"({"w":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8, "need 12"},
        {R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8, "before its begin"},
        {R"({"w":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}})", 0, "64 bits"},
        {R"({"w":{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,0]}})", 0, "shape"},
        {R"({"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}})", 0, "a negative number in its shape"},
        {R"({"w":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", 4, "'1.0' in its shape"},
        {R"({"w":{"dtype":"F32","shape":["2"],"data_offsets":[0,8]}})", 8, "a string in its shape"},
        {R"({"w":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}})", 8, "unknown dtype 'F33'"},
        {R"({"w":{"dtype":4,"shape":[2],"data_offsets":[0,8]}})", 8, "'w' has a number as its dtype"},
        {R"({"w":{"dtype":"F32","shape":[2]}})", 8, "lacks"},
        {R"({"w":{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}})", 8, "'shape' twice"},
        {R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"more":1}})", 8, "the key 'more'"},
        {R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,4,8]}})", 8, "3 data_offsets"},
        {R"({"w":{"dtype":"F32","shape":[[2]],"data_offsets":[0,8]}})", 8, "an array in its shape"},
        {R"({"w":[]})", 0, "'w' is an array"},
        {R"({"__metadata__":{"step":3}})", 0, "metadata 'step' is a number"},
        {R"({"__metadata__":{"step":{}}})", 0, "metadata 'step' is an object"},
        {R"({"__metadata__":{"a":"1","a":"2"}})", 0, "'a' twice"},
        {R"({"__metadata__":"x"})", 0, "__metadata__ is a string"},
        {R"({"a\u0007\nb":null})", 0, "'a\\x07\\x0ab' is null"},
        {R"({"w":)", 0, "not valid JSON"},
        {R"({} {})", 0, "not valid JSON"},
        {"{\"\xff\":{}}", 0, "not valid JSON"},
        {R"([])", 0, "no JSON header"},
    };
    for (const auto& c : cases) {
        const std::string message = error(c.header, c.data_bytes);
        CAPTURE(c.header);
        CAPTURE(message);
        CHECK(contains(message, c.expected));
    }

    const std::string deep = "{\"w\":" + std::string(1000000, '[');
    CHECK(contains(error(deep, 0), "'w' is an array"));
    const std::string long_name = "{\"" + std::string(1000000, 'n') + "\":1}";
    CHECK(error(long_name, 0).size() < 1000);

    for (const uint64_t length : {uint64_t(0), uint64_t(1), uint64_t(3), uint64_t(100'000'001), ~uint64_t(0)}) {
        std::string bytes = container("{}", "");
        std::memcpy(bytes.data(), &length, 8);
        write_bytes(path, bytes);
        CHECK(contains(open_error(path), "should have"));
    }
    CHECK(contains(open_error(dir / "missing.bin"), "No such file"));
    CHECK(contains(open_error(dir.path), "it is a directory"));
    CHECK(contains(open_error("/dev/null"), "not a regular file"));
}

TEST_CASE("safetensors: every damaged header and every truncation is refused or harmless") {
    TemporaryFolder dir;
    const std::string path = dir / "damaged.bin";
    const float w[3] = {1, 2, 3};
    const uint8_t b[4] = {1, 2, 3, 4};
    write_safetensors(path, {{"k", "v"}}, {{"w", Dtype::F32, {3}, w}, {"b", Dtype::U8, {2, 2}, b}});
    const std::string whole = read_bytes(path);
    REQUIRE(whole.size() % 64 == 16);

    for (size_t n = 0; n < whole.size(); n++) {
        write_bytes(path, whole.substr(0, n));
        REQUIRE(open_error(path) != "");
    }
    // A changed letter of a name leaves a valid file. Whatever opens must lie within the file, so read all of
    // it.
    size_t refused = 0, opened = 0;
    for (size_t i = 0; i < whole.size() - 16; i++) {
        for (const int change : {0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff}) {
            std::string damaged = whole;
            damaged[i] = char(damaged[i] ^ change);
            write_bytes(path, damaged);
            if (open_error(path) != "") {
                refused++;
                continue;
            }
            opened++;
            const SafetensorsFile file(path);
            size_t covered = 0;
            unsigned sum = 0;
            for (const TensorEntry& e : file.entries()) {
                covered += e.end - e.begin;
                for (size_t k = 0; k < e.end - e.begin; k++) sum += file.data(e)[k];
                std::vector<float> values(e.count());
                if (e.dtype == Dtype::F32) file.read(e, values.data());
            }
            REQUIRE(covered == 16);
            REQUIRE(sum > 0);
        }
    }
    CHECK(refused > opened);
    CHECK(opened > 0);
}

TEST_CASE("safetensors: a failed write leaves the old file and no temporary") {
    TemporaryFolder dir;
    const std::string path = dir / "model.bin";
    const std::vector<float> w(100000, 1.0f);
    write_safetensors(path, {}, {{"w", Dtype::F32, {10}, w.data()}});
    const std::string before = read_bytes(path);

    // A limit on the file's size stands in for a full disk: both make write() fail half-way.
    struct rlimit old_limit;
    REQUIRE(getrlimit(RLIMIT_FSIZE, &old_limit) == 0);
    const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
    const struct rlimit small = {64 * 1024, old_limit.rlim_max};
    REQUIRE(setrlimit(RLIMIT_FSIZE, &small) == 0);
    const std::string message =
        error_of([&] { write_safetensors(path, {}, {{"w", Dtype::F32, {w.size()}, w.data()}}); });
    setrlimit(RLIMIT_FSIZE, &old_limit);
    std::signal(SIGXFSZ, old_handler);

    CHECK(contains(message, path));
    CHECK(contains(message, "File too large"));
    CHECK(contains(message, "untouched"));
    CHECK(read_bytes(path) == before);
    CHECK(!fs::exists(path + ".tapernorm-tmp"));

    CHECK(contains(error_of(
                       [&] { write_safetensors(path, {}, {{"w", Dtype::U8, {1}, "a"}, {"w", Dtype::U8, {1}, "b"}}); }),
                   "'w' is used twice"));
    CHECK(read_bytes(path) == before);
}

TEST_CASE("safetensors: check_writable finds early what a save would find late") {
    TemporaryFolder dir;
    const std::string path = dir / "model.bin";
    check_writable(path);
    CHECK(fs::is_empty(dir.path));
    CHECK(contains(error_of([&] { check_writable(dir.path); }), "it is a directory"));
    CHECK(contains(error_of([&] { check_writable(dir / "new/"); }), "names a directory"));
    CHECK(contains(error_of([&] { check_writable(dir / "missing/model.bin"); }), "mkdir -p"));
    CHECK(contains(error_of([&] { check_writable(""); }), "without a name"));
    CHECK(contains(error_of([&] { check_writable("/dev/null"); }), "are devices"));
    write_bytes(path, "old");
    CHECK(contains(error_of([&] { check_writable(path + "/model.bin"); }), "Not a directory"));
    check_writable(path);
    CHECK(read_bytes(path) == "old");
    CHECK(!fs::exists(path + ".tapernorm-tmp"));
    if (geteuid() != 0) {  // root may write anything
        chmod(path.c_str(), 0444);
        CHECK(contains(error_of([&] { check_writable(path); }), "write-protected"));
        chmod(path.c_str(), 0644);
        chmod(dir.path.c_str(), 0555);
        CHECK(contains(error_of([&] { check_writable(dir / "other.bin"); }), "Permission denied"));
        chmod(dir.path.c_str(), 0755);
    }
    {
        AtomicFile writer(path);
        check_writable(path);  // it will be done before long
        CHECK(contains(error_of([&] { AtomicFile(path, 0.01); }), "another process is still writing it"));
        write_bytes(path + ".tmp", "a user's own");
        writer.write("new", 3);
        std::thread second([&] {  // waits for the first
            AtomicFile next(path);
            next.write("the next", 8);
            next.commit();
        });
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        writer.commit();
        second.join();
    }
    CHECK(read_bytes(path) == "the next");
    CHECK(read_bytes(path + ".tmp") == "a user's own");

    write_bytes(path + ".tapernorm-tmp", "left by a crash, longer than what follows");
    AtomicFile again(path);
    again.write("newer", 5);
    again.commit();
    CHECK(read_bytes(path) == "newer");

    fs::create_symlink(path, dir / "link.bin");
    AtomicFile through(dir / "link.bin");
    through.write("by link", 7);
    through.commit();
    CHECK(read_bytes(path) == "by link");
    CHECK(fs::is_symlink(dir / "link.bin"));
    fs::create_symlink(dir / "nowhere", dir / "broken.bin");
    CHECK(contains(error_of([&] { check_writable(dir / "broken.bin"); }), "symbolic link"));
}

}  // namespace tapernorm
