#!/usr/bin/env bash
# Adds the files of today's formats to the museum: tests/museum/make.sh tests/museum/NUMBER [FLAG...], when a format has changed. The
# folders that are there stay as they are: they are what users have. Run from the project's folder, its programs built.
set -euo pipefail
bin=$PWD
[ $# -ge 1 ] && mkdir "$1" && cd "$1" && shift
for i in $(seq 24); do echo "The cat number $i sat on the mat and saw $((7 * i)) birds."; done > corpus.txt
"$bin/bpe_train" corpus.txt -o tokenizer --vocab-size 280 --threads 1 > /dev/null 2>&1
"$bin/prepare" corpus.txt --tokenizer tokenizer -o . > /dev/null 2>&1
mv corpus_train_000001.bin train.bin && mv corpus_val_000000.bin val.bin && rm vocab.json merges.txt

# The state is that of update 4 with a gate in between, the model that of the last update: a resumed run must lead there.
"$bin/train_gpt" --device cpu --threads 1 -i train.bin -j val.bin --tokenizer tokenizer -b 2 -x 7 --gate-warmup 2 --gate-end 6 -l 0.01 \
    -n 4 -v 3 --n-layer 1 --n-embd 4 --n-head 2 -t 16 -g taper-all --bound 1 --final-bound 0.6 \
    --calibration channels+first "$@" > /dev/null
mv model.state.1.bin model.state.bin
"$bin/fold" --threads 1 model.bin folded.bin > /dev/null
for model in model folded; do
    echo "$model.bin $("$bin/infer" --device cpu --threads 1 $model.bin --eval corpus.txt | sed -n 's/^loss *\([0-9.]*\).*/\1/p')"
done > losses.txt
