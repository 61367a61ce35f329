#!/usr/bin/env bash
# Runs fuzz targets (make fuzz): dev/fuzz.sh FOLDER TARGET..., each for FUZZ_SECONDS, or FUZZ_RUNS times where that is set.
# FOLDER/corpus/TARGET keeps what was found to be interesting, FOLDER/findings the inputs that broke something. What was
# executed is added to dev/results/fuzzing.tsv, one line per target; --totals adds it up.
set -euo pipefail
table=dev/results/fuzzing.tsv
totals() {
    awk -F '\t' 'NR > 1 { runs[$1] += $4; seconds[$1] += $5; findings[$1] += $6 }
        END { for (t in runs) printf "%-16s %12d executions in %6.1f h, %d findings\n", t, runs[t], seconds[t] / 3600, findings[t] }' $table | sort
}
[ "$1" = --totals ] && { totals; exit; }
folder=$1
shift
limit="-max_total_time=${FUZZ_SECONDS:-600}"
[ -n "${FUZZ_RUNS:-}" ] && limit="-runs=$FUZZ_RUNS"
dev/fuzz_seeds.sh "$folder/seeds"
dev/fuzz_corpus.sh --unpack "$folder/kept"
mkdir -p "$folder/findings"
[ -w /dev/shm ] && export TMPDIR=/dev/shm # inputs are files: better no disk between
# Inputs are small, and so is what is freed while one is read: with less of it kept aside, caches hold the rest.
export ASAN_OPTIONS="malloc_context_size=1:quarantine_size_mb=1:${ASAN_OPTIONS:-}"
commit=$(git rev-parse --short HEAD)
[ -z "$(git status --porcelain -- . ':!dev/results' ':!tests/fuzz/corpus')" ] || commit+=-dirty
failed=""
for target in "$@"; do
    mkdir -p "$folder"/{corpus,kept}/"$target"
    start=$SECONDS finding=0
    # No reader may allocate more than a small multiple of its file: inputs have at most 4 MiB.
    "$folder/fuzz_$target" "$limit" -max_len=4194304 -malloc_limit_mb=256 -rss_limit_mb=2048 -timeout="${FUZZ_TIMEOUT:-25}" \
        -dict=tests/fuzz/dictionary -artifact_prefix="$folder/findings/$target-" -print_final_stats=1 -verbosity=0 -close_fd_mask=1 \
        "$folder/corpus/$target" "$folder/seeds/$target" "$folder/kept/$target" >"$folder/$target.log" 2>&1 || finding=1
    grep -q "run interrupted" "$folder/$target.log" && finding=0 # by Ctrl-C: nothing was found
    runs=$(sed -n 's/stat::number_of_executed_units: *//p' "$folder/$target.log")
    printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$target" "$(date -u +%F)" "$commit" "${runs:-0}" $((SECONDS - start)) \
        $finding >> $table
    if [ $finding = 0 ]; then
        echo "fuzz $target: clean; $runs executions in $((SECONDS - start)) s"
    else
        echo "fuzz $target: a finding: see $folder/$target.log and $folder/findings"
        failed=1
    fi
done
[ -z "$failed" ]
