#!/usr/bin/env bash
# Runs fuzz targets (make fuzz): dev/fuzz.sh FOLDER FAST TARGET...; first those in FAST, without AddressSanitizer, each for
# FUZZ_SECONDS, or FUZZ_RUNS times where that is set, then those in FOLDER, with it: on everything that was found to be
# interesting, and on changes of it for a tenth as long. FOLDER/corpus/TARGET keeps what is interesting, FOLDER/findings the
# inputs that broke something. What was executed is added to dev/results/fuzzing.tsv, one line per target and build; --totals adds
# it up.
set -euo pipefail
table=dev/results/fuzzing.tsv
totals() {
    awk -F '\t' 'NR > 1 { runs[$1] += $4; seconds[$1] += $5; findings[$1] += $6; checked[$1] += ($7 ~ /asan/) * $4 }
        END { for (t in runs) printf "%-16s %12d executions (%d with AddressSanitizer) in %6.1f h, %d findings\n",
              t, runs[t], checked[t], seconds[t] / 3600, findings[t] }' $table | sort
}
[ "$1" = --totals ] && { totals; exit; }
folder=$1 fast=$2
shift 2
dev/fuzz_seeds.sh "$folder/seeds"
dev/fuzz_corpus.sh --unpack "$folder/kept"
mkdir -p "$folder/findings"
[ -w /dev/shm ] && export TMPDIR=/dev/shm # inputs are files: better no disk between
# Inputs are small, and so is what is freed while one is read: with less of it kept aside, caches hold the rest.
export ASAN_OPTIONS="malloc_context_size=1:quarantine_size_mb=1:${ASAN_OPTIONS:-}"
commit=$(git rev-parse --short HEAD)
[ -z "$(git status --porcelain -- . ':!dev/results' ':!tests/fuzz/corpus')" ] || commit+=-dirty
failed=""

fuzz() { # fuzz FOLDER TARGET CHECKS FLAG...
    local build=$1 target=$2 checks=$3 start=$SECONDS finding=0 runs log="$1/$2.log"
    # No reader may allocate more than a small multiple of its file: inputs have at most 4 MiB. Leaks are looked for at the end
    # alone: after an input it takes longer than the input. Entropic, which counts how rare each feature is, takes a quarter of
    # the time.
    "$build/fuzz_$target" "${@:4}" -max_len=4194304 -malloc_limit_mb=256 -rss_limit_mb=2048 -entropic=0 \
        -timeout="${FUZZ_TIMEOUT:-25}" -dict=tests/fuzz/dictionary -artifact_prefix="$folder/findings/$target-" \
        -print_final_stats=1 -verbosity=0 -close_fd_mask=1 -detect_leaks=0 \
        "$folder/corpus/$target" "$folder/seeds/$target" "$folder/kept/$target" >"$log" 2>&1 || finding=1
    grep -q "run interrupted" "$log" && finding=0 # by Ctrl-C: nothing was found
    runs=$(sed -n 's/stat::number_of_executed_units: *//p' "$log")
    printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$target" "$(date -u +%F)" "$commit" "${runs:-0}" $((SECONDS - start)) $finding \
        "$checks" >> $table
    if [ $finding = 0 ]; then
        echo "fuzz $target ($checks): clean; $runs executions in $((SECONDS - start)) s"
    else
        echo "fuzz $target ($checks): a finding: see $log and $folder/findings"
        failed=1
    fi
}

for target in "$@"; do
    mkdir -p "$folder"/{corpus,kept}/"$target"
    if [ -n "${FUZZ_RUNS:-}" ]; then
        fuzz "$fast" "$target" ubsan -runs="$FUZZ_RUNS"
        inputs=$(find "$folder"/{corpus,seeds,kept}/"$target" -type f | wc -l) # are executed first, and counted
        fuzz "$folder" "$target" asan,ubsan -runs=$((inputs + FUZZ_RUNS / 10))
    else
        fuzz "$fast" "$target" ubsan -max_total_time="${FUZZ_SECONDS:-600}"
        fuzz "$folder" "$target" asan,ubsan -max_total_time=$((${FUZZ_SECONDS:-600} / 10 + 1))
    fi
done
[ -z "$failed" ]
