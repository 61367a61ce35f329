// The built-in corpus: tiny English stories told by a grammar. It exists so that a first run needs no download and
// still trains something worth reading: few words, short sentences, and events that follow from one another.
//
// The text is a pure function of (bytes, seed). It is made with integers and our own random numbers only, so it is the
// same on every machine and with every compiler. A story is 250 to 600 bytes of printable ASCII in a few paragraphs,
// one line each; every story ends with a blank line ("\n\n"), which never occurs inside one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace tapernorm {

constexpr size_t kStoryBytes = 3'000'000;
constexpr uint64_t kStorySeed = 1;

// Whole stories, at least `bytes` long and less than one story longer.
std::string story_corpus(size_t bytes = kStoryBytes, uint64_t seed = kStorySeed);

// Beginnings of stories, to sample from a model that was trained on the corpus; the last word is complete.
std::vector<std::string> story_prompts();

}  // namespace tapernorm
