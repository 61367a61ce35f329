#include "inference/prompts.h"

#include <algorithm>
#include <charconv>
#include <string_view>

#include "io/files.h"
#include "io/tokens.h"
#include "runtime/error.h"

namespace tapernorm {

namespace {

std::vector<int> parse_ids(const std::string& list) {
    std::vector<int> tokens;
    for (const char *p = list.data(), *end = p + list.size();;) {
        int id = 0;
        const auto [after, error] = std::from_chars(p, end, id);
        if (error != std::errc() || id < 0 || (after != end && *after != ','))
            fail("--tokens: expected ids such as 1,2,3, found %s", in_quotes(list).c_str());
        tokens.push_back(id);
        if (after == end) return tokens;
        p = after + 1;
    }
}

}  // namespace

void PromptReader::check(const std::string& what, const std::vector<int>& tokens) const {
    const Config& c = info_.config;
    check_ids(tokens, c.V, [&](size_t i) { return strprintf("%s: token %zu", what.c_str(), i); });
    if (tokens.size() > c.T)
        fail("%s: expected at most %s (the context of %s), found %zu; shorten it", what.c_str(),
             counted(c.T, "token").c_str(), model_.c_str(), tokens.size());
}

const Tokenizer& PromptReader::require_tokenizer() const {
    if (!tokenizer_) fail("%s; or give ids with --tokens", why_none_.c_str());
    return *tokenizer_;
}

Prompt PromptReader::from_ids(const std::string& list) const {
    Prompt p{parse_ids(list), ""};
    if (tokenizer_)  // see check_tokenizer
        for (int id : p.tokens)
            p.text += size_t(id) < tokenizer_->vocab_size() ? tokenizer_->token(size_t(id)) : "\xef\xbf\xbd";
    check("the prompt", p.tokens);
    return p;
}

Prompt PromptReader::from_text(const std::string& text) const {
    const std::vector<uint16_t> ids = require_tokenizer().encode(text, true);
    if (ids.empty()) fail("--prompt: expected at least one token, found an empty text");
    const Prompt p{{ids.begin(), ids.end()}, text};
    check("the prompt", p.tokens);
    return p;
}

Prompt PromptReader::from_opening(const std::string& text) const {
    std::vector<uint16_t> ids = require_tokenizer().encode(text, true);
    if (ids.size() <= info_.config.T) return from_text(text);
    ids.resize(info_.config.T);
    const Prompt p{{ids.begin(), ids.end()}, tokenizer_->decode(ids)};
    check("the prompt", p.tokens);
    return p;
}

std::vector<Prompt> PromptReader::from_lines(const std::string& path) const {
    const TextFile file(path);
    const std::string_view text = file.text();
    std::vector<Prompt> prompts;
    for (size_t at = 0; at < text.size();) {
        const size_t end = std::min(text.find('\n', at), text.size());
        std::string line(text.substr(at, end - at));
        if (line.ends_with('\r')) line.pop_back();
        const std::string what = strprintf("line %zu of %s", prompts.size() + 1, path.c_str());
        const std::vector<uint16_t> ids = require_tokenizer().encode(line, true);
        if (ids.empty()) fail("%s: expected a prompt, found an empty line; remove it", what.c_str());
        prompts.push_back({{ids.begin(), ids.end()}, line});
        check(what, prompts.back().tokens);
        at = end + 1;
    }
    if (prompts.empty()) fail("--prompts %s: expected one prompt per line, found an empty file", path.c_str());
    return prompts;
}

}  // namespace tapernorm
