// What torch.save writes, by hand: zip archives and pickles, good ones and those that no program should write.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tapernorm {

// Its bytes, the lowest first, as all numbers in these files have them.
template <class T>
std::string raw(T x) {
    return {reinterpret_cast<const char*>(&x), sizeof x};
}

// ---- zip (APPNOTE.TXT)

struct ZipEntry {
    std::string name, data;
    uint16_t method = 0, flags = 0;
};

struct ZipParts {
    std::vector<std::string> headers;  // of the directory, one for each entry
    std::string data, directory, end;
};

// zip64: sizes and places stand in the fields of Zip64, as in an archive of more than 4 GiB.
inline ZipParts zip_parts(const std::vector<ZipEntry>& entries, bool zip64) {
    ZipParts zip;
    for (const ZipEntry& e : entries) {
        const uint64_t place = zip.data.size(), size = e.data.size();
        const std::string wide = raw<uint16_t>(1) + raw<uint16_t>(24) + raw(size) + raw(size) + raw(place);
        const std::string extra = zip64 ? raw<uint32_t>(0x00004246) + wide : "";  // another program's field comes first
        const auto narrow = [&](uint64_t x) { return raw(zip64 ? UINT32_MAX : uint32_t(x)); };
        const std::string common = raw(e.flags) + raw(e.method) + raw<uint32_t>(0) + raw<uint32_t>(0) + narrow(size) +
                                   narrow(size) + raw(uint16_t(e.name.size()));
        zip.data += "PK\3\4" + raw<uint16_t>(0) + common + raw<uint16_t>(0) + e.name + e.data;
        zip.headers.push_back("PK\1\2" + raw<uint32_t>(0) + common + raw(uint16_t(extra.size())) +
                              std::string(10, '\0') + narrow(place) + e.name + extra);
        zip.directory += zip.headers.back();
    }
    const uint64_t count = entries.size(), size = zip.directory.size(), place = zip.data.size();
    if (zip64)
        zip.end = "PK\6\6" + raw<uint64_t>(44) + std::string(12, '\0') + raw(count) + raw(count) + raw(size) +
                  raw(place) + "PK\6\7" + raw<uint32_t>(0) + raw(place + size) + raw<uint32_t>(1);
    zip.end += "PK\5\6" + raw<uint32_t>(0) + raw(uint16_t(zip64 ? UINT16_MAX : count)) +
               raw(uint16_t(zip64 ? UINT16_MAX : count)) + raw(zip64 ? UINT32_MAX : uint32_t(size)) +
               raw(zip64 ? UINT32_MAX : uint32_t(place)) + raw<uint16_t>(0);
    return zip;
}

inline std::string zip_archive(const std::vector<ZipEntry>& entries, bool zip64 = false) {
    const ZipParts zip = zip_parts(entries, zip64);
    return zip.data + zip.directory + zip.end;
}

// ---- pickle, protocol 2

inline std::string pickled(std::string_view text) { return "X" + raw(uint32_t(text.size())) + std::string(text); }
inline std::string pickled(int64_t x) { return "\x8a\x08" + raw(x); }
inline std::string pickled_tuple(const std::vector<int64_t>& numbers) {
    std::string text = "(";
    for (const int64_t n : numbers) text += pickled(n);
    return text + "t";
}
inline std::string pickled_storage(const std::string& type, const std::string& key, int64_t numbers) {
    return "(" + pickled("storage") + "ctorch\n" + type + "\n" + pickled(key) + pickled("cpu") + pickled(numbers) +
           "tQ";
}
inline std::string pickled_tensor(const std::string& storage, int64_t offset, const std::vector<int64_t>& shape,
                                  const std::vector<int64_t>& strides) {
    return "ctorch._utils\n_rebuild_tensor_v2\n(" + storage + pickled(offset) + pickled_tuple(shape) +
           pickled_tuple(strides) + "\x89" + "ccollections\nOrderedDict\n)RtR";
}
// The dictionary of these names and values, one after the other.
inline std::string pickle_of(const std::string& items) {
    return "\x80\x02"
           "ccollections\nOrderedDict\n)R(" +
           items + "u.";
}

}  // namespace tapernorm
