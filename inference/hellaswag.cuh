// Scores a model on HellaSwag's items: see hellaswag.h.
#pragma once
#include "inference/decoder.cuh"
#include "inference/hellaswag.h"
#include "inference/logits.h"

namespace tapernorm {

// The log-likelihood of each ending. The context is read once: its keys and values serve all endings.
template <class Device, class Real>
std::vector<double> ending_scores(Decoder<Device, Real>& decoder, const Choice& choice, size_t V) {
    std::vector<Acc<Real>> first(V), logits;
    decoder.rewind(0);
    decoder.feed(choice.context.data(), choice.context.size(), Logits::last, first.data());
    std::vector<double> scores;
    for (const std::vector<int>& ending : choice.endings) {
        double score = log_probability(first.data(), V, ending[0]);
        const size_t rest = ending.size() - 1;  // the last token is predicted but not fed
        logits.resize(rest * V);
        decoder.rewind(choice.context.size());
        if (rest) decoder.feed(ending.data(), rest, Logits::all, logits.data());
        for (size_t i = 0; i < rest; i++) score += log_probability(&logits[i * V], V, ending[i + 1]);
        scores.push_back(score);
    }
    return scores;
}

template <class Device, class Real>
HellaSwag evaluate_hellaswag(Decoder<Device, Real>& decoder, const std::vector<Choice>& choices, size_t V) {
    HellaSwag result;
    for (const Choice& choice : choices) result.add(choice, ending_scores(decoder, choice, V));
    return result;
}

}  // namespace tapernorm
