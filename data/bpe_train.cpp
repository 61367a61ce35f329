// Trains a byte-level BPE vocabulary on text and writes GPT-2's two files, vocab.json and merges.txt.
//   bpe_train TEXT --vocab-size 10000 --out DIR
//
// The method is that of Sennrich et al. (2016), as GPT-2 uses it: text is cut into words (io/words.h), and the most
// frequent adjacent pair of tokens within words becomes a token, again and again. Of equally frequent pairs the one
// with the smaller ids comes first, as in Hugging Face's tokenizers, so that both learn the same merges. The ids are
// those of the 256 bytes in GPT-2's order, then of the merges in theirs, then of <|endoftext|>.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <queue>
#include <unordered_map>

#include "io/atomic_file.h"
#include "io/files.h"
#include "io/mapped_file.h"
#include "io/options.h"
#include "io/output_folder.h"
#include "io/terminal.h"
#include "io/tokenizer.h"
#include "io/words.h"
#include "runtime/cpu.h"
#include "runtime/exit_status.h"

namespace tapernorm::prepare {

namespace {

struct TrainConfig {
    std::string text, out = "tokenizer";
    size_t vocab_size = 10000, min_frequency = 2, threads = 0;
};

// ----------------------------------------------------------------------------------------------------------
// Counting

using WordCounts = std::unordered_map<std::string_view, uint64_t>;

// The words of all files with their frequencies; the words point into the files. <|endoftext|> separates documents and
// is not a word.
WordCounts count_words(const std::vector<TextFile>& files, int threads) {
    constexpr size_t kPartBytes = 1 << 20;
    std::vector<std::string_view> parts;
    std::vector<const TextFile*> file_of;
    size_t total = 0;
    for (const TextFile& file : files) {
        const std::string_view text = file.text();
        total += text.size();
        for (size_t at = 0; at < text.size();) {
            const size_t end = word_safe_cut(text, at + kPartBytes);
            parts.push_back(text.substr(at, end - at));
            file_of.push_back(&file);
            at = end;
        }
    }
    std::vector<WordCounts> counts(Cpu(threads).threads);
    LiveLine progress(true, stderr);
    std::atomic<size_t> done = 0;
    parallel_tasks(Cpu(threads), parts.size(), [&](size_t i, int thread) {
        WordCounts& mine = counts[size_t(thread)];
        for (size_t at = 0; at <= parts[i].size();) {
            const size_t end = std::min(parts[i].find(kEndOfText, at), parts[i].size());
            Words words(parts[i].substr(at, end - at));
            for (std::string_view word; words.next(word);) ++mine[word];
            at = end == parts[i].size() ? end + 1 : end + kEndOfText.size();
        }
        file_of[i]->check();  // not only after minutes of work on zeros
        done += parts[i].size();
        progress.update([&] {
            return strprintf("counting words: %.0f%% of %.1f MB", 100.0 * double(done) / double(total),
                             double(total) / 1e6);
        });
    });
    for (size_t i = 1; i < counts.size(); ++i)
        for (const auto& [word, count] : counts[i]) counts[0][word] += count;
    progress.show(strprintf("counted %s in %.1f MB, %.1f s", counted(counts[0].size(), "different word").c_str(),
                            double(total) / 1e6, progress.seconds()),
                  true);
    return std::move(counts[0]);
}

// ----------------------------------------------------------------------------------------------------------
// Merging

struct Vocabulary {
    std::vector<std::string> tokens;
    std::vector<std::pair<uint16_t, uint16_t>> merges;
};

class PairTrainer {
  public:
    explicit PairTrainer(const WordCounts& counts);
    Vocabulary train(size_t vocab_limit, uint64_t min_frequency);

  private:
    struct Word {
        size_t begin, length;  // in symbols_; shrinks as pairs merge
        int64_t count;
    };
    struct PairUse {
        int64_t count = 0;
        std::vector<uint32_t> words;  // that had the pair when it arose; some may have lost it since
        size_t round = 0;             // the number of merges when it last arose
    };
    struct Candidate {
        int64_t count;  // when it was queued; later it can only fall, or the pair is queued again
        uint32_t pair;
        bool operator<(const Candidate& other) const {  // the queue's top is the largest
            return count != other.count ? count < other.count : pair > other.pair;
        }
    };
    static uint32_t key(uint16_t left, uint16_t right) { return uint32_t(left) << 16 | right; }
    void add(uint16_t left, uint16_t right, uint32_t word, std::vector<uint32_t>* fresh);
    void merge_in_word(uint32_t word, uint16_t left, uint16_t right, uint16_t merged, std::vector<uint32_t>& fresh);
    uint16_t token_id(const std::string& token);

    Vocabulary vocabulary_;
    std::unordered_map<std::string, uint16_t> ids_;
    std::vector<uint16_t> symbols_;
    std::vector<Word> words_;
    std::unordered_map<uint32_t, PairUse> pairs_;
};

uint16_t PairTrainer::token_id(const std::string& token) {
    const auto [found, is_new] = ids_.emplace(token, uint16_t(vocabulary_.tokens.size()));
    if (is_new) vocabulary_.tokens.push_back(token);
    return found->second;
}

void PairTrainer::add(uint16_t left, uint16_t right, uint32_t word, std::vector<uint32_t>* fresh) {
    PairUse& use = pairs_[key(left, right)];
    use.count += words_[word].count;
    if (fresh && use.round != vocabulary_.merges.size()) fresh->push_back(key(left, right));
    use.round = vocabulary_.merges.size();
    if (use.words.empty() || use.words.back() != word) use.words.push_back(word);
}

PairTrainer::PairTrainer(const WordCounts& counts) {
    // GPT-2 orders the bytes by the characters that stand for them.
    std::vector<std::pair<std::string, std::string>> bytes;
    for (size_t b = 0; b < 256; ++b) {
        const std::string byte(1, char(b));
        bytes.emplace_back(printable_from_bytes(byte), byte);
    }
    std::sort(bytes.begin(), bytes.end());  // UTF-8 sorts like code points
    std::array<uint16_t, 256> byte_id;
    for (const auto& [character, byte] : bytes) byte_id[static_cast<unsigned char>(byte[0])] = token_id(byte);

    for (const auto& [word, count] : counts) {
        words_.push_back({symbols_.size(), word.size(), int64_t(count)});
        for (const char c : word) symbols_.push_back(byte_id[static_cast<unsigned char>(c)]);
    }
    for (uint32_t w = 0; w < words_.size(); ++w) {
        const uint16_t* s = &symbols_[words_[w].begin];
        for (size_t i = 0; i + 1 < words_[w].length; ++i) add(s[i], s[i + 1], w, nullptr);
    }
}

// Replaces the pair from left to right, and updates the counts of the pairs beside it.
void PairTrainer::merge_in_word(uint32_t word, uint16_t left, uint16_t right, uint16_t merged,
                                std::vector<uint32_t>& fresh) {
    Word& w = words_[word];
    uint16_t* s = &symbols_[w.begin];
    size_t out = 0;
    for (size_t i = 0; i < w.length; ++i) {
        if (i + 1 == w.length || s[i] != left || s[i + 1] != right) {
            s[out++] = s[i];
            continue;
        }
        if (out > 0) {
            pairs_[key(s[out - 1], left)].count -= w.count;
            add(s[out - 1], merged, word, &fresh);
        }
        if (i + 2 < w.length) {
            pairs_[key(right, s[i + 2])].count -= w.count;
            add(merged, s[i + 2], word, &fresh);
        }
        s[out++] = merged;
        ++i;
    }
    w.length = out;
}

Vocabulary PairTrainer::train(size_t vocab_limit, uint64_t min_frequency) {
    std::priority_queue<Candidate> queue;
    for (const auto& [pair, use] : pairs_)
        if (use.count > 0) queue.push({use.count, pair});
    LiveLine progress(true, stderr);
    std::vector<uint32_t> fresh;
    while (vocabulary_.tokens.size() < vocab_limit && !queue.empty()) {
        Candidate top = queue.top();
        queue.pop();
        const int64_t count = pairs_[top.pair].count;
        if (top.count != count) {
            if (count > 0) queue.push({count, top.pair});
            continue;
        }
        if (uint64_t(count) < min_frequency) break;
        const auto left = uint16_t(top.pair >> 16), right = uint16_t(top.pair);
        const uint16_t merged = token_id(vocabulary_.tokens[left] + vocabulary_.tokens[right]);
        vocabulary_.merges.emplace_back(left, right);
        fresh.clear();
        const std::vector<uint32_t> words = std::move(pairs_[top.pair].words);
        pairs_.erase(top.pair);
        for (const uint32_t word : words) merge_in_word(word, left, right, merged, fresh);
        pairs_.erase(top.pair);  // merging "aaa" has counted its own pair again
        for (const uint32_t pair : fresh)
            if (pairs_[pair].count > 0) queue.push({pairs_[pair].count, pair});
        progress.update(
            [&] { return strprintf("merging: %zu of %zu tokens", vocabulary_.tokens.size(), vocab_limit); });
    }
    progress.show(counted(vocabulary_.merges.size(), "merge") + strprintf(", %.1f s", progress.seconds()), true);
    return std::move(vocabulary_);
}

// ----------------------------------------------------------------------------------------------------------

void train(const TrainConfig& config) {
    constexpr size_t kAlphabet = 256, kSpecials = 1;
    std::vector<TextFile> files;
    for (const std::string& path : matching_files(config.text))
        warn_unless_utf8(in_quotes(path), files.emplace_back(path).text());
    OutputFolder folder(config.out);
    for (const char* file : {"vocab.json", "merges.txt"}) {
        const std::string path = (std::filesystem::path(config.out) / file).string();
        if (std::filesystem::exists(path))  // before minutes of work
            fail("--out: %s exists already; remove it, or name another folder", in_quotes(path).c_str());
        check_writable(path);
    }
    const WordCounts counts = count_words(files, int(config.threads));
    if (counts.empty()) fail("%s holds no text; name a file with text", in_quotes(config.text).c_str());
    PairTrainer trainer(counts);
    Vocabulary vocabulary = trainer.train(config.vocab_size - kSpecials, config.min_frequency);
    vocabulary.tokens.emplace_back(kEndOfText);
    if (vocabulary.tokens.size() < config.vocab_size)
        std::fprintf(stderr, "only %zu tokens: no other pair occurs %s; use more text or a smaller --min-frequency\n",
                     vocabulary.tokens.size(), counted(config.min_frequency, "time").c_str());
    const Tokenizer tokenizer =
        Tokenizer::from_text(vocab_json_text(vocabulary.tokens), merges_txt_text(vocabulary.tokens, vocabulary.merges),
                             in_quotes(config.out));
    MappedFile::check_all();
    tokenizer.save(folder);
    folder.keep();
    std::printf("%s: %s, %zu bytes, %s, <|endoftext|>\n", printable(config.out).c_str(), tokenizer.name().c_str(),
                kAlphabet, counted(vocabulary.merges.size(), "merge").c_str());
}

}  // namespace

[[maybe_unused]] static int run_bpe_train(int argc, char** argv) {
    TrainConfig config;
    Options options("bpe_train", "Trains a byte-level BPE vocabulary in GPT-2's format on text.");
    options.add({.long_name = "text",
                 .to = &config.text,
                 .metavar = "TEXT",
                 .help = "text file, or a pattern of several, in quotes; <|endoftext|> separates documents"});
    options.add({.short_name = "-o",
                 .long_name = "--out",
                 .to = &config.out,
                 .metavar = "DIR",
                 .help = "folder for vocab.json and merges.txt"});
    options.add({.short_name = "-v",
                 .long_name = "--vocab-size",
                 .to = &config.vocab_size,
                 .metavar = "N",
                 .range = {.low = 257, .high = 65536},
                 .help = "size of the vocabulary, including the 256 bytes and <|endoftext|>"});
    options.add({.long_name = "--min-frequency",
                 .to = &config.min_frequency,
                 .metavar = "N",
                 .range = {.low = 1},
                 .help = "merge only pairs that occur at least N times"});
    options.add({.long_name = "--threads",
                 .to = &config.threads,
                 .metavar = "N",
                 .default_text = "the cores it may use",
                 .help = "threads for counting words"});
    return exit_status("bpe_train", [&] {
        if (options.parse(argc, argv)) train(config);
        return 0;
    });
}

}  // namespace tapernorm::prepare

#ifndef TAPERNORM_NO_MAIN
int main(int argc, char** argv) {
    tapernorm::start_program();
    return tapernorm::prepare::run_bpe_train(argc, argv);
}
#endif
