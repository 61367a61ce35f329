// TensorBoard's event files, against bytes and numbers that were not made by this program. (dev/check_tensorboard.py reads
// one with TensorBoard itself.)
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "io/checksum.h"
#include "tests/temporary_folder.h"
#include "train/tensorboard.h"

namespace tapernorm::train {

namespace {

std::string read_bytes(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

// A record's data after its two checksums were checked; the record is taken from `file`.
std::string take_record(std::string& file) {
    auto masked = [](const std::string& bytes) {
        const uint32_t crc = crc32c(bytes.data(), bytes.size());
        return uint32_t(((crc >> 15) | (crc << 17)) + 0xa282ead8ul);
    };
    auto number = [&](size_t at) {
        uint32_t value;
        std::memcpy(&value, file.data() + at, sizeof value);
        return value;
    };
    REQUIRE(file.size() >= 16);
    const size_t length = number(0);
    CHECK(number(4) == 0);
    CHECK(number(8) == masked(file.substr(0, 8)));
    REQUIRE(file.size() >= 16 + length);
    const std::string data = file.substr(12, length);
    CHECK(number(12 + length) == masked(data));
    file.erase(0, 16 + length);
    return data;
}

// The wall time is whatever the clock says.
std::string without_wall_time(const std::string& event) {
    REQUIRE(event.size() >= 9);
    CHECK(event[0] == 0x09);
    return event.substr(9);
}

using namespace std::string_literals;

}  // namespace

TEST_CASE("tensorboard: CRC-32C's published values") {
    CHECK(crc32c("123456789", 9) == 0xe3069283);
    CHECK(crc32c("", 0) == 0);
    // RFC 3720, B.4
    std::string bytes(32, '\0');
    CHECK(crc32c(bytes.data(), 32) == 0x8a9136aa);
    std::memset(bytes.data(), 0xff, 32);
    CHECK(crc32c(bytes.data(), 32) == 0x62a8ab43);
    for (int i = 0; i < 32; i++) bytes[size_t(i)] = char(i);
    CHECK(crc32c(bytes.data(), 32) == 0x46dd794e);
    for (int i = 0; i < 32; i++) bytes[size_t(i)] = char(31 - i);
    CHECK(crc32c(bytes.data(), 32) == 0x113fdb5c);
}

TEST_CASE("tensorboard: an event, byte by byte") {
    // Field 1, 64 bits: 2.0. Field 2, varint: 300 = 0b10'0101100. Field 5, 24 bytes: a Summary of two Values (field 1),
    // each a tag (field 1) and a float (field 5 of wire types): 1.5 and -0.25.
    const std::string expected =
        "\x09\0\0\0\0\0\0\0\x40"s
        "\x10\xac\x02"s
        "\x2a\x18"s
        "\x0a\x0b"s
        "\x0a\x04loss"s
        "\x15\0\0\xc0\x3f"s
        "\x0a\x09"s
        "\x0a\x02lr"s
        "\x15\0\0\x80\xbe"s;
    CHECK(TensorBoardLog::event(2, 300, TensorBoardLog::summary({{"loss", 1.5}, {"note", "text"}, {"lr", -0.25}})) ==
          expected);
    CHECK(TensorBoardLog::event(0, 0, "") == "\x09\0\0\0\0\0\0\0\0\x10\0"s);
    // Whole numbers are floats, too; a long tag's length takes two bytes.
    const std::string tag(200, 'a');
    CHECK(TensorBoardLog::summary({{tag, size_t(3)}}) ==
          "\x2a\xd3\x01\x0a\xd0\x01\x0a\xc8\x01"s + tag + "\x15\0\0\x40\x40"s);
}

TEST_CASE("tensorboard: files follow one another, and each begins with the session's first step") {
    const TemporaryFolder folder;
    const std::string dir = folder / "new/board", name = dir + "/events.out.tfevents.00000000";
    TensorBoardLog(dir, std::nullopt).write(1, {{"x", 1.0}});
    std::string file = read_bytes(name + "01.train_gpt");
    CHECK(without_wall_time(take_record(file)) ==
          "\x10\0\x1a\x0d"s
          "brain.Event:2");
    CHECK(without_wall_time(take_record(file)) == "\x10\x01\x3a\x02\x08\x01"s);
    CHECK(without_wall_time(take_record(file)) == "\x10\x01\x2a\x0a\x0a\x08\x0a\x01x\x15\0\0\x80\x3f"s);
    CHECK(file.empty());

    TensorBoardLog(dir, 5);
    file = read_bytes(name + "02.train_gpt");
    take_record(file);
    CHECK(without_wall_time(take_record(file)) == "\x10\x06\x3a\x02\x08\x01"s);
    CHECK(file.empty());
    std::ofstream(dir + "/events.out.tfevents.1700000000.other") << "of another program";
    TensorBoardLog(dir, 5);
    CHECK(std::filesystem::exists(dir + "/events.out.tfevents.1700000001.train_gpt"));
}

}  // namespace tapernorm::train
