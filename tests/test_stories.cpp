// The built-in corpus: the same everywhere, plain, complete, varied, and right in its articles and pronouns.
// The checks know names and English, not the grammar's tables.
#include <doctest/doctest.h>

#include <algorithm>
#include <cctype>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <thread>

#define TAPERNORM_NO_MAIN
#include "data/make_stories.cpp"
#undef TAPERNORM_NO_MAIN
#include "tests/errors.h"
#include "tests/run_program.h"

namespace tapernorm {

namespace {

const std::string& corpus() {
    static const std::string text = story_corpus();
    return text;
}

std::vector<std::string> stories_of(const std::string& text) {
    std::vector<std::string> stories;
    for (size_t start = 0; start < text.size();) {
        const size_t end = text.find("\n\n", start);
        if (end == text.npos) return stories;
        stories.push_back(text.substr(start, end - start));
        start = end + 2;
    }
    return stories;
}

// Words with their case, without punctuation; "Tom's" is one word, and not Tom.
std::vector<std::string> words_of(const std::string& text) {
    std::vector<std::string> words(1);
    for (size_t i = 0; i < text.size(); i++) {
        if (std::isalpha(static_cast<unsigned char>(text[i])) || text[i] == '\'')
            words.back() += text[i];
        else if (!words.back().empty())
            words.emplace_back();
    }
    if (words.back().empty()) words.pop_back();
    return words;
}

uint64_t fnv1a(std::string_view bytes) {
    uint64_t hash = 0xcbf29ce484222325;
    for (const char c : bytes) hash = (hash ^ uint64_t(static_cast<unsigned char>(c))) * 0x100000001b3;
    return hash;
}

std::set<std::string> set_of(const std::string& words) {
    std::istringstream in(words);
    return std::set<std::string>(std::istream_iterator<std::string>(in), {});
}

// "a apple" or "an pear", if the story has one; else empty.
std::string article_error(const std::string& story) {
    const std::vector<std::string> words = words_of(story);
    for (size_t i = 0; i + 1 < words.size(); i++) {
        const bool vowel = std::string_view("aeiouAEIOU").find(words[i + 1][0]) != std::string_view::npos;
        const bool a = words[i] == "a" || words[i] == "A", an = words[i] == "an" || words[i] == "An";
        if ((a && vowel) || (an && !vowel)) return words[i] + " " + words[i + 1];
    }
    return "";
}

enum class Gender { none, she, he };

Gender gender_of_name(const std::string& word) {
    static const std::set<std::string> she = set_of(
        "Lily Mia Anna Emma Rosie Sara Nora Ella Zoe Kate Lucy Amy Daisy Hazel Poppy Honey Ruby Willow Luna "
        "Coco");
    static const std::set<std::string> he =
        set_of("Tom Ben Max Sam Leo Jack Tim Finn Noah Adam Luke Owen Rusty Pip Bruno Teddy Bingo Rocky Toby Hugo");
    return she.count(word) ? Gender::she : he.count(word) ? Gender::he : Gender::none;
}

Gender gender_of_subject_pronoun(const std::string& word) {
    return word == "she" || word == "She" ? Gender::she : word == "he" || word == "He" ? Gender::he : Gender::none;
}

// The sentences of a story without what is said in quotes.
std::vector<std::string> narration(const std::string& story) {
    std::vector<std::string> sentences(1);
    bool quoted = false;
    for (size_t i = 0; i < story.size(); i++) {
        const char c = story[i];
        if (c == '"') {
            quoted = !quoted;
            const char before = i ? story[i - 1] : ' ';
            if (!quoted && before == '.') sentences.emplace_back();  // a quote that ends with '.' ends its sentence
        } else if (!quoted) {
            sentences.back() += c;
            if (c == '.' || c == '!' || c == '?' || c == '\n') sentences.emplace_back();
        }
    }
    return sentences;
}

// What is wrong with the story's pronouns; empty if nothing. A story has at most one she and one he with a
// name, so a pronoun must follow the name of its kind; and a sentence that starts with "he" or "she"
// continues with the subject of the sentence before, which is the first name there.
std::string pronoun_error(const std::string& story) {
    std::set<std::string> named[3];
    const std::set<std::string> she_words = set_of("she She her Her hers"), he_words = set_of("he He his His him");
    const std::vector<std::string> words = words_of(story);
    for (size_t i = 0; i < words.size(); i++) {
        const Gender gender = gender_of_name(words[i]);
        named[int(gender)].insert(words[i]);
        if (named[int(Gender::she)].size() > 1 || named[int(Gender::he)].size() > 1)
            return "two of a kind: " + words[i];
        if (i >= 2 && words[i - 1] == "named") {
            if (words[i - 2] == "girl" && gender != Gender::she) return "a girl named " + words[i];
            if (words[i - 2] == "boy" && gender != Gender::he) return "a boy named " + words[i];
        }
        if (i + 1 < words.size() && words[i + 1] == "name") continue;  // "Her name was Lily."
        if (she_words.count(words[i]) && named[int(Gender::she)].empty()) return words[i] + " before her name";
        if (he_words.count(words[i]) && named[int(Gender::he)].empty()) return words[i] + " before his name";
    }
    Gender subject = Gender::none;
    for (const std::string& sentence : narration(story)) {
        for (const std::string& word : words_of(sentence)) {
            const Gender pronoun = gender_of_subject_pronoun(word), name = gender_of_name(word);
            if (pronoun != Gender::none && pronoun != subject) return "who is \"" + word + "\" in \"" + sentence + "\"";
            if (pronoun != Gender::none) break;
            if (name == Gender::none) continue;
            subject = name;
            break;
        }
    }
    return "";
}

// The part of `text` after the first `before` up to `after`; empty if there is none.
std::string between(const std::string& text, const std::string& before, const std::string& after) {
    const size_t found = text.find(before);
    if (found == text.npos) return "";
    const size_t start = found + before.size(), end = text.find(after, start);
    return end == text.npos ? "" : text.substr(start, end - start);
}

}  // namespace

// A golden value, because a change of the corpus changes every loss and sample that is quoted for it and must
// not happen by accident, nor from one compiler or machine to the next. When the grammar is changed on
// purpose, put the new value here.
TEST_CASE("stories: the corpus is the same bytes everywhere") {
    CHECK(fnv1a(std::string_view(corpus()).substr(0, 65536)) == 0x16c1f07314920972);
    CHECK(story_corpus(100'000, 7) == story_corpus(100'000, 7));
    CHECK(story_corpus(100'000, 7) != story_corpus(100'000, 8));
    CHECK(corpus().compare(0, 100'000, story_corpus(200'000), 0, 100'000) == 0);  // a longer corpus only continues it
}

TEST_CASE("stories: the requested size is honoured within one story") {
    CHECK(story_corpus(0).empty());
    for (const size_t bytes : {size_t(1), size_t(1000), size_t(123'457), kStoryBytes}) {
        const std::string text = story_corpus(bytes);
        const std::vector<std::string> stories = stories_of(text);
        REQUIRE(!stories.empty());
        CHECK(text.size() >= bytes);
        CHECK(text.size() - (stories.back().size() + 2) < bytes);
    }
}

TEST_CASE("stories: plain text, whole stories of the promised length, no mark left") {
    size_t total = 0;
    for (const std::string& story : stories_of(corpus())) {
        total += story.size() + 2;
        std::string error;
        for (const char c : story)
            if (c != '\n' && (c < ' ' || c > '~')) error = "not printable ASCII";
        if (story.find_first_of("[]{}|_<>;") != story.npos) error = "a mark of the templates";
        for (const char* bad : {"  ", " .", " ,", "..", ",.", " \n", "\n ", "!.", "?,"})
            if (story.find(bad) != story.npos) error = std::string("contains '") + bad + "'";
        if (story.size() < 250 || story.size() > 600) error = "length " + std::to_string(story.size());
        if (std::count(story.begin(), story.end(), '"') % 2) error = "an open quote";
        if (error.empty()) continue;
        FAIL_CHECK(error << ":\n" << story);
        return;
    }
    CHECK(total == corpus().size());
}

TEST_CASE("stories: every story has an ending") {
    const std::set<std::string> closing = set_of(
        "happy smile smiled laughed proud glad friend friends kind heart never always best better good day "
        "time "
        "together asleep brave back won help only right well From After thank Thank worth hug half both "
        "again dark");
    for (const std::string& story : stories_of(corpus())) {
        const bool stops = story.ends_with('.') || story.ends_with("!") || story.ends_with(".\"");
        const std::vector<std::string> last = words_of(story.substr(story.rfind('\n') + 1));
        const bool closes =
            std::any_of(last.begin(), last.end(), [&](const std::string& word) { return closing.count(word) > 0; });
        if (stops && closes && std::count(story.begin(), story.end(), '\n') >= 2) continue;
        FAIL_CHECK("no ending:\n" << story);
        return;
    }
}

TEST_CASE("stories: a and an, he and she") {
    CHECK(article_error("It was a old owl.") == "a old");
    CHECK(article_error("An pear and an apple.") == "An pear");
    CHECK(pronoun_error("Lily had a ball. He was sad.") != "");
    CHECK(pronoun_error("Lily saw Tom. He was sad.") != "");
    CHECK(pronoun_error("Lily and Mia had a ball.") != "");
    CHECK(pronoun_error("There was a girl named Tom.") != "");
    CHECK(pronoun_error("Lily gave Tom her ball. \"Thanks,\" said Tom. He was happy.") == "");
    for (const std::string& story : stories_of(corpus())) {
        const std::string error = article_error(story) + pronoun_error(story);
        if (error.empty()) continue;
        FAIL_CHECK(error << ":\n" << story);
        return;
    }
}

TEST_CASE("stories: what is lost is found, what is broken is owned up to, what is advised is done") {
    struct Rule {
        const char *before, *after;   // the thing stands between these two, in an early sentence
        const char *prefix, *suffix;  // a later sentence must have the same thing between these two
    };
    for (const Rule& rule :
         {Rule{"There was the ", "!", " ", ",\" said"}, Rule{"Crash! The ", " fell", "I broke your ", ",\""},
          Rule{"Follow the ", ".\"", "followed the ", ", and"}, Rule{"had a race to the ", ".", "walked to the ", " "},
          Rule{"My ", " is stuck!", " the ", " down"}}) {
        size_t checked = 0;
        for (const std::string& story : stories_of(corpus())) {
            const std::string thing = between(story, rule.before, rule.after);
            if (thing.empty()) continue;
            checked++;
            if (story.find(rule.prefix + thing + rule.suffix) != story.npos) continue;
            FAIL_CHECK(std::string(rule.before) << thing << " has no sequel:\n" << story);
            return;
        }
        CHECK(checked >= 100);
    }
}

TEST_CASE("stories: varied, yet few words") {
    const std::vector<std::string> stories = stories_of(corpus());
    std::map<std::string, size_t> copies, words;
    size_t duplicates = 0;
    for (const std::string& story : stories) {
        if (copies[story]++ > 0) duplicates++;
        for (std::string word : words_of(story)) {
            std::transform(word.begin(), word.end(), word.begin(), [](unsigned char c) { return std::tolower(c); });
            words[word.substr(0, word.find('\''))]++;
        }
    }
    CHECK(duplicates * 100 <= stories.size());  // at most 1 in 100
    CHECK(words.size() >= 250);
    CHECK(words.size() <= 600);
    for (const auto& [word, count] : words) CHECK_MESSAGE(count >= 20, word);  // a model sees each word often enough
}

TEST_CASE("stories: the prompts speak the language of the corpus") {
    const std::vector<std::string> prompts = story_prompts();
    CHECK(prompts.size() == 6);
    for (const std::string& prompt : prompts) {
        CHECK(article_error(prompt) + pronoun_error(prompt) == "");
        CHECK(!prompt.ends_with(' '));
        std::vector<size_t> starts = {0};
        for (size_t i = 0; i < prompt.size(); i++)
            if (prompt[i] == ' ') starts.push_back(i + 1);
        starts.push_back(prompt.size() + 1);
        for (size_t word = 0; word + 3 < starts.size(); word++) {
            const std::string three = prompt.substr(starts[word], starts[word + 3] - 1 - starts[word]);
            CHECK_MESSAGE(corpus().find(three) != corpus().npos, three);
        }
    }
}

TEST_CASE("make_stories: replaces nothing but its own stories, and only as a whole") {
    const TemporaryFolder folder;
    const std::string path = folder / "stories.txt";
    std::string arguments[] = {"make_stories", path, "--bytes", "2000"};
    char* argv[] = {arguments[0].data(), arguments[1].data(), arguments[2].data(), arguments[3].data(), nullptr};
    CHECK(prepare::run_make_stories(4, argv) == 0);
    CHECK(read_file(path) == story_corpus(2000, 1));
    for (const size_t bytes : {5000, 1000}) {  // more, fewer
        prepare::write_stories(path, bytes, 1);
        CHECK(read_file(path) == story_corpus(bytes, 1));
    }
    const std::string stories = story_corpus(1000, 1);
    for (const std::string& other :
         {stories + "my own", "my own" + stories, std::string("{}"), story_corpus(9000, 2)}) {
        write_file(path, other);
        CHECK(contains(error_of([&] { prepare::write_stories(path, 1000, 1); }), "expected another name"));
        CHECK(read_file(path) == other);
    }
    write_file(path, "");
    prepare::write_stories(path, 1000, 1);
    CHECK(read_file(path) == stories);
    CHECK(contains(error_of([&] { prepare::write_stories(folder.path, 1000, 1); }), "it is a directory"));
    for (const std::string end : {"tmp", "lock", "log"})  // the programs' own, which may be empty for a moment
        CHECK(contains(error_of([&] { prepare::write_stories(folder / "a.tapernorm-" + end, 9, 1); }), "another name"));
    // Into a pipe.
    const std::string pipe = folder / "pipe";
    REQUIRE(mkfifo(pipe.c_str(), 0600) == 0);
    std::string piped;
    std::thread reader([&] { piped = read_file(pipe); });
    prepare::write_stories(pipe, 1000, 1);
    reader.join();
    CHECK(piped == stories);
}

}  // namespace tapernorm
