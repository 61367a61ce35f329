#include "io/safetensors.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "io/atomic_file.h"
#include "io/checksum.h"
#include "io/files.h"
#include "runtime/error.h"

namespace tapernorm {

namespace {

using nlohmann::json;

constexpr size_t kLengthBytes = 8;
constexpr size_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr size_t kAlignment = 64;                // the data section's, when we write it

// Reads the header event by event: only what the format defines is stored, and a header that nests deeper or holds anything
// else is rejected at that place.
class HeaderReader : public nlohmann::json_sax<json> {
  public:
    HeaderReader(const std::string& path, std::map<std::string, std::string>* metadata,
                 std::vector<TensorEntry>* entries)
        : path_(path), metadata_(metadata), entries_(entries) {}

    bool start_object(size_t) override {
        if (place_ == Place::outside) return go(Place::top);
        if (place_ == Place::metadata_object) return go(Place::metadata);
        if (place_ == Place::tensor_object) return go(Place::tensor);
        unexpected("an object");
    }
    bool end_object() override {
        if (place_ == Place::tensor) finish_tensor();
        return go(place_ == Place::top ? Place::outside : Place::top);
    }
    bool key(string_t& key) override {
        if (place_ == Place::top) return top_key(key);
        if (place_ == Place::metadata) {
            if (metadata_->count(key)) reject("metadata has %s twice", in_quotes(key).c_str());
            name_ = key;
            return go(Place::metadata_value);
        }
        const bool first = seen_.insert(key).second;
        if (!first) reject_tensor("has %s twice", in_quotes(key).c_str());
        if (key == "dtype") return go(Place::dtype);
        if (key == "shape") return go(Place::shape);
        if (key == "data_offsets") return go(Place::offsets);
        reject_tensor("has the key %s; expected dtype, shape and data_offsets", in_quotes(key).c_str());
    }
    bool string(string_t& value) override {
        if (place_ == Place::metadata_value) {
            metadata_->emplace(name_, value);
            return go(Place::metadata);
        }
        if (place_ != Place::dtype) unexpected("a string");
        if (const auto dtype = dtype_named(value)) {
            tensor_.dtype = *dtype;
            return go(Place::tensor);
        }
        reject_tensor("has the unknown dtype %s", in_quotes(value).c_str());
    }
    bool start_array(size_t) override {
        if (place_ == Place::shape) return go(Place::shape_list);
        if (place_ == Place::offsets) return go(Place::offset_list);
        unexpected("an array");
    }
    bool end_array() override { return go(Place::tensor); }
    bool number_unsigned(number_unsigned_t value) override {
        if (place_ == Place::shape_list) return tensor_.shape.push_back(value), true;
        if (place_ == Place::offset_list) return offsets_.push_back(value), true;
        unexpected("a number");
    }
    bool number_integer(number_integer_t) override { unexpected("a negative number"); }
    bool number_float(number_float_t, const string_t& text) override {
        unexpected(("the number " + in_quotes(text)).c_str());
    }
    bool null() override { unexpected("null"); }
    bool boolean(bool) override { unexpected("a truth value"); }
    bool binary(binary_t&) override { unexpected("binary data"); }
    bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
        reject("its header is not valid JSON at byte %zu", position);
    }

  private:
    enum class Place {
        outside,
        top,
        metadata_object,
        metadata,
        metadata_value,
        tensor_object,
        tensor,
        dtype,
        shape,
        shape_list,
        offsets,
        offset_list
    };

    bool go(Place place) { return place_ = place, true; }

    template <class... Args>
    [[noreturn]] void reject(const char* format, Args... args) {
        fail("%s is not a valid safetensors file: %s", in_quotes(path_).c_str(), strprintf(format, args...).c_str());
    }
    template <class... Args>
    [[noreturn]] void reject_tensor(const char* format, Args... args) {
        fail("%s is not a valid safetensors file: tensor %s %s", in_quotes(path_).c_str(), in_quotes(name_).c_str(),
             strprintf(format, args...).c_str());
    }
    [[noreturn]] void unexpected(const char* what) {
        switch (place_) {
            case Place::outside:
            case Place::top:
                reject("its header is %s; expected an object of tensors", what);
            case Place::metadata_object:
                reject("__metadata__ is %s; expected an object of strings", what);
            case Place::metadata:
            case Place::metadata_value:
                reject("metadata %s is %s; expected a string", in_quotes(name_).c_str(), what);
            case Place::tensor_object:
                reject_tensor("is %s; expected an object", what);
            case Place::tensor:
            case Place::dtype:
                reject_tensor("has %s as its dtype; expected a string", what);
            case Place::shape:
            case Place::shape_list:
                reject_tensor("has %s in its shape; expected a list of sizes", what);
            case Place::offsets:
            case Place::offset_list:
                reject_tensor("has %s in its data_offsets; expected [begin, end]", what);
        }
        reject("its header holds %s", what);
    }

    bool top_key(const std::string& key) {
        name_ = key;
        if (!names_.insert(key).second) reject_tensor("is listed twice");
        if (key == "__metadata__") return go(Place::metadata_object);
        seen_.clear();
        tensor_ = TensorEntry{key, Dtype::U8, {}, 0, 0};
        offsets_.clear();
        return go(Place::tensor_object);
    }

    void finish_tensor() {
        if (seen_.size() != 3) reject_tensor("lacks one of dtype, shape and data_offsets");
        if (offsets_.size() != 2) reject_tensor("has %zu data_offsets; expected [begin, end]", offsets_.size());
        tensor_.begin = offsets_[0], tensor_.end = offsets_[1];
        if (tensor_.begin > tensor_.end)
            reject_tensor("ends at byte %zu, before its begin at %zu", tensor_.end, tensor_.begin);
        size_t bytes;
        if (!tensor_bytes(tensor_.dtype, tensor_.shape, &bytes))
            reject_tensor("has a shape with more bytes than 64 bits can count");
        if (bytes != tensor_.end - tensor_.begin)
            reject_tensor("has %zu bytes of data; its shape and dtype %s need %zu", tensor_.end - tensor_.begin,
                          dtype_name(tensor_.dtype), bytes);
        entries_->push_back(std::move(tensor_));
    }

    const std::string& path_;
    std::map<std::string, std::string>* metadata_;
    std::vector<TensorEntry>* entries_;
    Place place_ = Place::outside;
    std::string name_;                    // the current tensor's or metadata's
    std::set<std::string> names_, seen_;  // keys of the header; keys of the current tensor
    TensorEntry tensor_ = {};
    std::vector<size_t> offsets_;
};

// The tensors must cover the data section exactly: a gap could hide bytes from the checks of other readers.
void check_layout(const std::string& path, const std::vector<TensorEntry>& entries, size_t data_bytes) {
    size_t at = 0;
    for (const TensorEntry& e : entries) {
        if (e.end > data_bytes)
            fail(
                "%s is not a valid safetensors file: tensor %s ends at byte %zu of the data, which has only %zu; the file is "
                "damaged or its copy is incomplete",
                in_quotes(path).c_str(), in_quotes(e.name).c_str(), e.end, data_bytes);
        if (e.begin != at)
            fail(
                "%s is not a valid safetensors file: tensor %s begins at byte %zu of the data; expected %zu (%s); the file "
                "is damaged",
                in_quotes(path).c_str(), in_quotes(e.name).c_str(), e.begin, at, e.begin < at ? "an overlap" : "a gap");
        at = e.end;
    }
    if (at != data_bytes)
        fail(
            "%s is not a valid safetensors file: its data section has %zu bytes, but its tensors fill %zu; the file is damaged",
            in_quotes(path).c_str(), data_bytes, at);
}

std::string json_string(const std::string& text) {
    // Bytes that are not UTF-8, such as in a path, must not prevent the saving of hours of training.
    return json(text).dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string make_header(const std::string& path, const std::map<std::string, std::string>& metadata,
                        const std::vector<TensorOut>& tensors, std::vector<size_t>* bytes) {
    std::set<std::string> names;
    std::string header = "{\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
        if (header.back() != '{') header += ',';
        header += json_string(key) + ":" + json_string(value);
    }
    header += "}";
    size_t begin = 0;
    for (const TensorOut& t : tensors) {
        const std::string name = json_string(t.name);
        if (t.name == "__metadata__" || !names.insert(name).second)
            fail("cannot write %s: the tensor name %s is used twice", in_quotes(path).c_str(),
                 in_quotes(t.name).c_str());
        size_t size, end;
        if (!tensor_bytes(t.dtype, t.shape, &size) || __builtin_add_overflow(begin, size, &end))
            fail("cannot write %s: tensor %s has a shape with more bytes than 64 bits can count",
                 in_quotes(path).c_str(), in_quotes(t.name).c_str());
        std::string shape = shape_text(t.shape);  // nlohmann's array would need memory in its destructor
        std::erase(shape, ' ');
        header += strprintf(",%s:{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}", name.c_str(),
                            dtype_name(t.dtype), shape.c_str(), begin, end);
        bytes->push_back(size);
        begin = end;
    }
    header += "}";
    header.resize((kLengthBytes + header.size() + kAlignment - 1) / kAlignment * kAlignment - kLengthBytes, ' ');
    if (header.size() > kMaxHeaderBytes)
        fail("cannot write %s: its header needs %zu bytes, but the format allows %zu", in_quotes(path).c_str(),
             header.size(), kMaxHeaderBytes);
    return header;
}

const std::string kNoChecksum(16, '0');

// The place of the digits of a header's checksum. (Within a JSON string the quotes would be escaped.)
size_t checksum_place(std::string_view header, const std::string& digits) {
    const std::string row = "\"checksum\":\"" + digits + "\"";
    const size_t found = header.find(row);
    return found == std::string_view::npos ? found : found + row.size() - 1 - digits.size();
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path, FileUse use) : TensorFile(path, use) {
    const std::string kind = kind_of_file({reinterpret_cast<const char*>(file_.data()), file_.size()});
    if (!kind.empty())
        fail(
            "%s is not a safetensors file: it is %s; name a model.bin or .safetensors file, or a folder of Hugging Face",
            in_quotes(path).c_str(), kind.c_str());
    if (file_.size() < kLengthBytes)
        fail("%s is not a safetensors file: it has %zu bytes, but the shortest has %zu; name another file",
             in_quotes(path).c_str(), file_.size(), kLengthBytes + 2);
    uint64_t length;
    std::memcpy(&length, file_.data(), sizeof length);
    const size_t rest = file_.size() - kLengthBytes;
    const unsigned char* header = file_.data() + kLengthBytes;
    if (length > 0 && rest > 0 && header[0] != '{')
        fail("%s is not a safetensors file: there is no JSON header at byte %zu; name a model.bin or .safetensors file",
             in_quotes(path).c_str(), kLengthBytes);
    if (length < 2 || length > kMaxHeaderBytes || length > rest)
        fail(
            "%s is not a valid safetensors file: its header should have %llu bytes, the file has %zu behind that number (and "
            "at most %zu are allowed); it is damaged or its copy is incomplete",
            in_quotes(path).c_str(), (unsigned long long)length, rest, kMaxHeaderBytes);

    HeaderReader reader(path_, &metadata_, &entries_);
    json::sax_parse(header, header + length, &reader);
    data_begin_ = kLengthBytes + size_t(length);
    // An empty tensor has the same offset as the next one and comes first.
    std::stable_sort(entries_.begin(), entries_.end(), [](const TensorEntry& a, const TensorEntry& b) {
        return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
    });
    check_layout(path, entries_, file_.size() - data_begin_);
    index();
}

constexpr const char* kGetAnother = "restore a copy of it, or have it written again";

void SafetensorsFile::verify() const {
    const auto stored = metadata_.find("checksum");
    const std::string_view header(reinterpret_cast<const char*>(file_.data()), data_begin_);
    const size_t place = stored == metadata_.end() ? std::string_view::npos : checksum_place(header, stored->second);
    if (place == std::string_view::npos)
        fail(
            "%s has no checksum where this program writes one: it is damaged, or another program or version saved it; %s",
            in_quotes(path_).c_str(), kGetAnother);
    Checksum sum;
    sum.add(file_.data(), place);
    sum.add(kNoChecksum.data(), kNoChecksum.size());
    const size_t rest = place + stored->second.size();
    sum.add(file_.data() + rest, file_.size() - rest);
    const std::string found = checksum_text(sum.value());
    if (found != stored->second)
        fail("%s is damaged, or another program saved it again: expected the checksum %s, found %s; %s",
             in_quotes(path_).c_str(), in_quotes(stored->second).c_str(), found.c_str(), kGetAnother);
}

SafetensorsImage::SafetensorsImage(const std::string& path, const std::map<std::string, std::string>& metadata,
                                   std::vector<TensorOut> tensors, bool checksum)
    : tensors_(std::move(tensors)) {
    auto with_checksum = metadata;
    if (checksum) with_checksum["checksum"] = kNoChecksum;
    header_ = make_header(path, with_checksum, tensors_, &bytes_);
    if (!checksum) return;
    const uint64_t length = header_.size();
    Checksum sum;
    sum.add(&length, sizeof length);
    sum.add(header_.data(), header_.size());
    for (size_t i = 0; i < tensors_.size(); i++) sum.add(tensors_[i].data, bytes_[i]);
    checksum_ = checksum_text(sum.value());
    header_.replace(checksum_place(header_, kNoChecksum), checksum_.size(), checksum_);
}

void SafetensorsImage::write(const std::string& path, size_t keep, const std::function<void()>& ready) const {
    const uint64_t length = header_.size();
    AtomicFile file(path);
    file.write(&length, sizeof length);
    file.write(header_.data(), header_.size());
    for (size_t i = 0; i < tensors_.size(); i++) file.write(tensors_[i].data, bytes_[i]);
    if (ready) ready();
    file.commit(keep);
}

void write_safetensors(const std::string& path, const std::map<std::string, std::string>& metadata,
                       const std::vector<TensorOut>& tensors, const WriteOptions& options) {
    SafetensorsImage(path, metadata, tensors, options.checksum).write(path, options.keep, options.ready);
}

void check_replaceable(const char* flag, const std::string& path, const char* what,
                       const std::function<bool(const SafetensorsFile&)>& ours) {
    struct stat info;
    if (stat(path.c_str(), &info) != 0) return;
    bool replaceable = false;
    try {
        replaceable = ours(SafetensorsFile(path, FileUse::own));
    } catch (const Error&) {
        // Not even a safetensors file.
    }
    if (!replaceable)
        fail("%s: %s exists and is not %s, which alone may be replaced; expected another name", flag,
             in_quotes(path).c_str(), what);
}

}  // namespace tapernorm
