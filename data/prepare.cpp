// Makes token shards for train_gpt from a corpus: downloads it if it is a known one, cuts it into documents, tokenizes
// them on the cores it may use and writes llm.c's shards.
//   prepare tinyshakespeare | tinystories | openwebtext | fineweb-edu | FILE | "PATTERN"
// Or downloads a model, with its vocabulary, to taper:
//   prepare gpt2 | gpt2-medium | gpt2-large | gpt2-xl | distilgpt2
//
// Each document begins with <|endoftext|> (bytes, which have no such token, have a blank line between documents
// instead). Output: DIR/NAME_val_000000.bin, DIR/NAME_train_000001.bin and so on, and the tokenizer beside them.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <future>
#include <memory>
#include <optional>

#include "data/documents.h"
#include "data/download.h"
#include "data/parquet.h"
#include "io/atomic_file.h"
#include "io/files.h"
#include "io/mapped_file.h"
#include "io/options.h"
#include "io/output_folder.h"
#include "io/terminal.h"
#include "io/tokenizer.h"
#include "io/tokens.h"
#include "model/model_file.h"
#include "runtime/cpu.h"
#include "runtime/exit_status.h"

namespace tapernorm::prepare {

namespace {

struct PrepareConfig {
    std::string corpus, out, tokenizer = "gpt2", format = "auto", field = "text", mirror, downloads = "data/downloads";
    size_t shard_tokens = 100'000'000, val_tokens = 0, max_tokens = 0, threads = 0;
    bool has_val_tokens = false;
};

// ----------------------------------------------------------------------------------------------------------
// Tokens

// How much is for validation: so many tokens, or a tenth of what a corpus of so many bytes gives, but at most one shard.
struct ValSize {
    std::optional<size_t> tokens;
    double corpus_bytes = 0;
};

// Fills shards in order: first the validation split, then training.
class ShardWriter {
  public:
    ShardWriter(OutputFolder& folder, std::string name, size_t shard_tokens, const ValSize& val, size_t max_tokens)
        : folder_(folder), name_(std::move(name)), shard_tokens_(shard_tokens), max_tokens_(max_tokens),
          val_left_(val.tokens.value_or(0)), corpus_bytes_(val.corpus_bytes), decided_(val.tokens) {
        for (const char* split : {"val", "train"})
            for (const auto& entry : fs::directory_iterator(folder_.path()))
                if (entry.path().filename().string().starts_with(name_ + "_" + split + "_"))
                    fail(
                        "%s exists already; remove the old shards or choose another folder with --out, so that two "
                        "corpora do not mix",
                        in_quotes(entry.path().string()).c_str());
    }

    // For corpora that come with a validation file: everything that follows belongs to this split.
    void all_to(const char* split) {
        flush();
        val_left_ = std::strcmp(split, "val") == 0 ? ~size_t(0) : 0;
    }

    // bytes: of the text that the tokens were made from.
    void add(std::span<const uint16_t> tokens, size_t bytes) {
        if (max_tokens_) tokens = tokens.first(std::min(tokens.size(), max_tokens_ - total_));
        total_ += tokens.size(), bytes_ += bytes;
        if (decided_) return write(tokens);
        held_.insert(held_.end(), tokens.begin(), tokens.end());
        if (held_.size() < kHeld) return;
        const double expected = corpus_bytes_ * double(total_) / double(bytes_);
        decide(max_tokens_ ? std::min(size_t(expected), max_tokens_) : size_t(expected));
    }

    void finish() {
        if (!decided_) decide(total_);
        flush();
    }

    bool full() const { return max_tokens_ && total_ >= max_tokens_; }
    size_t tokens() const { return total_; }
    size_t train_tokens() const { return written_[0]; }
    size_t val_tokens() const { return written_[1]; }

  private:
    static constexpr size_t kHeld = 1 << 24;  // of a smaller corpus, a tenth is exact; of a larger one, estimated

    void decide(size_t all_tokens) {
        val_left_ = std::min(shard_tokens_, all_tokens / 10), decided_ = true;
        write(std::exchange(held_, {}));
    }

    void write(std::span<const uint16_t> tokens) {
        while (!tokens.empty()) {
            const bool val = val_left_ > 0;
            const size_t room = std::min(shard_tokens_ - shard_.size(), val ? val_left_ : ~size_t(0));
            const size_t count = std::min(room, tokens.size());
            shard_.insert(shard_.end(), tokens.begin(), tokens.begin() + ptrdiff_t(count));
            tokens = tokens.subspan(count);
            if (val) val_left_ -= count;
            written_[val] += count;
            in_val_ = val;
            if (shard_.size() == shard_tokens_ || (val && val_left_ == 0)) flush();
        }
    }

    void flush() {
        if (shard_.empty()) return;
        const size_t number = in_val_ ? val_shards_++ : ++train_shards_;
        const std::string name = strprintf("%s_%s_%06zu.bin", name_.c_str(), in_val_ ? "val" : "train", number);
        write_token_shard(folder_.file(name), shard_);
        if (!in_val_) folder_.keep();  // what was made for training so far is worth keeping, whatever comes
        shard_.clear();
    }

    OutputFolder& folder_;
    std::string name_;
    size_t shard_tokens_, max_tokens_, val_left_;
    double corpus_bytes_;
    bool decided_;  // how many tokens are for validation; until then they are held
    std::vector<uint16_t> held_, shard_;
    bool in_val_ = false;  // the split of the tokens in shard_
    size_t val_shards_ = 0, train_shards_ = 0, total_ = 0, bytes_ = 0, written_[2] = {};
};

// Reads, tokenizes and writes at the same time: while the threads work on one batch of passages, the next is read.
class Tokenization {
  public:
    Tokenization(const Tokenizer& tokenizer, ShardWriter& writer, const PrepareConfig& config)
        : tokenizer_(tokenizer), writer_(writer), config_(config) {}

    void run(DocumentReader& reader) {
        constexpr size_t kBatchBytes = 16 * kPassageBytes;
        const auto read_batch = [&reader] {
            std::vector<Passage> batch;
            Passage passage;
            for (size_t bytes = 0; bytes < kBatchBytes && reader.next(passage); batch.push_back(std::move(passage)))
                bytes += passage.text.size();
            return batch;
        };
        auto next = std::async(std::launch::async, read_batch);
        for (;;) {
            const std::vector<Passage> batch = next.get();
            if (batch.empty() || writer_.full()) return;
            next = std::async(std::launch::async, read_batch);
            tokenize(batch);
        }
    }

    void finish() {
        writer_.finish();
        progress_.show(line() + ", " + counted(documents_, "document") + strprintf(", %.1f s", progress_.seconds()),
                       true);
    }

  private:
    void tokenize(const std::vector<Passage>& batch) {
        std::vector<std::vector<uint16_t>> ids(batch.size());
        parallel_tasks(Cpu(int(config_.threads)), batch.size(),
                       [&](size_t i, int) { ids[i] = tokenizer_.encode(text_of(batch[i], config_.field)); });
        for (size_t i = 0; i < batch.size(); ++i) {
            if (batch[i].new_document) begin_document();
            writer_.add(ids[i], batch[i].text.size());
            bytes_ += batch[i].text.size();
        }
        progress_.update([&] { return line(); });
    }

    void begin_document() {
        const std::vector<uint16_t> border = tokenizer_.end_of_text() ? std::vector{*tokenizer_.end_of_text()}
                                             : documents_             ? tokenizer_.encode("\n\n")
                                                                      : std::vector<uint16_t>();
        writer_.add(border, 0);
        ++documents_;
    }

    std::string line() const {
        return strprintf("%.1f MB, %s, %.1f MB/s", double(bytes_) / 1e6, counted(writer_.tokens(), "token").c_str(),
                         double(bytes_) / 1e6 / std::max(progress_.seconds(), 1e-9));
    }

    const Tokenizer& tokenizer_;
    ShardWriter& writer_;
    const PrepareConfig& config_;
    LiveLine progress_{true, stderr};
    size_t bytes_ = 0, documents_ = 0;
};

// ----------------------------------------------------------------------------------------------------------
// Corpora

struct RemoteFile {
    std::string url, sha256 = {};
    const char* split = nullptr;  // "val" or "train" where the corpus has its own split
};

struct NamedCorpus {
    std::string name;
    std::string format;  // its files'; "shards" are tokens already
    std::vector<RemoteFile> files;
    size_t val_tokens;  // where the files have no split of their own
};

std::vector<RemoteFile> numbered(const char* url_format, size_t first, size_t count) {
    std::vector<RemoteFile> files;
    for (size_t i = first; i < first + count; ++i) {
        std::string url = url_format;
        const size_t place = url.find('#'), digits = url.find_last_of('#') - place + 1;
        files.push_back({url.replace(place, digits, strprintf("%0*zu", int(digits), i))});
    }
    return files;
}

std::vector<NamedCorpus> named_corpora() {
    const std::string hub = "https://huggingface.co/datasets/";
    std::vector<NamedCorpus> all;
    all.push_back({"tinyshakespeare",
                   "text",
                   {{"https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
                     "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"}},
                   32768});
    all.push_back({"tinystories",
                   "text",
                   {{hub + "roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4-valid.txt", "", "val"},
                    {hub + "roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4-train.txt", "", "train"}},
                   0});
    all.push_back({"openwebtext", "nested-tar",
                   numbered((hub + "Skylion007/openwebtext/resolve/main/subsets/urlsf_subset##.tar").c_str(), 0, 21),
                   100'000'000});
    all.push_back(
        {"fineweb-edu", "shards", {{hub + "kjj0/finewebedu10B-gpt2/resolve/main/finewebedu_val_000000.bin"}}, 0});
    const auto train =
        numbered((hub + "kjj0/finewebedu10B-gpt2/resolve/main/finewebedu_train_######.bin").c_str(), 1, 99);
    all.back().files.insert(all.back().files.end(), train.begin(), train.end());
    return all;
}

// GPT-2's vocabulary is downloaded on first use.
Tokenizer open_tokenizer(const PrepareConfig& config) {
    if (config.tokenizer != "gpt2" || fs::exists("gpt2")) return Tokenizer::from_path(config.tokenizer);
    const std::string directory = (fs::path(config.downloads) / "gpt2").string();
    const std::string host = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/";
    download(host + "encoder.json", directory + "/vocab.json",
             "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783", config.mirror);
    download(host + "vocab.bpe", directory + "/merges.txt",
             "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5", config.mirror);
    return Tokenizer::from_path(directory);
}

std::string file_name(const std::string& url) { return url.substr(url.rfind('/') + 1); }

void report(const PrepareConfig& config, const std::string& name, size_t train_tokens, size_t val_tokens) {
    std::string shards;
    for (const char c : config.out + "/" + name)
        shards += std::strchr("*?[\\", c) ? std::string("\\") + c : std::string(1, c);
    std::printf("%s: %s for training, %zu for validation. To train on them:\n  ./train_gpt -i %s",
                printable(config.out).c_str(), counted(train_tokens, "token").c_str(), val_tokens,
                shell_word(shards + "_train_*.bin").c_str());
    if (val_tokens) std::printf(" -j %s", shell_word(shards + "_val_*.bin").c_str());
    std::printf(" --tokenizer %s\n", shell_word(config.out).c_str());
}

// The corpus consists of tokens already: its shards are only downloaded.
void prepare_shards(const NamedCorpus& corpus, const PrepareConfig& config, OutputFolder& folder) {
    if (config.tokenizer != "gpt2")
        fail("--tokenizer: expected gpt2, because %s comes as tokens of GPT-2's vocabulary, found %s",
             corpus.name.c_str(), config.tokenizer.c_str());
    open_tokenizer(config).save(folder);
    size_t tokens[2] = {};
    for (const RemoteFile& file : corpus.files) {
        if (config.max_tokens && tokens[0] + tokens[1] >= config.max_tokens) break;
        const std::string path = (fs::path(config.out) / file_name(file.url)).string();
        download(file.url, path, file.sha256, config.mirror);
        const TokenSource shard = open_tokens(path);
        if (!shard.from_shards()) fail("%s is not a token shard; remove it and try again", in_quotes(path).c_str());
        tokens[path.find("_val_") != path.npos] += shard.size();
        folder.keep();
    }
    const std::string first = file_name(corpus.files[0].url);
    report(config, first.substr(0, first.find("_val_")), tokens[0], tokens[1]);
}

// ----------------------------------------------------------------------------------------------------------
// Models

constexpr const char* kModels[] = {"openai-community/gpt2", "openai-community/gpt2-medium",
                                   "openai-community/gpt2-large", "openai-community/gpt2-xl", "distilbert/distilgpt2"};

// Where the hub has the model of this name; null if it is none that we know.
const char* place_of_model(const std::string& name) {
    for (const char* place : kModels)
        if (std::string(place).ends_with("/" + name)) return place;
    return nullptr;
}

void prepare_model(const std::string& place, const PrepareConfig& config, OutputFolder& folder) {
    // What is there is not fetched again, and so must be of this model.
    const std::string origin = (fs::path(config.out) / "downloaded-from").string();
    const std::string ours = "https://huggingface.co/" + place + "\n";
    if (fs::exists(origin) ? read_text(origin, 1 << 10) != ours : !fs::is_empty(config.out))
        fail(
            "--out: expected a new folder, or one that holds %s already, found %s, which holds something else; name another one",
            config.corpus.c_str(), in_quotes(config.out).c_str());
    if (!fs::exists(origin)) write_text(folder.file("downloaded-from"), ours);
    // The weights come last: before them are files that tell in a second whether the host can be reached.
    for (const char* file : {"config.json", "vocab.json", "merges.txt", "model.safetensors"}) {
        download("https://huggingface.co/" + place + "/resolve/main/" + file, (fs::path(config.out) / file).string(),
                 "", config.mirror, false);
        folder.keep();
    }
    std::string found;
    try {
        const ModelInfo info = ModelFile::open(config.out)->info();
        if (!info.vocabulary_problem.empty()) fail("%s", info.vocabulary_problem.c_str());
        found = describe(info);
    } catch (const Error& error) {
        fail(
            "%s; either the download was damaged, or the host has it so: remove the folder %s, and try again or with another "
            "--mirror",
            error.what(), in_quotes(config.out).c_str());
    }
    const std::string out = shell_word(config.out);
    std::printf(
        "%s: %s\nTo run it, and to remove its norms (dev/guides/remove-layernorms.md):\n"
        "  ./infer %s -p \"It was\"\n  ./train_gpt -g taper --init %s -i CORPUS\n",
        printable(config.out).c_str(), found.c_str(), out.c_str(), out.c_str());
}

// ----------------------------------------------------------------------------------------------------------

struct Input {
    std::string path, format;
    const char* split;
};

std::unique_ptr<DocumentReader> open_reader(const std::string& path, const std::string& format,
                                            const std::string& field) {
    std::string plain = path;
    for (const char* packed : {".gz", ".xz", ".zst"})
        if (plain.ends_with(packed)) plain.resize(plain.size() - std::strlen(packed));
    const bool packed = plain.size() < path.size();
    for (char& c : plain) c = char(std::tolower(static_cast<unsigned char>(c)));
    if (format == "nested-tar") return std::make_unique<NestedTarReader>(path);
    if (format == "parquet" || (format == "auto" && plain.ends_with(".parquet"))) {
        if (packed)
            fail("%s: expected a Parquet file as it is, found one that is packed; unpack it first",
                 in_quotes(path).c_str());
        return std::make_unique<ParquetReader>(path, field);
    }
    auto source = std::make_unique<ByteSource>(path);
    if (format == "jsonl" || (format == "auto" && (plain.ends_with(".jsonl") || plain.ends_with(".json"))))
        return std::make_unique<LineReader>(std::move(source));
    if (format == "tar" || (format == "auto" && plain.ends_with(".tar")))
        return std::make_unique<TarReader>(std::move(source));
    return std::make_unique<TextReader>(std::move(source));
}

void prepare_text(const std::string& name, const std::vector<Input>& inputs, const ValSize& val,
                  const PrepareConfig& config, OutputFolder& folder) {
    const Tokenizer tokenizer = open_tokenizer(config);
    std::fprintf(stderr, "tokenizer %s, %zu tokens\n", tokenizer.name().c_str(), tokenizer.vocab_size());
    ShardWriter writer(folder, name, config.shard_tokens, val, config.max_tokens);
    tokenizer.save(folder);
    Tokenization tokenization(tokenizer, writer, config);
    try {
        for (const Input& input : inputs) {
            if (writer.full()) break;
            if (input.split) writer.all_to(input.split);
            tokenization.run(*open_reader(input.path, input.format, config.field));
        }
        tokenization.finish();
        MappedFile::check_all();
    } catch (const FileChanged&) {
        folder.take_back();  // shards of two texts
        throw;
    }
    if (writer.tokens() == 0) fail("%s holds no text; name a file with text", in_quotes(config.corpus).c_str());
    if (writer.train_tokens() == 0 && !config.has_val_tokens)
        fail("--max-tokens: expected more than the %zu tokens for validation, which come first; give a larger number",
             writer.val_tokens());
    if (writer.train_tokens() == 0)
        fail("--val-tokens: expected fewer than the %zu tokens of the corpus, found %zu; nothing is left to train on",
             writer.tokens(), config.val_tokens);
    folder.keep();
    report(config, name, writer.train_tokens(), writer.val_tokens());
}

constexpr const char* kPacked[] = {".gz", ".xz", ".zst", ".parquet"};

// About, where it is packed; what a file holds beside the text counts, too.
double size_of(const std::vector<Input>& inputs) {
    double bytes = 0;
    for (const Input& input : inputs) {
        const bool packed = std::any_of(std::begin(kPacked), std::end(kPacked),
                                        [&](const char* ending) { return input.path.ends_with(ending); });
        std::error_code error;
        const auto size = fs::file_size(input.path, error);
        if (error)
            fail(
                "CORPUS: the size of the stream %s is not known; give --val-tokens, or name a file or a pattern of files, in "
                "quotes",
                in_quotes(input.path).c_str());
        bytes += double(size) * (packed ? 3 : 1);
    }
    return bytes;
}

ValSize val_size(const PrepareConfig& config, const NamedCorpus* named, const std::vector<Input>& inputs) {
    if (config.has_val_tokens) return {config.val_tokens};
    if (!named) return {{}, size_of(inputs)};
    return {config.max_tokens ? std::min(named->val_tokens, config.max_tokens / 10) : named->val_tokens};
}

void prepare(PrepareConfig config) {
    const std::vector<NamedCorpus> corpora = named_corpora();
    const auto named = std::find_if(corpora.begin(), corpora.end(),
                                    [&](const NamedCorpus& corpus) { return corpus.name == config.corpus; });
    std::string name = config.corpus;
    if (named == corpora.end()) {
        name = fs::path(config.corpus).filename().string();
        // Only endings that we know: a.1.txt and a.2.txt are two corpora.
        for (const char* ending : {".gz", ".xz", ".zst", ".txt", ".jsonl", ".tar", ".parquet"})
            if (name.ends_with(ending)) name.resize(name.size() - std::strlen(ending));
        std::erase_if(name, [](char c) { return std::strchr("*?[]", c) != nullptr; });
        while (!name.empty() && std::strchr("-_.", name.back())) name.pop_back();  // of "posts_*.txt"
        if (name.empty()) name = "corpus";
    }
    if (config.out.empty()) config.out = "data/" + name;
    OutputFolder folder(config.out);
    if (const char* place = place_of_model(config.corpus)) return prepare_model(place, config, folder);
    if (named != corpora.end() && named->format == "shards") return prepare_shards(*named, config, folder);

    std::vector<Input> inputs;
    if (named == corpora.end()) {
        for (const std::string& path : matching_files(config.corpus)) {
            std::error_code ignored;
            if (!fs::exists(path, ignored))
                fail("%s is not a known corpus, and no file has this name; check the path (--help lists the corpora)",
                     in_quotes(path).c_str());
            if (!ByteSource::is_stream(path))
                MappedFile check(path);  // a folder is an error before anything is fetched
            inputs.push_back({path, config.format, nullptr});
        }
    } else {
        for (const RemoteFile& file : named->files) {
            inputs.push_back(
                {(fs::path(config.downloads) / name / file_name(file.url)).string(), named->format, file.split});
            download(file.url, inputs.back().path, file.sha256, config.mirror);
        }
    }
    const ValSize val = val_size(config, named == corpora.end() ? nullptr : &*named, inputs);
    prepare_text(name, inputs, val, config, folder);
}

}  // namespace

[[maybe_unused]] static int run_prepare(int argc, char** argv) {
    PrepareConfig config;
    Options options(
        "prepare",
        "Makes token shards for train_gpt: downloads a corpus, tokenizes it and splits it. Or downloads a GPT-2 to "
        "begin from.");
    options.add(
        {.long_name = "corpus",
         .to = &config.corpus,
         .metavar = "CORPUS",
         .help =
             "tinyshakespeare, tinystories, openwebtext or fineweb-edu; or a file (text, .jsonl or .tar, also "
             "packed as .gz, .xz or .zst; or .parquet); or a pattern of several files, in quotes; or a model: gpt2, "
             "gpt2-medium, gpt2-large, gpt2-xl or distilgpt2"});
    options.add({.short_name = "-o",
                 .long_name = "--out",
                 .to = &config.out,
                 .metavar = "DIR",
                 .default_text = "data/CORPUS",
                 .help = "folder for the shards"});
    options.add({.long_name = "--tokenizer",
                 .to = &config.tokenizer,
                 .metavar = "NAME|DIR",
                 .help = "gpt2 (downloaded on first use), bytes, or a folder with vocab.json and merges.txt"});
    options.add({.long_name = "--format",
                 .to = &config.format,
                 .choices = {"auto", "text", "jsonl", "parquet", "tar", "nested-tar"},
                 .help = "format of your own files; auto: by file extension"});
    options.add({.long_name = "--field",
                 .to = &config.field,
                 .metavar = "NAME",
                 .help = "for JSON lines and Parquet: the field that holds the text"});
    options.add({.long_name = "--shard-tokens",
                 .to = &config.shard_tokens,
                 .metavar = "N",
                 .range = {.low = 1, .high = 2147483647},
                 .help = "tokens per shard"});
    options.add({.long_name = "--val-tokens",
                 .to = &config.val_tokens,
                 .metavar = "N",
                 .default_text = "a tenth, at most a shard",
                 .help = "use the first N tokens for validation (not for corpora that have a validation file)"});
    options.add({.long_name = "--max-tokens",
                 .to = &config.max_tokens,
                 .metavar = "N",
                 .default_text = "all",
                 .help = "stop after N tokens"});
    options.add(
        {.long_name = "--downloads", .to = &config.downloads, .metavar = "DIR", .help = "where to keep downloads"});
    options.add({.long_name = "--mirror",
                 .to = &config.mirror,
                 .metavar = "URL",
                 .default_text = "the public hosts",
                 .help = "download from here instead: https://HOST, or file:///DIR for files you already have"});
    options.add({.long_name = "--threads",
                 .to = &config.threads,
                 .metavar = "N",
                 .default_text = "the cores it may use",
                 .help = "threads for tokenizing"});
    return exit_status("prepare", [&] {
        if (!options.parse(argc, argv)) return 0;
        if (printable(config.mirror) != config.mirror)  // curl prints it as it is
            fail("--mirror: expected a URL without control characters, found %s", in_quotes(config.mirror).c_str());
        if (options.given("--mirror") && !config.mirror.starts_with("https://") &&
            !config.mirror.starts_with("http://") && !config.mirror.starts_with("file:///"))
            fail("--mirror: expected https://HOST or file:///DIR, found %s", in_quotes(config.mirror).c_str());
        config.has_val_tokens = options.given("--val-tokens");
        for (const char* flag :
             {"--tokenizer", "--format", "--field", "--shard-tokens", "--val-tokens", "--max-tokens"})
            if (place_of_model(config.corpus) && options.given(flag))
                fail("%s: is for corpora, and %s is a model with a vocabulary of its own; leave it out", flag,
                     config.corpus.c_str());
        prepare(config);
        return 0;
    });
}

}  // namespace tapernorm::prepare

#ifndef TAPERNORM_NO_MAIN
int main(int argc, char** argv) {
    tapernorm::start_program();
    return tapernorm::prepare::run_prepare(argc, argv);
}
#endif
