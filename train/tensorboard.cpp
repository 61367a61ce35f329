#include "train/tensorboard.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>

#include "io/checksum.h"
#include "runtime/error.h"

namespace tapernorm::train {

namespace fs = std::filesystem;

namespace {

template <class T>
std::string bytes_of(T value) {  // little endian, as this program's machines are
    std::string bytes(sizeof value, '\0');
    std::memcpy(bytes.data(), &value, sizeof value);
    return bytes;
}

// Protobuf: a field is its number and wire type, then its value.
enum WireType { varint_type = 0, fixed64_type = 1, bytes_type = 2, fixed32_type = 5 };

std::string varint(uint64_t value) {
    std::string bytes;
    for (; value >= 0x80; value >>= 7) bytes += char(value | 0x80);
    return bytes + char(value);
}

std::string field(int number, WireType type, const std::string& value) {
    const std::string tag = varint(uint64_t(number) << 3 | uint64_t(type));
    return tag + (type == bytes_type ? varint(value.size()) : "") + value;
}

std::string masked_checksum(const std::string& bytes) {
    const uint32_t crc = crc32c(bytes.data(), bytes.size());
    return bytes_of((crc >> 15 | crc << 17) + 0xa282ead8u);
}

const std::string name_start = "events.out.tfevents.";

// A failure shows when a file in it is opened.
const std::string& made(const std::string& folder) {
    std::error_code ignored;
    fs::create_directories(folder, ignored);
    return folder;
}

}  // namespace

std::string next_event_file(const std::string& folder) {
    std::error_code ignored;
    unsigned long long last = 0;
    for (const auto& entry : fs::directory_iterator(folder, ignored))
        if (const std::string name = entry.path().filename().string(); name.starts_with(name_start))
            last =
                std::max(last, std::min(std::strtoull(name.c_str() + name_start.size(), nullptr, 10), 9999999998ull));
    return (fs::path(folder) / (name_start + strprintf("%010llu.train_gpt", last + 1))).string();
}

std::string TensorBoardLog::summary(const RunLog::Fields& fields) {
    std::string values;
    for (const auto& row : fields)
        std::visit(
            [&](const auto& number) {
                if constexpr (std::is_arithmetic_v<std::decay_t<decltype(number)>>)
                    values += field(1, bytes_type,
                                    field(1, bytes_type, row.first) + field(2, fixed32_type, bytes_of(float(number))));
            },
            row.second);
    return field(5, bytes_type, values);
}

std::string TensorBoardLog::event(double wall_time, size_t step, const std::string& what) {
    return field(1, fixed64_type, bytes_of(wall_time)) + field(2, varint_type, varint(step)) + what;
}

std::string TensorBoardLog::record(const std::string& data) {
    const std::string length = bytes_of(uint64_t(data.size()));
    return length + masked_checksum(length) + data + masked_checksum(data);
}

TensorBoardLog::TensorBoardLog(const std::string& folder, std::optional<size_t> resume_step)
    : file_(next_event_file(made(folder)), "TensorBoard file") {
    file_.open(true);
    write_event(0, field(3, bytes_type, "brain.Event:2"));
    write_event(resume_step.value_or(0) + 1, field(7, bytes_type, field(1, varint_type, varint(1))));  // START
}

void TensorBoardLog::write_event(size_t step, const std::string& what) {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    file_.append(record(event(std::chrono::duration<double>(now).count(), step, what)));
}

}  // namespace tapernorm::train
