#!/usr/bin/env bash
# Which lines of the readers the inputs of tests/fuzz/corpus and the seeds reach (make fuzz-coverage), and the lines they do not:
# dev/fuzz_coverage.sh FOLDER TARGET...
set -euo pipefail
folder=$1
shift
readers="io/safetensors.cpp io/torch_file.cpp io/json.cpp io/checksum.h io/tokens.cpp io/tokenizer.cpp io/tokenizer_files.cpp
    io/words.cpp io/options.cpp
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
# Left out is what reads nothing from outside: it writes, prints, renames, gathers from ranks and GPUs, has no input (word_expression,
# follow_recipe), reads again what this program has just written (replace_provenance), looks at names alone (check_inputs), is for a
# text that changes meanwhile (no_word), or runs when the program is compiled.
others='give_up_older|write_last|space_warning|host_model|require_finite_parameters|try_checkpoint|bytes_to_write|initialize_from
    |gather_state|crc32c|make_byte_to_char|write_token_shard|write_safetensors|check_replaceable|save_model
    |save_checkpoint|write_settings|keep_old_log|word_expression|follow_recipe|numbers_checksum|source_of|replace_provenance
    |is_finished_model|add_validation|RunLog::write_end|read_hugging_face_config|size_text|check_inputs|Options::choose
    |no_word|print_json'
"$llvm/llvm-cov" show "${programs[@]:1}" -instr-profile="$folder/all.profdata" $readers |
    awk -F'|' -v others="(^|[ :&*])(${others//[[:space:]]/})[(]" -v missed="$folder/missed.txt" '
        /^[^ ]*:$/ { file = $1; sub(/.*\/(\.\/)?/, "", file); skip = 0 }
        !/^ *[0-9]+\|/ { next }
        { code = substr($0, index($0, "|") + 1); code = substr(code, index(code, "|") + 1) }
        code ~ "^[a-z]" && code ~ others { skip = 1 }
        $2 ~ /[0-9]/ && !skip { lines[file]++; if ($2 ~ /^ *0$/) { zero[file]++; print file ":" $0 > missed } }
        code ~ /^}$/ { skip = 0 }
        END { for (f in lines) printf "%-22s %5d lines, %4d not reached, %5.1f%%\n", f, lines[f], zero[f], 100 - 100 * zero[f] / lines[f] }' | sort
echo "Lines that are not reached: $folder/missed.txt"
