#!/usr/bin/env python3
"""What a model without norms does with text unlike the text it was trained on.

    dev/experiments/other_text.py [--report]        (--help: where corpora, program and work folder are; ./infer must be built)

parity.py's models of 0.93M (books; seed 1, and 2 and 4 of the guarded modes, where updates were skipped) and of 0.2M parameters
(tinyshakespeare, seeds 1 to 3), every mode at its rate there, evaluated by
./infer on texts of 200,000 bytes: the validation text's first, the other corpus, this program's sources, the first text with its bytes
in random order (each still as frequent), and random bytes. No statistic of the text reaches a tapered block, so nothing
there shrinks a stream that is out of the ordinary.

Stated before the first run (of seeds 2 and 4 after a look at two models): a mode is as robust as norm where its loss on each of the other texts is within 5% of norm's. Expected of
`taper`, whose final norm bounds the logits; not of `taper-all`.
"""
import json
import pathlib
import random
import subprocess
import tempfile

import parity
import runs

MODES = ["norm", "norm + scale loss", "taper + scale loss", "taper + scale loss, guarded", "taper-all + scale loss",
         "taper-all + scale loss, guarded"]
SETTINGS = ["books, 0.93M, 2000 updates", "2000 updates"]
SIZE = 200_000
TEXTS = ["validation text", "the other corpus", "C++", "shuffled bytes", "random bytes"]


def texts(args, corpus):
    """{name: bytes}, for models trained on this corpus."""
    files = {"books": "books_val.txt", "shakespeare": "tinyshakespeare.txt"}
    whole = {name: (args.data / file).read_bytes() for name, file in files.items()}
    whole["shakespeare"] = whole["shakespeare"][-(len(whole["shakespeare"]) // 10):]  # what is validated on
    own = whole[corpus][:SIZE]
    other = next(text for name, text in whole.items() if name != corpus)[:SIZE]
    sources = b"".join((runs.ROOT / name).read_bytes() for name in ("train_gpt.cu", "ops/gemm.cuh", "tapernorm.cuh"))
    shuffled = list(own)
    random.Random(1).shuffle(shuffled)
    return dict(zip(TEXTS, (own, other, sources[:SIZE], bytes(shuffled), random.Random(2).randbytes(SIZE)), strict=True))


def seeds_of(setting, mode):
    return (1, 2, 3) if setting == SETTINGS[1] else (1, 2, 4) if "guarded" in mode else (1,)


def key(run, text):
    return f"{run.key}-{text.replace(' ', '-')}"


def evaluate(args, run):
    """Appends the records of this run's model on every text."""
    model = args.work / run.key / "model.bin"
    for name, text in texts(args, run.corpus).items():
        with tempfile.NamedTemporaryFile() as file:
            pathlib.Path(file.name).write_bytes(text)
            command = [runs.ROOT / "infer", model, "--threads", "1", "--json", "--eval", file.name]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        record = {"key": key(run, name), "of": run.key, "text": name, "loss": json.loads(out)["loss"]}
        runs.append_record(record)


def main():
    args = runs.arguments(__doc__)
    records = runs.read_records()
    rows = []
    for name in SETTINGS:
        setting = next(s for s in parity.SETTINGS if s.name == name)
        found = {run: records[run.key] for run in parity.tuning_runs(setting).values() if run.key in records}
        best = parity.best_rates(setting, found)
        for mode in MODES:
            chosen = [parity.make_run(setting, "layernorm", mode, best[mode], seed, keep=True)
                      for seed in seeds_of(name, mode)]
            missing = [run for run in chosen if key(run, "random bytes") not in records]
            if missing and not args.report:
                for run in missing:
                    print(f"{name}, {mode}, seed {run.seed}: {runs.Trainer(args).train(run, wait=True)}", flush=True)
                    evaluate(args, run)
                records = runs.read_records()
            done = [run for run in chosen if key(run, "random bytes") in records]
            if done:
                rows.append([name, mode, len(done)] + [" ".join(f"{records[key(run, text)]['loss']:.3g}" for run in done)
                                                        for text in TEXTS])
    text = runs.table(["models", "mode", "seeds", *TEXTS], rows)
    print(text)
    runs.write_block(runs.RESULTS / "experiments.md", "other-text", text)


if __name__ == "__main__":
    main()
