#!/bin/sh
# The whole story in three commands, each shown before it runs; then a story told by the model that has no norm inside.
set -eu
cd "$(dirname "$0")/.."
step() {
    printf '\n$ %s\n' "$*"
    "$@"
}
step ./train_gpt -g taper
step ./fold model.bin folded.bin
step ./infer folded.bin --last-token
# Not from a terminal, where it would ask for prompts.
step ./infer folded.bin -n 600 --temperature 0.4 </dev/null
