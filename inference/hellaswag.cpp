#include "inference/hellaswag.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "io/files.h"
#include "io/json.h"
#include "io/mapped_file.h"
#include "io/tokens.h"
#include "runtime/error.h"

namespace tapernorm {

using nlohmann::json;

void HellaSwag::add(const Choice& choice, const std::vector<double>& scores) {
    std::vector<double> per_token = scores;
    for (size_t i = 0; i < scores.size(); i++) per_token[i] /= double(choice.endings[i].size());
    auto best = [](const std::vector<double>& s) { return size_t(std::max_element(s.begin(), s.end()) - s.begin()); };
    items++;
    correct += best(scores) == choice.label;
    correct_norm += best(per_token) == choice.label;
    log_likelihood += per_token[choice.label];
}

std::string HellaSwag::text() const {
    return strprintf("%s: acc %.4f, acc_norm %.4f, log-likelihood %.5f per token of the right endings",
                     counted(items, "item").c_str(), acc(), acc_norm(), log_likelihood / double(items));
}

namespace {

constexpr int32_t kMagic = 20240522;
constexpr size_t kHeaderBytes = 1024, kMaxEndings = 64;
constexpr uint16_t kStart = 65535;

std::vector<Choice> read_llmc(const std::string& path, const MappedFile& file) {
    int32_t header[4] = {};
    if (file.size() < kHeaderBytes || (file.size() - kHeaderBytes) % 2)
        fail(
            "%s: expected a header of %zu bytes and 16-bit numbers (llm.c's evaluation file), found %zu bytes; the copy of the "
            "file is incomplete",
            path.c_str(), kHeaderBytes, file.size());
    std::memcpy(header, file.data(), sizeof header);
    if (header[1] != 1) fail("%s: expected version 1 of llm.c's evaluation file, found %d", path.c_str(), header[1]);
    const size_t numbers = (file.size() - kHeaderBytes) / 2;
    size_t at = 0, item = 0;
    auto next = [&](const char* what, size_t low, size_t high) {
        uint16_t value = 0;
        if (at == numbers)
            fail("%s ends within item %zu of %d; the copy of the file is incomplete", path.c_str(), item, header[2]);
        std::memcpy(&value, file.data() + kHeaderBytes + 2 * at++, 2);
        if (value < low || value > high)
            fail("%s: item %zu: %s: expected %zu%s, found %u; the file is damaged", path.c_str(), item, what, low,
                 low == high ? "" : (" to " + std::to_string(high)).c_str(), value);
        return size_t(value);
    };
    auto tokens = [&](const char* what) {
        std::vector<int> ids(next(what, 1, kStart - 1));
        for (int& id : ids) id = int(next("a token", 0, kStart - 1));
        return ids;
    };
    std::vector<Choice> choices;
    for (; item < size_t(std::max(header[2], 0)); item++) {
        const size_t begin = at;
        next("the start of an item", kStart, kStart);
        const size_t bytes = next("its bytes", 0, kStart);
        next("its number", item, item);
        Choice& choice = choices.emplace_back();
        choice.label = next("the label", 0, kStart - 1);
        choice.endings.resize(next("the number of endings", 1, kMaxEndings));
        if (choice.label >= choice.endings.size())
            fail("%s: item %zu: the label: expected 0 to %zu, found %zu; the file is damaged", path.c_str(), item,
                 choice.endings.size() - 1, choice.label);
        choice.context = tokens("tokens of the context");
        for (std::vector<int>& ending : choice.endings) ending = tokens("tokens of an ending");
        if ((at - begin) * 2 != bytes)
            fail("%s: item %zu: expected %zu bytes, found %zu; the file is damaged", path.c_str(), item, bytes,
                 (at - begin) * 2);
    }
    if (at != numbers)
        fail("%s: %zu bytes follow its %s; the file is damaged", path.c_str(), (numbers - at) * 2,
             counted(item, "item").c_str());
    return choices;
}

std::vector<int> encode(const Tokenizer& tokenizer, const std::string& text) {
    const std::vector<uint16_t> ids = tokenizer.encode(text);
    return {ids.begin(), ids.end()};
}

Choice parse_line(const std::string& where, std::string_view line, const Tokenizer& tokenizer) {
    const json item = parse_json(line);
    auto refuse = [&] {
        fail("%s: expected {\"ctx\": \"...\", \"endings\": [\"...\", ...], \"label\": 0}, found %s", where.c_str(),
             item.is_discarded() ? json_found(item, line).c_str() : in_quotes(line).c_str());
    };
    if (!item.is_object() || !item.contains("ctx") || !item.contains("endings") || !item.contains("label")) refuse();
    const json &context = item["ctx"], &endings = item["endings"], &label = item["label"];
    if (!context.is_string() || !endings.is_array() || endings.empty() || endings.size() > kMaxEndings) refuse();
    Choice choice{encode(tokenizer, context.get<std::string>()), {}, endings.size()};
    for (const json& ending : endings) {
        if (!ending.is_string()) refuse();
        choice.endings.push_back(encode(tokenizer, std::string(" ").append(ending.get<std::string>())));
    }
    for (size_t i = 0; i < endings.size(); i++)  // in some copies the labels are strings
        if (label == i || label == std::to_string(i)) choice.label = i;
    if (choice.label == endings.size() || choice.context.empty()) refuse();
    return choice;
}

std::vector<Choice> read_json_lines(const std::string& path, const MappedFile& file,
                                    const std::optional<Tokenizer>& tokenizer) {
    if (!tokenizer)
        fail(
            "%s: its texts need a tokenizer, and the model has none; give --tokenizer, or llm.c's .bin, which holds ids",
            path.c_str());
    const std::string_view text = check_text(path, {reinterpret_cast<const char*>(file.data()), file.size()});
    std::vector<Choice> choices;
    for (size_t at = 0, number = 1; at < text.size(); number++) {
        const size_t end = std::min(text.find('\n', at), text.size());
        const std::string_view line = text.substr(at, end - at);
        if (line.find_first_not_of(" \t\r") != line.npos)
            choices.push_back(parse_line(strprintf("%s: line %zu", path.c_str(), number), line, *tokenizer));
        at = end + 1;
    }
    return choices;
}

}  // namespace

std::vector<Choice> read_hellaswag(const std::string& path, const std::optional<Tokenizer>& tokenizer, size_t V,
                                   size_t T) {
    const MappedFile file(path);
    int32_t magic = 0;
    if (file.size() >= sizeof magic) std::memcpy(&magic, file.data(), sizeof magic);
    std::vector<Choice> choices = magic == kMagic ? read_llmc(path, file) : read_json_lines(path, file, tokenizer);
    if (magic == kMagic && tokenizer && tokenizer->name() != "gpt2" && tokenizer->vocab_size() > 256)
        std::fprintf(
            stderr,
            "warning: %s: its ids are those of gpt2, and the model's tokenizer is %s; give the original JSON lines\n",
            in_quotes(path).c_str(), tokenizer->name().c_str());
    if (choices.empty()) fail("%s: expected at least one item, found none", path.c_str());
    for (size_t i = 0; i < choices.size(); i++) {
        Choice& choice = choices[i];
        size_t longest = 0;
        for (const std::vector<int>& ending : choice.endings) longest = std::max(longest, ending.size());
        if (longest >= T)
            fail("%s: item %zu has an ending of %s; expected fewer than the model's context, %zu", path.c_str(), i,
                 counted(longest, "token").c_str(), T);
        const size_t keep =
            std::min(choice.context.size(), T - longest);  // the context's end, where all of it is too long
        choice.context.erase(choice.context.begin(), choice.context.end() - ptrdiff_t(keep));
        auto where = [&](size_t t) { return strprintf("%s: item %zu: token %zu", path.c_str(), i, t); };
        check_ids(choice.context, V, where);
        for (const std::vector<int>& ending : choice.endings) check_ids(ending, V, where);
    }
    return choices;
}

}  // namespace tapernorm
