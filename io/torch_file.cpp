#include "io/torch_file.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "io/terminal.h"
#include "runtime/error.h"

namespace tapernorm {

using namespace std::string_view_literals;

namespace {

constexpr std::string_view kZip = "PK\3\4"sv;
// A pickle (protocol 2) of the number 0x1950a86a20f9469cfc6c.
constexpr std::string_view kBefore16 = "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"sv;
constexpr size_t kLongestPickle = 4 << 20;  // about 5 kB for a layer of GPT-2
constexpr size_t kMostDimensions = 8;
constexpr size_t kLongestKey = 20;  // a number

template <class... Args>
[[noreturn]] void reject(const std::string& path, const char* format, Args... args) {
    fail("%s is not a file of tensors as torch.save writes it: %s", in_quotes(path).c_str(),
         strprintf(format, args...).c_str());
}

template <class T>
T number_at(std::string_view bytes, size_t at) {
    T x;
    std::memcpy(&x, bytes.data() + at, sizeof x);
    return x;
}

// The table of a zip archive (APPNOTE.TXT 6.3), every entry of which lies in the file; no two overlap.
class Archive {
  public:
    struct Entry {
        std::string_view name;
        size_t header, begin, bytes;  // where its local header begins, and its data
    };

    Archive(const std::string& path, std::string_view file) : path_(path), file_(file) {
        const Directory directory = find_directory();
        size_t at = directory.begin;
        for (size_t i = 0; i < directory.entries; i++) at = read_entry(at, directory);
        check_places(directory);
    }

    const std::vector<Entry>& entries() const { return entries_; }
    const Entry* find(std::string_view name) const {
        const auto found = index_.find(name);
        return found == index_.end() ? nullptr : &entries_[found->second];
    }
    std::string_view data(const Entry& entry) const { return file_.substr(entry.begin, entry.bytes); }

  private:
    struct Directory {
        size_t begin, end, entries;
    };

    template <class... Args>
    [[noreturn]] void damaged(const char* format, Args... args) const {
        reject(path_, "%s; it is damaged or its copy is incomplete", strprintf(format, args...).c_str());
    }

    bool has(size_t at, std::string_view magic, size_t bytes) const {
        return at <= file_.size() && bytes <= file_.size() - at && file_.substr(at).starts_with(magic);
    }

    Directory find_directory() const {
        constexpr size_t kEnd = 22, kLocator = 20, kEnd64 = 56, kLongestComment = 0xffff;
        if (file_.size() < kEnd) damaged("the archive has only %zu bytes", file_.size());
        size_t at = file_.size() - kEnd;
        const size_t last = at - std::min(at, kLongestComment);
        while (at > last && !has(at, "PK\5\6"sv, kEnd)) at--;
        if (!has(at, "PK\5\6"sv, kEnd)) damaged("the archive has no directory at its end");
        Directory d{number_at<uint32_t>(file_, at + 16), number_at<uint32_t>(file_, at + 12),
                    number_at<uint16_t>(file_, at + 10)};
        size_t limit = at;
        if (at >= kLocator && has(at - kLocator, "PK\6\7"sv, kLocator)) {  // Zip64
            const uint64_t end64 = number_at<uint64_t>(file_, at - kLocator + 8);
            if (end64 > at - kLocator || !has(end64, "PK\6\6"sv, kEnd64))
                damaged("its Zip64 end record should begin at byte %llu, and does not", (unsigned long long)end64);
            d = {number_at<uint64_t>(file_, end64 + 48), number_at<uint64_t>(file_, end64 + 40),
                 number_at<uint64_t>(file_, end64 + 32)};
            limit = end64;
        }
        if (d.begin > limit || d.end > limit - d.begin)
            damaged("its directory of %zu bytes at byte %zu does not fit into the archive", d.end, d.begin);
        d.end += d.begin;
        return d;
    }

    // Returns where the next one begins.
    size_t read_entry(size_t at, const Directory& directory) {
        constexpr size_t kHeader = 46, kLocalHeader = 30;
        if (at > directory.end || directory.end - at < kHeader || !has(at, "PK\1\2"sv, kHeader))
            damaged("entry %zu of %zu is missing in the archive's directory", entries_.size() + 1, directory.entries);
        const size_t name_bytes = number_at<uint16_t>(file_, at + 28), extra = number_at<uint16_t>(file_, at + 30);
        const size_t next = at + kHeader + name_bytes + extra + number_at<uint16_t>(file_, at + 32);
        if (next > directory.end)
            damaged("entry %zu of the archive's directory goes beyond its end", entries_.size() + 1);
        const std::string_view name = file_.substr(at + kHeader, name_bytes);
        const std::string quoted = in_quotes(name);
        size_t packed = number_at<uint32_t>(file_, at + 20), bytes = number_at<uint32_t>(file_, at + 24),
               header = number_at<uint32_t>(file_, at + 42);
        read_zip64(file_.substr(at + kHeader + name_bytes, extra), quoted, {&bytes, &packed, &header});
        if (number_at<uint16_t>(file_, at + 8) & 1) reject(path_, "its entry %s is encrypted", quoted.c_str());
        if (number_at<uint16_t>(file_, at + 10) != 0)
            reject(
                path_,
                "its entry %s is compressed; expected it stored as it is; unzip the file and zip it again with zip -0 -r",
                quoted.c_str());
        if (packed != bytes)
            damaged("its entry %s has %zu bytes in the archive and %zu outside it", quoted.c_str(), packed, bytes);
        if (header > directory.begin || directory.begin - header < kLocalHeader || !has(header, kZip, kLocalHeader))
            damaged("its entry %s should begin at byte %zu, and does not", quoted.c_str(), header);
        const size_t own_name = number_at<uint16_t>(file_, header + 26);
        const size_t begin = header + kLocalHeader + own_name + number_at<uint16_t>(file_, header + 28);
        if (begin > directory.begin || bytes > directory.begin - begin)
            damaged("its entry %s ends at byte %zu + %zu, beyond the archive's data", quoted.c_str(), begin, bytes);
        if (file_.substr(header + kLocalHeader, own_name) != name)
            damaged("its entry %s has another name at byte %zu", quoted.c_str(), header);
        if (!index_.emplace(name, entries_.size()).second) damaged("its entry %s is there twice", quoted.c_str());
        entries_.push_back({name, header, begin, bytes});
        return next;
    }

    // Sizes that do not fit 32 bits stand in a field of their own, in this order.
    void read_zip64(std::string_view extra, const std::string& quoted, std::initializer_list<size_t*> sizes) const {
        size_t field = 0, length = 0;
        for (size_t at = 0; extra.size() - at >= 4; at += 4 + length) {
            length = number_at<uint16_t>(extra, at + 2);
            if (length > extra.size() - at - 4) break;
            if (number_at<uint16_t>(extra, at) == 1) {
                field = at + 4;
                break;
            }
        }
        size_t used = 0;
        for (size_t* size : sizes) {
            if (*size != 0xffffffff) continue;
            if (field == 0 || length - used < 8) damaged("its entry %s has no size in the archive", quoted.c_str());
            *size = number_at<uint64_t>(extra, field + used);
            used += 8;
        }
    }

    void check_places(const Directory& directory) const {
        std::vector<std::pair<size_t, size_t>> places;
        for (const Entry& e : entries_) places.emplace_back(e.header, e.begin + e.bytes);
        places.emplace_back(directory.begin, directory.end);
        std::sort(places.begin(), places.end());
        for (size_t i = 1; i < places.size(); i++)
            if (places[i].first < places[i - 1].second)
                damaged("an entry begins at byte %zu, within the one before it", places[i].first);
    }

    const std::string& path_;
    std::string_view file_;
    std::vector<Entry> entries_;
    std::map<std::string_view, size_t> index_;
};

enum class Kind : uint8_t { none, boolean, number, real, text, tuple, dictionary, function, storage, tensor };
constexpr const char* kKindNames[] = {"None",    "a truth value", "a whole number", "a number",  "a text",
                                      "a tuple", "a dictionary",  "a function",     "a storage", "a tensor"};

enum class Call : uint8_t { dictionary, tensor, parameter, storage };
struct Function {
    std::string_view module, name;
    Call call;
    Dtype dtype;
};
constexpr Function kFunctions[] = {
    {"collections", "OrderedDict", Call::dictionary, {}},
    {"torch._utils", "_rebuild_tensor_v2", Call::tensor, {}},
    {"torch._utils", "_rebuild_parameter", Call::parameter, {}},
    {"torch", "FloatStorage", Call::storage, Dtype::F32},
    {"torch", "HalfStorage", Call::storage, Dtype::F16},
    {"torch", "BFloat16Storage", Call::storage, Dtype::BF16},
    {"torch", "DoubleStorage", Call::storage, Dtype::F64},
    {"torch", "LongStorage", Call::storage, Dtype::I64},
    {"torch", "IntStorage", Call::storage, Dtype::I32},
    {"torch", "ShortStorage", Call::storage, Dtype::I16},
    {"torch", "CharStorage", Call::storage, Dtype::I8},
    {"torch", "ByteStorage", Call::storage, Dtype::U8},
    {"torch", "BoolStorage", Call::storage, Dtype::BOOL},
};

// The stack machine of pickle, protocol 2, as far as it makes dictionaries of tensors. Values have a fixed size and refer to
// others by their numbers: what is shared is never copied, and nothing is walked through recursively.
class Pickle {
  public:
    Pickle(const std::string& path, const Archive& archive, const std::string& folder)
        : path_(path), archive_(archive), folder_(folder), bytes_(archive.data(*archive.find(folder + "/data.pkl"))) {
        if (bytes_.size() > kLongestPickle)
            reject(path_, "its data.pkl has %zu bytes; expected at most %zu; no list of tensors needs more",
                   bytes_.size(), kLongestPickle);
    }

    std::vector<TensorEntry> tensors() {
        const uint32_t root = run();
        if (values_[root].kind != Kind::dictionary)
            reject(path_,
                   "it holds %s; expected the dictionary of a model's tensors: torch.save(model.state_dict(), ...)",
                   kind_name(root));
        std::vector<TensorEntry> list;
        std::set<std::string_view> names;
        for (const Pair& pair : pairs_) {
            if (pair.dictionary != root) continue;
            if (values_[pair.key].kind != Kind::text)
                reject(path_, "a name in its dictionary is %s; expected a text", kind_name(pair.key));
            const std::string_view name = text(pair.key);
            if (values_[pair.value].kind != Kind::tensor)
                reject(path_, "its %s is %s; expected nothing but tensors: torch.save(model.state_dict(), ...)",
                       in_quotes(name).c_str(), kind_name(pair.value));
            if (!names.insert(name).second) reject(path_, "its tensor %s is there twice", in_quotes(name).c_str());
            const Tensor& t = tensors_[values_[pair.value].a];
            list.push_back({std::string(name), t.dtype, numbers(t.shape), t.begin, t.end});
        }
        return list;
    }

  private:
    struct Value {
        Kind kind;
        // boolean, number: a, the bits; text: a, b, its place and length; tuple: a, b, its place and number in items_; function:
        // a, its row in the table; storage, tensor: a, its place in the list
        uint64_t a, b;
    };
    struct Pair {
        uint32_t dictionary, key, value;
    };
    struct Storage {
        Dtype dtype;
        size_t begin, bytes;  // in the file
    };
    struct Tensor {
        Dtype dtype;
        size_t begin, end;
        uint32_t shape;
    };

    static constexpr uint32_t kUnset = UINT32_MAX;

    template <class... Args>
    [[noreturn]] void bad(const char* format, Args... args) const {
        reject(path_, "its pickle, at byte %zu, %s", at_, strprintf(format, args...).c_str());
    }

    // ---- reading

    std::string_view take(size_t n) {
        if (n > bytes_.size() - next_) bad("ends too early; it is damaged");
        next_ += n;
        return bytes_.substr(next_ - n, n);
    }
    template <class T>
    T take() {
        return number_at<T>(take(sizeof(T)), 0);
    }
    std::string_view take_line() {
        const size_t end = bytes_.find('\n', next_);
        if (end == bytes_.npos) bad("ends too early; it is damaged");
        const std::string_view line = take(end - next_);
        next_++;
        return line;
    }
    uint64_t take_long() {
        const size_t n = take<uint8_t>();
        if (n > 8) bad("has a number of %zu bytes; expected at most 8", n);
        const std::string_view digits = take(n);
        uint64_t x = n > 0 && (uint8_t(digits.back()) & 0x80) ? ~uint64_t(0) : 0;
        std::memcpy(&x, digits.data(), n);
        return x;
    }

    // ---- the stack

    void push(uint32_t value) { stack_.push_back(value); }
    void push(Kind kind, uint64_t a = 0, uint64_t b = 0) {
        push(uint32_t(values_.size()));
        values_.push_back({kind, a, b});
    }
    // Fails unless there are n values since the last mark.
    void need(size_t n) const {
        if (stack_.size() - (marks_.empty() ? 0 : marks_.back()) < n) bad("takes a value that is not there");
    }
    uint32_t top() const {
        need(1);
        return stack_.back();
    }
    uint32_t pop() {
        const uint32_t value = top();
        stack_.pop_back();
        return value;
    }
    uint32_t pop(Kind kind, const char* where) {
        const uint32_t value = pop();
        if (values_[value].kind != kind)
            bad("has %s %s; expected %s", kind_name(value), where, kKindNames[size_t(kind)]);
        return value;
    }
    size_t pop_mark() {
        if (marks_.empty()) bad("takes a mark that is not there");
        const size_t mark = marks_.back();
        marks_.pop_back();
        return mark;
    }

    // ---- values

    const char* kind_name(uint32_t value) const { return kKindNames[size_t(values_[value].kind)]; }
    std::string_view text(uint32_t value) const { return bytes_.substr(values_[value].a, values_[value].b); }

    // An item of a call's arguments.
    uint32_t item(uint32_t tuple, size_t i, Kind kind) const {
        const uint32_t value = items_[values_[tuple].a + i];
        if (values_[value].kind != kind)
            bad("has %s as argument %zu of a call; expected %s", kind_name(value), i, kKindNames[size_t(kind)]);
        return value;
    }
    size_t size_item(uint32_t tuple, size_t i) const {
        const uint64_t n = values_[item(tuple, i, Kind::number)].a;
        if (n > uint64_t(INT64_MAX)) bad("has a negative size");
        return n;
    }
    std::vector<size_t> numbers(uint32_t tuple) const {
        std::vector<size_t> list;
        for (size_t i = 0; i < values_[tuple].b; i++) list.push_back(size_item(tuple, i));
        return list;
    }

    void make_tuple(size_t first) {
        const size_t place = items_.size();
        items_.insert(items_.end(), stack_.begin() + std::ptrdiff_t(first), stack_.end());
        stack_.resize(first);
        push(Kind::tuple, place, items_.size() - place);
    }
    void make_tuple_of(size_t n) {
        need(n);
        make_tuple(stack_.size() - n);
    }

    // Names and values stand on the dictionary that gets them.
    void set_items(size_t first) {
        if ((stack_.size() - first) % 2) bad("has a name without a value");
        const std::vector<uint32_t> list(stack_.begin() + std::ptrdiff_t(first), stack_.end());
        stack_.resize(first);
        const uint32_t dictionary = top();
        if (values_[dictionary].kind != Kind::dictionary)
            bad("gives items to %s; expected a dictionary", kind_name(dictionary));
        for (size_t i = 0; i < list.size(); i += 2) pairs_.push_back({dictionary, list[i], list[i + 1]});
    }

    void find_function() {
        const std::string_view module = take_line(), name = take_line();
        for (size_t i = 0; i < std::size(kFunctions); i++)
            if (kFunctions[i].module == module && kFunctions[i].name == name) return push(Kind::function, i);
        // Newer kinds of numbers (float8, unsigned ones) have no storage of their own.
        if (((module == "torch" || module == "torch.storage") && name.ends_with("Storage")) ||
            (module == "torch._utils" && name == "_rebuild_tensor_v3"))
            fail(
                "%s: it has numbers of a kind that is not read (%s); expected fp64, fp32, fp16 or bf16: "
                "torch.save(model.float().state_dict(), ...)",
                in_quotes(path_).c_str(), in_quotes(name).c_str());
        fail(
            "%s: its pickle asks for %s.%s of Python, which could run anything and was not run; expected nothing but tensors: "
            "torch.save(model.state_dict(), ...)",
            in_quotes(path_).c_str(), in_quotes(module).c_str(), in_quotes(name).c_str());
    }

    // ("storage", class, key, device, number of elements)
    void find_storage() {
        const uint32_t id = pop(Kind::tuple, "as the name of a storage");
        if (values_[id].b != 5) bad("names a storage by %zu values; expected 5", size_t(values_[id].b));
        const Function& f = kFunctions[values_[item(id, 1, Kind::function)].a];
        if (text(item(id, 0, Kind::text)) != "storage" || f.call != Call::storage)
            bad("names a storage as torch does not; it is damaged");
        const std::string_view key = text(item(id, 2, Kind::text));
        if (key.size() > kLongestKey) bad("names a storage by %zu bytes; expected a number", key.size());
        const Archive::Entry* entry = archive_.find(folder_ + "/data/" + std::string(key));
        if (!entry) bad("wants the storage %s, which the file does not have", in_quotes(key).c_str());
        size_t bytes;
        if (!tensor_bytes(f.dtype, {size_item(id, 4)}, &bytes) || bytes != entry->bytes)
            bad("wants a storage %s of %zu numbers (%s), but the file has %zu bytes; it is damaged",
                in_quotes(key).c_str(), size_item(id, 4), dtype_name(f.dtype), entry->bytes);
        storages_.push_back({f.dtype, entry->begin, entry->bytes});
        push(Kind::storage, storages_.size() - 1);
    }

    // (storage, first element, shape, strides, requires_grad, hooks[, metadata])
    void make_tensor(uint32_t arguments) {
        const size_t n = values_[arguments].b;
        if (n != 6 && n != 7) bad("makes a tensor of %zu arguments; expected 6 or 7", n);
        const Storage& storage = storages_[values_[item(arguments, 0, Kind::storage)].a];
        const uint32_t shape = item(arguments, 2, Kind::tuple), strides = item(arguments, 3, Kind::tuple);
        if (values_[shape].b > kMostDimensions || values_[shape].b != values_[strides].b)
            bad("makes a tensor of %zu dimensions with %zu strides; expected at most %zu, and as many strides",
                size_t(values_[shape].b), size_t(values_[strides].b), kMostDimensions);
        const std::vector<size_t> sizes = numbers(shape), steps = numbers(strides);
        // torch.save gives metadata only where they change what the numbers are: {'neg': True}, with the other sign.
        if (n == 7 && values_[items_[values_[arguments].a + 6]].kind != Kind::none)
            bad("has a tensor that is a view of other numbers than its storage has (negated or conjugated); save it with "
                ".resolve_neg().resolve_conj()");
        const auto not_dense = [&] {
            bad("makes a tensor of shape %s with strides %s, not one row after the other; save it with .contiguous()",
                shape_text(sizes).c_str(), shape_text(steps).c_str());
        };
        // Before the place: an expanded tensor is larger than its storage, and not damaged.
        for (size_t i = 0; i < sizes.size(); i++)
            if (sizes[i] > 1 && steps[i] == 0) not_dense();
        size_t bytes, begin;
        if (!tensor_bytes(storage.dtype, sizes, &bytes) ||
            __builtin_mul_overflow(size_item(arguments, 1), dtype_bytes(storage.dtype), &begin) ||
            begin > storage.bytes || bytes > storage.bytes - begin)
            bad("makes a tensor of shape %s at element %zu, which is more than its storage has; it is damaged",
                shape_text(sizes).c_str(), size_item(arguments, 1));
        size_t dense = 1;
        for (size_t i = sizes.size(); bytes > 0 && i-- > 0; dense *= sizes[i])
            if (sizes[i] != 1 && steps[i] != dense) not_dense();
        tensors_.push_back({storage.dtype, storage.begin + begin, storage.begin + begin + bytes, shape});
        push(Kind::tensor, tensors_.size() - 1);
    }

    void call() {
        const uint32_t arguments = pop(Kind::tuple, "as the arguments of a call");
        const uint32_t function = pop(Kind::function, "as what is called");
        switch (kFunctions[values_[function].a].call) {
            case Call::dictionary:
                if (values_[arguments].b)
                    bad("makes a dictionary of %zu arguments; expected none", size_t(values_[arguments].b));
                return push(Kind::dictionary);
            case Call::tensor:
                return make_tensor(arguments);
            case Call::parameter:
                if (values_[arguments].b != 3)
                    bad("makes a parameter of %zu arguments; expected 3", size_t(values_[arguments].b));
                return push(item(arguments, 0, Kind::tensor));
            case Call::storage:
                bad("calls a storage");
        }
    }

    void remember(size_t place) {
        if (place >= bytes_.size()) bad("remembers value %zu of at most %zu; it is damaged", place, bytes_.size());
        if (place >= memo_.size()) memo_.resize(place + 1, kUnset);
        memo_[place] = top();
    }
    void recall(size_t place) {
        if (place >= memo_.size() || memo_[place] == kUnset)
            bad("asks for value %zu, which it has not remembered", place);
        push(memo_[place]);
    }

    uint32_t run() {
        for (;;) {
            at_ = next_;
            const auto op = take<uint8_t>();
            if (op == '.') break;
            step(op);
        }
        const uint32_t root = pop();
        if (!stack_.empty()) bad("ends with %zu values too many", stack_.size());
        if (!marks_.empty()) bad("ends within a list of values");
        return root;
    }

    void step(uint8_t op) {
        switch (op) {
            case 0x80:
                if (const int protocol = take<uint8_t>(); protocol != 2)
                    bad("has protocol %d; expected 2, as torch.save writes it by default", protocol);
                return;
            case 'N':
                return push(Kind::none);
            case 0x88:
            case 0x89:
                return push(Kind::boolean, op == 0x88);
            case 'K':
                return push(Kind::number, take<uint8_t>());
            case 'M':
                return push(Kind::number, take<uint16_t>());
            case 'J':
                return push(Kind::number, uint64_t(int64_t(take<int32_t>())));
            case 0x8a:
                return push(Kind::number, take_long());
            case 'G':
                take(8);
                return push(Kind::real);
            case 'X': {
                const size_t length = take<uint32_t>();
                take(length);
                return push(Kind::text, next_ - length, length);
            }
            case '(':
                return marks_.push_back(stack_.size());
            case ')':
                return make_tuple_of(0);
            case 0x85:
            case 0x86:
            case 0x87:
                return make_tuple_of(op - 0x84u);
            case 't':
                return make_tuple(pop_mark());
            case '}':
                return push(Kind::dictionary);
            case 's':
                need(2);
                return set_items(stack_.size() - 2);
            case 'u':
                return set_items(pop_mark());
            case 'c':
                return find_function();
            case 'Q':
                return find_storage();
            case 'R':
                return call();
            case 'b':  // attributes of an object, such as a state_dict's _metadata: nothing that a model needs
                pop();
                if (const uint32_t object = top(); values_[object].kind != Kind::dictionary)
                    bad("sets attributes of %s; expected a dictionary", kind_name(object));
                return;
            case 'q':
                return remember(take<uint8_t>());
            case 'r':
                return remember(take<uint32_t>());
            case 'h':
                return recall(take<uint8_t>());
            case 'j':
                return recall(take<uint32_t>());
        }
        if (op == ']' || op == 'l')
            reject(path_,
                   "it holds a list, as checkpoints with an optimizer do; expected the model's tensors alone: "
                   "torch.save(model.state_dict(), ...)");
        bad("has the opcode 0x%02x, which no dictionary of tensors needs", op);
    }

    const std::string& path_;
    const Archive& archive_;
    const std::string folder_;
    const std::string_view bytes_;
    size_t at_ = 0, next_ = 0;  // the opcode, and what is read next
    std::vector<Value> values_;
    std::vector<uint32_t> items_, stack_, memo_;
    std::vector<size_t> marks_;  // sizes of the stack
    std::vector<Pair> pairs_;
    std::vector<Storage> storages_;
    std::vector<Tensor> tensors_;
};

// The folder of the one data.pkl; what lies in others is left alone.
std::string folder_of(const std::string& path, const Archive& archive) {
    constexpr std::string_view kPickle = "/data.pkl";
    std::string folder;
    for (const Archive::Entry& e : archive.entries()) {
        const size_t slash = e.name.find('/');
        if (slash == e.name.npos || e.name.substr(slash) != kPickle) continue;
        if (!folder.empty()) reject(path, "it has more than one data.pkl");
        folder = e.name.substr(0, slash);
    }
    if (folder.empty()) reject(path, "it is a zip archive without a data.pkl in a folder");
    return folder;
}

}  // namespace

bool is_torch_file(const std::string& path) {
    const MappedFile file(path);
    const std::string_view bytes(reinterpret_cast<const char*>(file.data()), file.size());
    return bytes.starts_with(kZip) || bytes.starts_with(kBefore16);
}

TorchFile::TorchFile(const std::string& path) : TensorFile(path, FileUse::input) {
    const std::string_view bytes(reinterpret_cast<const char*>(file_.data()), file_.size());
    if (bytes.starts_with(kBefore16))
        fail(
            "%s has the format of PyTorch before 1.6, which only Python reads; convert it once: python3 -c \"import sys, torch; "
            "torch.save(torch.load(sys.argv[1], map_location='cpu', weights_only=True), sys.argv[2])\" %s %s",
            in_quotes(path).c_str(), shell_word(path).c_str(), shell_word(path + ".new").c_str());
    const Archive archive(path_, bytes);
    const std::string folder = folder_of(path, archive);
    if (const Archive::Entry* order = archive.find(folder + "/byteorder"); order && archive.data(*order) != "little")
        reject(path, "its byte order is %s; expected 'little'", in_quotes(archive.data(*order)).c_str());
    entries_ = Pickle(path_, archive, folder).tensors();
    std::stable_sort(entries_.begin(), entries_.end(),
                     [](const TensorEntry& a, const TensorEntry& b) { return a.begin < b.begin; });
    index();
}

}  // namespace tapernorm
