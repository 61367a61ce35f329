#!/usr/bin/env bash
# The CUDA tests on a real GPU and the programs on it, or the ops under compute-sanitizer: one table. dev/gpu_day.py calls it.
#   dev/gpu_test.sh tests|sanitizer FOLDER_OF_PROGRAMS [tiny]      tiny: on the stand-in of tests/emu, a few tests and small models
set -euo pipefail
cd "$(dirname "$0")/.."
what=$1 programs=$2 size=${3:-}
[ "$what" = tests ] || [ "$what" = sanitizer ] || { echo "gpu_test.sh: expected tests or sanitizer, found $what" >&2; exit 1; }
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
sanitizer=$(command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" 2>/dev/null || true)
if [ "$size" = tiny ] || [ -z "$sanitizer" ]; then
    echo "| compute-sanitizer | skipped: $([ "$size" = tiny ] && echo "no GPU" || echo "not installed") | |"
    exit
fi
# Ops alone: whole runs are too slow under the tools, and cuBLASLt's reads of padding are its own business.
ops="cuda sites*,cuda gelu*,cuda cross-entropy*,cuda embedding*,cuda adamw*,cuda attention*,cuda matvec*,cuda sampling*"
for tool in memcheck racecheck initcheck; do
    check "compute-sanitizer $tool" timeout 90 "$sanitizer" --tool $tool --error-exitcode 1 "$tests" -tc="$ops"
done
exit $status
