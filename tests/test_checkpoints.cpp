// Checksums and the row of a run's newest checkpoints.
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "io/checksum.h"
#include "runtime/error.h"
#include "tests/run_program.h"
#include "tests/temporary_folder.h"
#include "train/checkpoints.h"

namespace tapernorm::train {

namespace fs = std::filesystem;

namespace {

uint64_t checksum(const std::string& bytes) {
    Checksum sum;
    sum.add(bytes.data(), bytes.size());
    return sum.value();
}

void flip_byte(const std::string& path, size_t at) {
    std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    file.seekg(std::streamoff(at));
    const int old = file.get();
    file.seekp(std::streamoff(at)).put(char(old ^ 0x10));
}

// Writes a checkpoint whose content is `step`.
void save(Checkpoints& to, float step, size_t keep) {
    to.write({{"step", std::to_string(int(step))}}, {{"w", Dtype::F32, {1}, &step}}, keep);
}

// Opens what -y would; returns its step, and the note.
std::pair<std::string, std::string> resume(const std::string& path) {
    Checkpoints from(path);
    std::string note;
    const auto file = from.open_newest(note);
    return {file ? file->metadata().at("step") : "none", note};
}

}  // namespace

TEST_CASE("checksum: depends on every bit, on the length and not on the pieces") {
    std::set<uint64_t> seen;
    std::string bytes;
    for (size_t n = 0; n < 100; n++) {
        CHECK(seen.insert(checksum(bytes)).second);  // zeros of another number, too
        for (size_t bit = 0; bit < 8 * n; bit++) {
            std::string changed = bytes;
            changed[bit / 8] = char(changed[bit / 8] ^ 1 << bit % 8);
            CHECK(seen.insert(checksum(changed)).second);
        }
        bytes += '\0';
    }
    std::string text;
    for (int i = 0; i < 300; i++) text += char(i * 7);
    for (size_t piece : {1, 3, 31, 32, 33, 64, 100}) {
        Checksum sum;
        for (size_t at = 0; at < text.size(); at += piece) sum.add(text.data() + at, std::min(piece, text.size() - at));
        CHECK(sum.value() == checksum(text));
    }
    // Words that change places.
    std::string swapped = text;
    std::swap_ranges(swapped.begin(), swapped.begin() + 8, swapped.begin() + 32);
    CHECK(checksum(swapped) != checksum(text));
    std::swap_ranges(swapped.begin(), swapped.begin() + 32, swapped.begin() + 64);
    CHECK(checksum(swapped) != checksum(text));
}

TEST_CASE("safetensors: a checksum notices every changed byte of the file") {
    const TemporaryFolder folder;
    const std::string path = folder / "a.bin";
    const float w[] = {1, 2, 3};
    write_safetensors(path, {{"zzz", "\"checksum\":\"0000000000000000\""}}, {{"w", Dtype::F32, {3}, w}},
                      {.checksum = true});
    SafetensorsFile(path).verify();
    const size_t size = fs::file_size(path);
    for (size_t at = 0; at < size; at++) {
        flip_byte(path, at);
        CAPTURE(at);
        CHECK_THROWS_AS(SafetensorsFile(path).verify(), Error);
        flip_byte(path, at);
    }
    SafetensorsFile(path).verify();
    write_safetensors(path, {}, {{"w", Dtype::F32, {3}, w}});
    CHECK_THROWS_WITH_AS(SafetensorsFile(path).verify(), doctest::Contains("no checksum"), Error);
    // As Python's json writes it, with a blank: what other programs save again has no checksum that could be right.
    write_safetensors(path, {{"checksum", "0123456789abcdef"}}, {{"w", Dtype::F32, {3}, w}});
    std::string spaced = read_file(path);
    const size_t colon = spaced.find("\"checksum\":") + 11, blank = spaced.find(" ", colon);
    REQUIRE(blank != spaced.npos);  // padding
    spaced.erase(blank, 1), spaced.insert(colon, " ");
    write_file(path, spaced);
    CHECK_THROWS_WITH_AS(SafetensorsFile(path).verify(), doctest::Contains("another program or version saved it"),
                         Error);
}

TEST_CASE("checkpoints: the last K stay, and a damaged newest one falls back to the one before") {
    const TemporaryFolder folder;
    const std::string path = folder / "m.state.bin", one = folder / "m.state.1.bin", two = folder / "m.state.2.bin";
    CHECK(resume(path).first == "none");
    Checkpoints run(path);
    for (int step = 1; step <= 5; step++) save(run, float(step), 3);
    CHECK(resume(path) == std::pair<std::string, std::string>("5", ""));
    CHECK(resume(one).first == "4");
    CHECK(resume(two).first == "3");
    CHECK(!fs::exists(folder / "m.state.3.bin"));

    flip_byte(path, fs::file_size(path) - 1);
    const auto [step, note] = resume(path);
    CHECK(step == "4");
    for (const char* part : {"m.state.bin' is damaged", "checksum", "m.state.1.bin"})
        CHECK_MESSAGE(note.find(part) != std::string::npos, note);
    CHECK(note.find('\n') == std::string::npos);

    // The damaged one is replaced, and pushes out nothing.
    Checkpoints again(path);
    std::string ignored;
    again.open_newest(ignored);
    save(again, 6, 3);
    CHECK(resume(path).first == "6");
    CHECK(resume(one).first == "4");
    CHECK(resume(two).first == "3");
    save(again, 7, 2);  // and a smaller K drops the rest
    CHECK(resume(one).first == "6");
    CHECK(!fs::exists(two));

    // A crash between two renames: no newest one.
    fs::rename(one, two);
    fs::rename(path, one);
    CHECK(resume(path).first == "7");
    CHECK(resume(path).second.find("is missing") != std::string::npos);
    for (const std::string& file : {one, two}) std::ofstream(file) << "no checkpoint";
    CHECK_THROWS_AS(resume(path), Error);
}

TEST_CASE("checkpoints: a fresh run does not go back to an older run's") {
    const TemporaryFolder folder;
    const std::string path = folder / "state";
    Checkpoints old(path), fresh(path);
    for (int step = 1; step <= 4; step++) save(old, float(step), 4);
    CHECK(fs::exists(folder / "state.3"));
    save(fresh, 10, 4);
    CHECK(resume(path).first == "10");
    CHECK(!fs::exists(folder / "state.1"));
    CHECK(!fs::exists(folder / "state.3"));
    save(fresh, 11, 1);
    CHECK(!fs::exists(folder / "state.1"));
}

}  // namespace tapernorm::train
