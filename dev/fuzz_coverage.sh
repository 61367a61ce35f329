#!/usr/bin/env bash
# Which lines of the readers the inputs of tests/fuzz/corpus and the seeds reach (make fuzz-coverage), and the lines they do not:
# dev/fuzz_coverage.sh FOLDER TARGET...
set -euo pipefail
folder=$1
shift
readers="io/safetensors.cpp io/checksum.h io/tokens.cpp io/tokenizer.cpp io/tokenizer_files.cpp io/words.cpp io/options.cpp
    model/model_file.cpp model/hugging_face.cpp model/llmc_checkpoint.cpp train/run_log.cpp train/checkpoints.cpp train/start.cpp
    train/state.cuh train/settings.cpp inference/hellaswag.cpp inference/prompts.cpp"
llvm=$(dirname "$(readlink -f "$(command -v clang++ clang++-19 clang++-18 clang++-17 clang++-16 clang++-15 clang++-14 | head -1)")")
dev/fuzz_seeds.sh "$folder/seeds"
dev/fuzz_corpus.sh --unpack "$folder/kept"
[ -w /dev/shm ] && export TMPDIR=/dev/shm
programs=()
for target in "$@"; do
    LLVM_PROFILE_FILE=$folder/$target.profraw "$folder/fuzz_$target" 0 "$folder/seeds/$target" "$folder/kept/$target" >/dev/null 2>&1
    programs+=(-object "$folder/fuzz_$target")
done
"$llvm/llvm-profdata" merge -o "$folder/all.profdata" "$folder"/*.profraw
"$llvm/llvm-cov" show "${programs[@]:1}" -instr-profile="$folder/all.profdata" $readers |
    awk '/^[^ ]*:$/ { file = $1 } /\| *0\|/ { print file $0 }' > "$folder/missed.txt"
"$llvm/llvm-cov" report "${programs[@]:1}" -instr-profile="$folder/all.profdata" $readers |
    awk 'NR > 2 && /%/ { printf "%-32s %5d lines, %4d not reached, %s\n", $1, $8, $9, $10 }'
echo "Lines that are not reached: $folder/missed.txt"
