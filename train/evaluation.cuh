// How good the model is on the way: validation losses, HellaSwag scores, samples. All of it ends early where a rank is told to
// stop.
#pragma once
#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "inference/generate.cuh"
#include "inference/hellaswag.cuh"
#include "train/batches.cuh"
#include "train/report.cuh"

namespace tapernorm::train {

// Mean cross-entropy of up to `count` batches, evenly spread over the corpus, at the gate of the last update: of a text that is
// longer, each part counts. Rows behind the last whole batch are left out; those of a text that fills no batch are taken one by
// one. Nothing where a rank is told to stop on the way, or cannot go on. The trainer keeps the latest.
template <class Device, class Real>
std::optional<double> evaluate(Trainer<Device, Real>& t, const TokenSource& corpus, size_t count) {
    const Settings& s = t.settings;
    const size_t N = s.batch * s.T, ranks = size_t(t.model.ranks.size);
    Loader loader = t.loader(corpus, false);
    const size_t rows = loader.rows_per_epoch();
    if (rows > 1 && rows < s.batch) {
        double sum = 0;
        for (size_t i = 0; i < rows; i++) {
            const auto loss = evaluate(t, corpus.slice(i * s.T, (i + 1) * s.T + 1), 1);
            if (!loss) return loss;
            sum += *loss;
        }
        t.validation = {sum / double(rows), t.step, rows * s.T};
        return t.validation->loss;
    }
    const size_t all = std::max<size_t>(rows / s.batch, 1);
    count = std::min(all, count);
    Batches<Device> batches(t.model.dev, std::move(loader), N, false);
    // The i-th of them is this rank's next, which a loader takes to be `rank` batches behind its position. Not before the
    // corpus: its place is at least i, and i at least the rank.
    const auto seek = [&](size_t i) { batches.seek((i * all / count - size_t(t.model.ranks.rank)) * s.batch); };
    seek(size_t(t.model.ranks.rank));
    t.model.begin_sums();
    bool whole = true;
    for (size_t i = size_t(t.model.ranks.rank); i < count; i += ranks) {
        if (!(whole = t.use_next(batches))) break;
        t.model.forward({t.gate_now(), false}, 0);
        t.model.classify(false, 0, false);
        if (i + ranks >= count) break;
        seek(i + ranks);
        batches.prefetch();
    }
    std::vector<double> sums = {t.model.sums_of(t.model.read_sums()).loss, double(!whole)};
    t.model.ranks.sum(sums, "the end of a validation");
    if (sums[1] > 0) return t.missing = "validation", std::nullopt;
    t.validation = {sums[0] / double(count * N), t.step,
                    std::min(count * N, rows * s.T)};  // a single row fills its batch
    return t.validation->loss;
}

template <class Device, class Real>
std::optional<HellaSwag> score_choices(Trainer<Device, Real>& t, const std::vector<Choice>& choices) {
    Gpt<Device, Real>& model = t.model;
    Decoder<Device, Real> decoder(model.dev, model.config, model.params, model.scales, t.gate_now());
    HellaSwag scores;
    for (const Choice& choice : choices) {
        if (t.told_to_stop()) return t.missing = "HellaSwag scores", std::nullopt;
        scores.add(choice, ending_scores(decoder, choice, model.config.V));
    }
    return scores;
}

template <class Device, class Real>
std::string sample_text(Trainer<Device, Real>& t, const Tokenizer& tokenizer, const std::string& prompt,
                        size_t tokens) {
    Gpt<Device, Real>& model = t.model;
    Decoder<Device, Real> decoder(model.dev, model.config, model.params, model.scales, t.gate_now());
    const std::vector<uint16_t> start = tokenizer.encode(prompt);
    const std::vector<int> ids(start.begin(),
                               start.begin() + ptrdiff_t(std::min(start.size(), (t.settings.T + 1) / 2)));
    std::vector<Acc<Real>> logits(model.config.V);
    decoder.feed(ids.data(), ids.size(), Logits::last, logits.data());
    std::string text = tokenizer.decode({start.data(), ids.size()});
    Generator<Device, Real> generator(decoder);
    generate_stream(generator, logits, ids, ids_with_text(model.config, tokenizer),
                    std::min(tokens, t.settings.T - ids.size() + 1),
                    {.temperature = 0.7, .top_k = 40, .seed = t.settings.seed + t.step}, tokenizer.end_of_text(),
                    [&](size_t, int token) {
                        if (token >= 0) text += tokenizer.token(size_t(token));
                        return !t.told_to_stop();
                    });
    return text;
}

// The validations of update r.step, as far as nobody is told to stop.
template <class Device, class Real>
void validate(Trainer<Device, Real>& t, const Run& run, Progress& progress, RunLog::Fields& fields) {
    const auto val_loss = evaluate(t, run.val, t.settings.val_batches);
    if (!val_loss) return;
    progress.note(strprintf("step %zu | validation loss %.4f", t.step, *val_loss));
    fields.push_back({"val_loss", *val_loss});
    if (run.hellaswag.empty()) return;
    if (const auto scores = score_choices(t, run.hellaswag)) {
        progress.note(strprintf("step %zu | hellaswag: %s", t.step, scores->text().c_str()));
        fields.insert(fields.end(), {{"hellaswag_acc", scores->acc()}, {"hellaswag_acc_norm", scores->acc_norm()}});
    }
}

}  // namespace tapernorm::train
