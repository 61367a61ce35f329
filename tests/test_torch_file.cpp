// PyTorch's own files. tests/golden/torch holds a GPT-2 that torch.save wrote and the logits that transformers give it
// (dev/reference/check_hf.py --write); the others are made here, byte by byte.
#include "io/torch_file.h"

#include <doctest/doctest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "model/model_file.h"
#include "tests/errors.h"
#include "tests/model_in.h"
#include "tests/run_program.h"
#include "tests/torch_archive.h"

namespace tapernorm {

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kGolden = "tests/golden/torch/";

std::string archive_of(const std::string& pickle, const std::vector<ZipEntry>& more = {}, bool zip64 = false) {
    std::vector<ZipEntry> entries = {{"m/data.pkl", pickle}, {"m/byteorder", "little"}};
    entries.insert(entries.end(), more.begin(), more.end());
    return zip_archive(entries, zip64);
}

struct TorchFiles : Workplace {
    std::string write(const std::string& bytes) const {
        write_file(at("t.bin"), bytes);
        return at("t.bin");
    }
    // The error names the file.
    void refuse(const std::string& bytes, const std::string& needle) const {
        const std::string path = write(bytes), said = error_of([&] { TorchFile{path}; });
        CAPTURE(needle);
        CAPTURE(said);
        CHECK(contains(said, "t.bin"));
        CHECK(contains(said, needle));
    }
    // The archive of kGood, which may be damaged.
    void one_or_none(const std::string& bytes) const {
        const std::string path = write(bytes);
        std::vector<TensorEntry> found;
        const std::string said = error_of([&] { found = TorchFile(path).entries(); });
        CAPTURE(said);
        CHECK(said.empty() == !found.empty());
        for (const TensorEntry& e : found) {
            CHECK(found.size() == 1);
            CHECK(e.shape == std::vector<size_t>{4});
            CHECK(e.end <= bytes.size());
        }
        if (!said.empty()) CHECK(contains(said, "t.bin"));
    }
};

// A tensor "a" of four numbers.
std::string one(const std::string& tensor) { return pickle_of(pickled("a") + tensor); }
const ZipEntry kFour = {"m/data/0", raw(1.0f) + raw(2.0f) + raw(-3.0f) + raw(0.5f)};
const std::string kStorage = pickled_storage("FloatStorage", "0", 4);
const std::string kGood = one(pickled_tensor(kStorage, 0, {4}, {1}));

}  // namespace

TEST_CASE("torch file: a GPT-2 that torch.save wrote has the logits that transformers give it") {
    const Workplace w;
    fs::copy(kGolden, w.at("torch"));
    const json golden = json::parse(read_file(w.at("torch/logits.json")));
    std::string ids;
    for (const int id : golden["tokens"]) ids += (ids.empty() ? "" : ",") + std::to_string(id);
    auto check = [&](const std::string& model) {
        CAPTURE(model);
        w.ok("infer " + model + " --last-token --tokens " + ids + " --dump logits.st");
        const std::vector<double> logits = read_dump(w.at("logits.st")).logits;
        REQUIRE(logits.size() == golden["logits"].size());
        // Both sides compute in fp32, about 5 C = 40 rounded additions deep: half units in the last place of the largest.
        double largest = 0, error = 0;
        for (size_t i = 0; i < logits.size(); i++) {
            largest = std::max(largest, std::abs(double(golden["logits"][i])));
            error = std::max(error, std::abs(double(logits[i]) - double(golden["logits"][i])));
        }
        CHECK(largest > 0.3);
        CHECK(error <= 40 * largest * 0x1p-24);
    };
    check("torch"), check("torch/pytorch_model.bin");
    w.ok("fold torch folded.bin");
    check("folded.bin");
    CHECK(contains(w.ok(kTrain + " --init torch --tokenizer bytes -t 8 -j corpus.txt -m 3"),
                   "torch/pytorch_model.bin: validation loss "));
    // Its head is a second name of wte's storage, its masks are no part of the model, and its numbers stay where they are mapped.
    const TorchFile file(w.at("torch/pytorch_model.bin"));
    CHECK(file.find("lm_head.weight")->begin == file.find("transformer.wte.weight")->begin);
    CHECK(file.find("transformer.h.0.attn.bias")->dtype == Dtype::BOOL);
    CHECK(file.find("transformer.h.0.attn.masked_bias")->shape.empty());
    const auto model = ModelFile::open(w.at("torch"));
    GptTensors<float> none{};
    visit_tensors(model->info().config, none,
                  [&](const TensorSpec& t, float*&) { CHECK(model->in_place(t) != nullptr); });
    // safetensors come first. An index of .bin shards comes last.
    write_file(w.at("torch/pytorch_model.bin.index.json"), R"({"weight_map": {"a": "missing.bin"}})");
    check("torch");
    fs::remove(w.at("torch/pytorch_model.bin.index.json"));
    fs::rename(w.at("torch/pytorch_model.bin"), w.at("torch/pytorch_model-00001-of-00001.bin"));
    w.refused("infer torch -n 1", {"torch", "model.safetensors", "pytorch_model.bin"});
    write_file(w.at("torch/pytorch_model.bin.index.json"),
               R"({"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}})");
    check("torch");
    write_file(w.at("torch/model.safetensors"), "");
    w.refused("infer torch -n 1", {"torch/model.safetensors"});
}

TEST_CASE("torch file: types, pieces of storages, and both kinds of directory") {
    const TorchFiles w;
    const std::string halves = raw<uint16_t>(0x3c00) + raw<uint16_t>(0xc000);  // 1, -2
    const std::string pickle = pickle_of(
        pickled("whole") + pickled_tensor(kStorage, 0, {2, 2}, {2, 1}) + pickled("row") +
        pickled_tensor(kStorage, 2, {1, 2}, {77, 1}) + pickled("one") + pickled_tensor(kStorage, 3, {}, {}) +
        pickled("none") + pickled_tensor(kStorage, 4, {0, 5}, {5, 1}) + pickled("half") +
        pickled_tensor(pickled_storage("HalfStorage", "1", 2), 0, {2}, {1}) + pickled("brain") +
        pickled_tensor(pickled_storage("BFloat16Storage", "2", 2), 1, {1}, {1}) + pickled("parameter") +
        "ctorch._utils\n_rebuild_parameter\n(" + pickled_tensor(pickled_storage("DoubleStorage", "3", 1), 0, {1}, {1}) +
        "\x88"
        "ccollections\nOrderedDict\n)RtR");
    const std::vector<ZipEntry> data = {kFour,
                                        {"m/data/1", halves},
                                        {"m/data/2", raw(bf16_from_float(7)) + raw(bf16_from_float(-1.5f))},
                                        {"m/data/3", raw(0.1)}};
    for (const bool zip64 : {false, true}) {
        const std::string bytes = archive_of(pickle, data, zip64);
        const TorchFile file(w.write(zip64 ? bytes : bytes.substr(0, bytes.size() - 2) + raw<uint16_t>(5) + "PK\5\6 "));
        auto numbers = [&](const char* name) {
            std::vector<double> list(file.find(name)->count());
            file.read(*file.find(name), list.data());
            return list;
        };
        CHECK(file.entries().size() == 7);
        CHECK(numbers("whole") == std::vector<double>{1, 2, -3, 0.5});
        CHECK(file.find("whole")->shape == std::vector<size_t>{2, 2});
        CHECK(numbers("row") == std::vector<double>{-3, 0.5});
        CHECK(numbers("one") == std::vector<double>{0.5});
        CHECK(numbers("none").empty());
        CHECK(numbers("half") == std::vector<double>{1, -2});
        CHECK(numbers("brain") == std::vector<double>{-1.5});
        CHECK(numbers("parameter") == std::vector<double>{0.1});
    }
    // Attributes of the dictionary are left out; so is what else is in the archive.
    const std::string attributes = kGood.substr(0, kGood.size() - 1) + "}" + pickled("_metadata") + "}sb.";
    CHECK(TorchFile(w.write(archive_of(attributes, {kFour, {"m/version", "3\n"}, {"other", ""}}))).entries().size() ==
          1);
    CHECK(TorchFile(w.write(archive_of(pickle_of("")))).entries().empty());
    // Older files have no byte order.
    CHECK(TorchFile(w.write(zip_archive({{"m/data.pkl", kGood}, kFour}))).entries().size() == 1);
}

TEST_CASE("torch file: every type of numbers, and numbers of every width in the pickle") {
    const TorchFiles w;
    struct Row {
        const char* storage;
        Dtype dtype;
        size_t bytes;
    };
    for (const Row& row : std::vector<Row>{{"FloatStorage", Dtype::F32, 4},
                                           {"HalfStorage", Dtype::F16, 2},
                                           {"BFloat16Storage", Dtype::BF16, 2},
                                           {"DoubleStorage", Dtype::F64, 8},
                                           {"LongStorage", Dtype::I64, 8},
                                           {"IntStorage", Dtype::I32, 4},
                                           {"ShortStorage", Dtype::I16, 2},
                                           {"CharStorage", Dtype::I8, 1},
                                           {"ByteStorage", Dtype::U8, 1},
                                           {"BoolStorage", Dtype::BOOL, 1}}) {
        CAPTURE(row.storage);
        const std::string storage = pickled_storage(row.storage, "0", int64_t(16 / row.bytes));
        const TorchFile file(w.write(archive_of(one(pickled_tensor(storage, 1, {1}, {1})), {kFour})));
        CHECK(file.find("a")->dtype == row.dtype);
        CHECK(file.find("a")->end - file.find("a")->begin == row.bytes);
    }
    // 3 as it may be written; and -1, which is no size.
    auto sized = [&](const std::string& number) {
        const std::string eight = pickled(4);
        std::string pickle = kGood;
        pickle.replace(pickle.rfind(eight), eight.size(), number);  // of the shape {4}
        return archive_of(pickle, {kFour});
    };
    for (const std::string& three :
         std::vector<std::string>{std::string("K\x03"), std::string("M\x03\0", 3), std::string("J\x03\0\0\0", 5),
                                  std::string("\x8a\x01\x03"), std::string("\x8a\x03\x03\0\0", 5)}) {
        CAPTURE(in_quotes(three));
        CHECK(TorchFile(w.write(sized(three))).find("a")->shape == std::vector<size_t>{3});
    }
    for (const std::string minus_one : {"J\xff\xff\xff\xff", "\x8a\x01\xff", "\x8a\x03\xff\xff\xff"})
        w.refuse(sized(minus_one), "a negative size");
    CHECK(TorchFile(w.write(sized(std::string("\x8a\0", 2)))).find("a")->shape == std::vector<size_t>{0});
}

TEST_CASE("torch file: a pickle runs nothing, and one that is not a dictionary of tensors is refused") {
    const TorchFiles w;
    auto refuse = [&](const std::string& pickle, const std::string& needle) {
        w.refuse(archive_of(pickle, {kFour}), needle);
    };
    auto tensor = [&](const std::string& storage, int64_t offset, const std::vector<int64_t>& shape,
                      const std::vector<int64_t>& strides) {
        return one(pickled_tensor(storage, offset, shape, strides));
    };
    refuse(
        "\x80\x02"
        "cposix\nsystem\n(" +
            pickled("touch ran") + "tR.",
        "'posix'.'system' of Python");
    CHECK(!fs::exists("ran"));
    for (const std::string name : {"c__builtin__\neval\n", "ctorch._utils\n_rebuild_sparse_tensor\n",
                                   "cnumpy.core.multiarray\n_reconstruct\n", "c\x1b[2J\n\n", "c\n\n"})
        refuse(one(name), "of Python, which could run anything and was not run");
    // What it holds.
    refuse("\x80\x02" + pickled(7) + ".", "it holds a whole number");
    refuse("\x80\x02N.", "it holds None");
    refuse("\x80\x02)", "ends too early");
    refuse(one("}"), "its 'a' is a dictionary");
    refuse(one("N"), "its 'a' is None");
    refuse(pickle_of(pickled(1) + pickled(2)), "a name in its dictionary is a whole number");
    refuse(pickle_of(pickled("a")), "a name without a value");
    refuse(kGood.substr(0, kGood.size() - 2) + pickled("a") + pickled_tensor(kStorage, 0, {1}, {1}) + "u.",
           "its tensor 'a' is there twice");
    // Storages and tensors that do not fit what there is.
    refuse(tensor(pickled_storage("FloatStorage", "1", 4), 0, {4}, {1}),
           "wants the storage '1', which the file does not have");
    refuse(tensor(pickled_storage("FloatStorage", "../data.pkl", 4), 0, {4}, {1}), "does not have");
    refuse(tensor(pickled_storage("FloatStorage", std::string(10000, '0'), 4), 0, {4}, {1}), "by 10000 bytes");
    for (const int64_t count : {3, 5, 0})
        refuse(tensor(pickled_storage("FloatStorage", "0", count), 0, {1}, {1}), "but the file has 16 bytes");
    refuse(tensor(pickled_storage("FloatStorage", "0", -4), 0, {4}, {1}), "a negative size");
    refuse(tensor(pickled_storage("FloatStorage", "0", INT64_MAX), 0, {4}, {1}), "but the file has 16 bytes");
    refuse(tensor(pickled_storage("HalfStorage", "0", 4), 0, {4}, {1}), "but the file has 16 bytes");
    for (const auto& [offset, shape] :
         std::vector<std::pair<int64_t, std::vector<int64_t>>>{{0, {5}},
                                                               {1, {4}},
                                                               {5, {0}},
                                                               {INT64_MAX, {1}},
                                                               {INT64_MAX / 2, {1}},
                                                               {0, {INT64_MAX, 2, 2}},
                                                               {0, {1 << 30, 1 << 30, 1 << 30}}})
        refuse(tensor(kStorage, offset, shape, std::vector<int64_t>(shape.size(), 1)), "more than its storage has");
    for (const int64_t bad : {-1, -4}) refuse(tensor(kStorage, 0, {bad}, {1}), "a negative size");
    refuse(tensor(kStorage, -1, {1}, {1}), "a negative size");
    refuse(tensor(kStorage, 0, {2, 2}, {1, 2}),
           "strides [1, 2], not one row after the other; save it with .contiguous()");
    refuse(tensor(kStorage, 0, {2}, {2}), "strides [2]");
    refuse(tensor(kStorage, 0, {4}, {0}), "strides [0]");
    refuse(tensor(kStorage, 0, {4}, {}), "1 dimensions with 0 strides");
    refuse(tensor(kStorage, 0, std::vector<int64_t>(9, 1), std::vector<int64_t>(9, 1)), "9 dimensions");
    refuse(tensor("N", 0, {4}, {1}), "has None as argument 0 of a call; expected a storage");
    refuse(one("ctorch._utils\n_rebuild_tensor_v2\n)R"), "a tensor of 0 arguments");
    refuse(one("ctorch._utils\n_rebuild_parameter\n)R"), "a parameter of 0 arguments");
    refuse(one("ccollections\nOrderedDict\n" + pickled_tuple({1}) + "R"), "a dictionary of 1 arguments");
    refuse(one("ctorch\nFloatStorage\n)R"), "calls a storage");
    refuse(one("NNR"), "as the arguments of a call");
    refuse(one("N)R"), "as what is called");
    refuse(one("NQ"), "as the name of a storage");
    refuse(one(")Q"), "by 0 values");
    refuse(one(pickled("storage").insert(0, "(") + "ccollections\nOrderedDict\n" + pickled("0") + pickled("cpu") +
               pickled(4) + "tQ"),
           "names a storage as torch does not");
    // The machine.
    for (const std::string op : {"R", "Q", "b", "s", "q\x01", "\x85", "\x87", "."})
        refuse("\x80\x02(" + op, "that is not there");
    for (const std::string op : {"t", "u"}) refuse("\x80\x02" + op, "takes a mark that is not there");
    refuse(
        "\x80\x02"
        "Nb.",
        "that is not there");
    refuse(
        "\x80\x02"
        "NNb.",
        "sets attributes of None");
    refuse("\x80\x02NNNs.", "gives items to None");
    refuse("\x80\x02NN.", "1 values too many");
    refuse("\x80\x02N(.", "that is not there");
    refuse("\x80\x02(N.", "ends within a list of values");
    refuse("\x80\x02h\x05.", "value 5, which it has not remembered");
    refuse("\x80\x02j\xff\xff\xff\xff.", "value 4294967295, which it has not remembered");
    refuse("\x80\x02Nr\xff\xff\xff\xff.", "remembers value 4294967295 of at most");
    refuse("\x80\x04.", "protocol 4");
    refuse("\x80\x02\x95", "the opcode 0x95");
    // What a training script saves, and what a number is that we do not know.
    refuse(pickle_of(pickled("optimizer") + "]"), "a list, as checkpoints with an optimizer do");
    refuse(one("ctorch\nQUInt8Storage\n"), "a kind that is not read ('QUInt8Storage')");
    refuse(tensor(pickled_storage("ComplexFloatStorage", "0", 2), 0, {2}, {1}),
           "a kind that is not read ('ComplexFloatStorage')");
    refuse(one("ctorch._utils\n_rebuild_tensor_v3\n"), "a kind that is not read ('_rebuild_tensor_v3')");  // float8
    refuse(one("ctorch.storage\nUntypedStorage\n"), "a kind that is not read ('UntypedStorage')");
    // One number, expanded; numbers that are to be read with the other sign.
    refuse(tensor(kStorage, 3, {16, 64}, {0, 0}), "save it with .contiguous()");
    const std::string plain = pickled_tensor(kStorage, 0, {4}, {1}), seven = plain.substr(0, plain.size() - 2);
    refuse(one(seven + "}" + pickled("neg") + "\x88s" + "tR"), ".resolve_neg()");
    CHECK(TorchFile(w.write(archive_of(one(seven + "N" + "tR"), {kFour}))).entries().size() == 1);
    refuse("\x80\x02i", "the opcode 0x69");
    refuse("\x80\x02X\xff\xff\xff\xff", "ends too early");
    refuse("\x80\x02\x8a\x08", "ends too early");
    refuse(
        "\x80\x02\x8a\x09"
        "123456789.",
        "a number of 9 bytes");
    refuse(
        "\x80\x02"
        "ctorch",
        "ends too early");
    // Deep, wide and shared: its size bounds what it costs.
    const size_t many = 1000000;
    refuse("\x80\x02)" + std::string(many, '\x85') + ".", "it holds a tuple");
    refuse("\x80\x02" + std::string(many, '(') + ".", "that is not there");
    refuse("\x80\x02" + std::string(many, '}') + ".", "too many");
    std::string doubling = "\x80\x02)q" + std::string(1, '\0');
    for (int i = 0; i < 100000; i++) doubling += std::string("h\0h\0\x86q\0", 7);
    refuse(doubling + "N.", "too many");
    std::string again = pickled(std::string(100000, 'x')) + "q" + std::string("\0}q\1", 4);
    for (int i = 0; i < 100000; i++) again += std::string("h\0h\1", 4);
    refuse(pickle_of(again), "is a dictionary");
    refuse(pickle_of(std::string(5 << 20, '}')), "expected at most 4194304");
}

TEST_CASE("torch file: a damaged or unfit archive is refused") {
    const TorchFiles w;
    const std::string good = archive_of(kGood, {kFour});
    CHECK(TorchFile(w.write(good)).entries().size() == 1);
    // Every truncation, and every byte changed: an error, or the same tensor, within the file, but for its numbers, name and type.
    for (size_t bytes = 0; bytes < good.size(); bytes++) w.refuse(good.substr(0, bytes), "");
    const std::string real = read_file(std::string(kGolden) + "pytorch_model.bin");
    for (size_t bytes = 0; bytes < real.size(); bytes += 371) w.refuse(real.substr(0, bytes), "");
    for (const unsigned char flip : {0x01, 0x80, 0xff})
        for (size_t i = 0; i < good.size(); i++) {
            std::string bad = good;
            bad[i] = char(bad[i] ^ flip);
            CAPTURE(i);
            w.one_or_none(bad);
        }
    w.refuse("PK\3\4", "the archive has only 4 bytes");
    w.refuse("PK\3\4" + std::string(100000, '\0'), "no directory at its end");
    w.refuse(zip_archive({}), "without a data.pkl");
    w.refuse(zip_archive({{"data.pkl", kGood}, {"a/b/data.pkl", kGood}}), "without a data.pkl in a folder");
    w.refuse(zip_archive({{"m/data.pkl", kGood}, {"n/data.pkl", kGood}}), "more than one data.pkl");
    w.refuse(zip_archive({{"m/data.pkl", kGood}, {"m/data.pkl", kGood}}), "there twice");
    w.refuse(zip_archive({{"m/data.pkl", kGood}, {"m/byteorder", "big"}, kFour}), "its byte order is 'big'");
    w.refuse(archive_of(kGood, {{"m/data/0", kFour.data, 8}}), "its entry 'm/data/0' is compressed");
    w.refuse(archive_of(kGood, {{"m/data/0", kFour.data, 0, 1}}), "its entry 'm/data/0' is encrypted");
    w.refuse(archive_of(kGood, {{"\x1b[2J", ""}, {"\x1b[2J", ""}}), "is there twice");
    // Two entries in one place: the directory names the first twice, by another name of the same length.
    ZipParts parts = zip_parts({{"m/data.pkl", kGood}, {"m/data/00", "data"}}, false);
    std::string inner = parts.data, header = parts.headers[1];
    const size_t place = inner.find("m/data/00") - 30;
    for (const uint32_t other : {uint32_t(place) + 1, uint32_t(0), UINT32_MAX - 1}) {
        header.replace(42, 4, raw(other));
        w.refuse(inner + parts.headers[0] + header + parts.end, "its entry 'm/data/00'");
    }
    // An entry within the data of another, and one that reaches into the next.
    const std::string nested = zip_parts({{"m/data/1", "data"}}, false).data;
    parts = zip_parts({{"m/data.pkl", kGood}, {"m/data/0", nested}, {"m/data/1", "data"}}, false);
    header = parts.headers[2];
    header.replace(42, 4, raw(uint32_t(parts.data.find(nested))));
    w.refuse(parts.data + parts.headers[0] + parts.headers[1] + header + parts.end, "within the one before it");
    // Sizes and places beyond the file, in both kinds of directory.
    for (const bool zip64 : {false, true}) {
        parts = zip_parts({{"m/data.pkl", kGood}, kFour}, zip64);
        for (const uint64_t bad : {uint64_t(1) << 20, uint64_t(UINT32_MAX) - 1, UINT64_MAX, UINT64_MAX - 64})
            for (const size_t field : zip64 ? std::vector<size_t>{4, 12, 20} : std::vector<size_t>{20, 24, 42}) {
                header = parts.headers[1];
                if (zip64)
                    header.replace(header.size() - 28 + field, 8, raw(bad));
                else
                    header.replace(field, 4, raw(uint32_t(bad)));
                w.refuse(parts.data + parts.headers[0] + header + parts.end, "'m/data/0'");
            }
        for (size_t at = 0; at < parts.end.size(); at += 4)
            for (const uint32_t bad : {UINT32_MAX - 7, uint32_t(1) << 16}) {
                std::string end = parts.end;
                end.replace(at, 4, raw(bad));
                w.one_or_none(parts.data + parts.directory + end);
            }
    }
}

TEST_CASE("torch file: the programs say what they cannot read") {
    const Workplace w;
    fs::copy(kGolden, w.at("torch"));
    const std::string old = std::string("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", 15);
    write_file(w.at("torch/pytorch_model.bin"), old + "\x80\x02M\xe9\x03.");
    const std::vector<std::string> needles = {"torch/pytorch_model.bin", "PyTorch before 1.6", "weights_only=True"};
    w.refused("infer torch -n 1", needles);
    w.refused("train_gpt --init torch/pytorch_model.bin", needles);
    fs::copy(w.at("torch/pytorch_model.bin"), w.at("old.bin"));
    w.refused("infer old.bin -n 1",
              {"old.bin", "PyTorch before 1.6"});  // and not config.json, which is not there either
    write_file(w.at("torch/pytorch_model.bin"), archive_of("\x80\x02"
                                                           "cos\nsystem\n(" +
                                                           pickled("touch ran") + "tR."));
    w.refused("fold torch out.bin", {"torch/pytorch_model.bin", "'os'.'system'", "state_dict"});
    write_file(w.at("alone.bin"), archive_of(kGood, {kFour}));
    w.refused("infer alone.bin -n 1", {"alone.bin", "config.json"});
    write_file(w.at("torch/pytorch_model.bin"), archive_of(kGood, {kFour}));
    w.refused("infer torch -n 1", {"torch/pytorch_model.bin", "transformer.wte.weight is missing"});
}

}  // namespace tapernorm
