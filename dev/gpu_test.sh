#!/usr/bin/env bash
# The CUDA tests on a real GPU and the programs on it, on two GPUs, or the ops under a tool of compute-sanitizer: a table. dev/gpu_day.py calls it.
#   dev/gpu_test.sh tests|ranks|memcheck|racecheck|initcheck|synccheck FOLDER_OF_PROGRAMS [tiny]
#   tiny: on the stand-in of tests/emu, a few tests and small models
set -euo pipefail
cd "$(dirname "$0")/.."
what=$1 programs=$2 size=${3:-}
case $what in
tests | ranks | memcheck | racecheck | initcheck | synccheck) ;;
*)
    echo "gpu_test.sh: expected tests, ranks or a tool of compute-sanitizer, found $what" >&2
    exit 1
    ;;
esac
tests=$programs/run_cuda_tests
filter=() model=()
if [ "$size" = tiny ]; then
    tests=$programs/run_kernel_tests
    filter=(-tc="cuda gelu*")
    model=(--n-layer 1 --n-head 1 --n-embd 32 -t 32 -b 2)
fi
folder=$(mktemp -d)
log=$folder/log
trap 'rm -rf "$folder"' EXIT
status=0

check() {  # name, command...
    local name=$1 begin=$SECONDS result=passed
    shift
    "$@" >"$log" 2>&1 || { [ $? = 124 ] && result="**too slow**" || result="**failed**"; }
    echo "| $name | $result | $((SECONDS - begin)) |"
    if [ "$result" != passed ]; then
        tail -n 40 "$log" >&2
        status=1
    fi
}

# Skipped cases exit with 0 too: a GPU that the tests cannot use must not look like a pass.
none_skipped() {
    "$@" && { [ "$size" = tiny ] || grep -q ' 0 skipped' "$log"; }
}

# Options for both devices: 60 updates, through all phases of the gate.
train() {  # device, precision, output
    "$programs/train_gpt" "${model[@]}" --device "$1" --precision "$2" -o "$folder/$3" -x 60 --gate-warmup 10 --gate-end 40 -v 0 -m 2
}
# The checksum of all but where and when the model was made.
content() {
    "$programs/infer" "$folder/$1" --info | grep '^content '
}
same_bits() {
    train cuda bf16 a.bin && train cuda bf16 b.bin && [ "$(content a.bin)" = "$(content b.bin)" ]
}
# The losses of two logs, update by update, at most $3 apart, relatively.
same_losses() {
    paste "$folder/$1" "$folder/$2" | awk -v bound="$3" '
        !/"step":/ { next }  # which run it is, and how it ended
        { updates++; split($0, part, /"loss":/); a = part[2] + 0; b = part[3] + 0; d = (a > b ? a - b : b - a) / b
          if (!(b > 0 && d <= bound)) { print "update " updates ": loss " a " against " b; bad = 1 } }
        END { exit bad || updates != 60 }'
}
agrees() {  # precision, bound
    train cuda "$1" gpu.bin && train cpu fp32 cpu.bin && same_losses gpu.log.jsonl cpu.log.jsonl "$2"
}
infers() {
    train cuda bf16 c.bin && "$programs/fold" "$folder/c.bin" "$folder/f.bin" &&
        "$programs/infer" "$folder/f.bin" --device cuda --last-token && "$programs/infer" "$folder/f.bin" --device cuda -n 40 &&
        "$programs/infer" "$folder/c.bin" --device cuda --precision fp32 -n 20
}

one_passed() {
    "$@" && grep -q ' 1 passed | 0 failed' "$log"
}
# Tokens per second of updates 11 to 30, as many tokens for each rank.
speed() {
    local flags=(-e d12 -t 1024 -b 32 -g norm -x 30 -v 0) tokens=32768
    [ "$size" != tiny ] || { flags=("${model[@]}" -g norm -x 30 -v 0); tokens=64; }
    [ -z "$1" ] || tokens=$((2 * tokens))
    # shellcheck disable=SC2086 # flags, in words
    "$programs/train_gpt" "${flags[@]}" -d $tokens --device cuda --precision bf16 -o "$folder/speed.bin" --overwrite $1 || return
    awk -v ranks="${1:-one GPU}" -v first="$folder/first" '
        /"step":/ { split($0, part, /"tokens_per_second":/); if (part[2] + 0 > 0) { updates++; if (updates > 10) { seconds += 1 / part[2]; n++ } } }
        END { if (n != 20) { print updates + 0 " updates with a speed in the log"; exit 1 }
              speed = n / seconds
              if ((getline one < first) <= 0) { one = speed; print one > first }
              printf "| %s | %.0f | %.2fx |\n", ranks, speed, speed / one }' "$folder/speed.log.jsonl" >"$folder/row" || { cat "$folder/row"; return 1; }
    cat "$folder/row" >>"$folder/speeds"
}

echo "| check | result | seconds |"
echo "| --- | --- | ---: |"
if [ "$what" = tests ]; then
    check "all tests that one GPU can run, none skipped" none_skipped "$tests" --no-colors=true "${filter[@]}"
    check "all tests, waiting after each launch" env SYNC_LAUNCHES=1 "$tests" "${filter[@]}"
    check "train_gpt twice, bf16: the same bits" same_bits
    check "train_gpt, fp32: losses of 60 updates within 0.1% of the CPU's" agrees fp32 1e-3
    check "train_gpt, bf16: losses of 60 updates within 2% of the CPU's" agrees bf16 2e-2
    check "train_gpt, fold, infer" infers
    exit $status
fi
if [ "$what" = ranks ]; then
    [ "$size" = tiny ] || check "the tests of two GPUs" one_passed "$tests" --no-colors=true -tc="cuda trainer: --gpus 2*"
    [ "$size" != tiny ] || export EMU_DEVICES=2
    for ranks in "" "--gpus 2" "--gpus 2 -z 1"; do
        check "124M, train_gpt $ranks" speed "$ranks"
    done
    echo
    echo "| ranks | tokens/s | against one GPU |"
    echo "| --- | ---: | ---: |"
    cat "$folder/speeds" 2>/dev/null || true # none, where all failed
    exit $status
fi
sanitizer=$(command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" 2>/dev/null || true)
if [ "$size" = tiny ] || [ -z "$sanitizer" ]; then
    echo "| compute-sanitizer $what | skipped: $([ "$size" = tiny ] && echo "no GPU" || echo "not installed") | |"
    exit
fi
# Ops alone: whole runs are too slow under the tools, and cuBLASLt's reads of padding are its own business.
ops="cuda sites*,cuda gelu*,cuda cross-entropy*,cuda embedding*,cuda adamw*,cuda attention*,cuda matvec*,cuda sampling*"
check "compute-sanitizer $what" timeout 110 "$sanitizer" --tool "$what" --error-exitcode 1 "$tests" -tc="$ops"
exit $status
