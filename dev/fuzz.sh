#!/usr/bin/env bash
# Runs fuzz targets (make fuzz): dev/fuzz.sh FOLDER SECONDS TARGET...
# FOLDER/corpus/TARGET keeps what was found to be interesting, FOLDER/findings the inputs that broke something.
set -euo pipefail
folder=$1 seconds=$2
shift 2
dev/fuzz_seeds.sh "$folder/seeds"
mkdir -p "$folder/findings"
[ -w /dev/shm ] && export TMPDIR=/dev/shm # inputs are files: better no disk between
failed=""
for target in "$@"; do
    mkdir -p "$folder/corpus/$target" "$folder/seeds/$target"
    # No reader may allocate more than a small multiple of its file: inputs have at most 64 KiB.
    if "$folder/fuzz_$target" -max_total_time="$seconds" -max_len=65536 -malloc_limit_mb=64 -rss_limit_mb=1024 -timeout="${FUZZ_TIMEOUT:-25}" \
        -dict=tests/fuzz/dictionary -artifact_prefix="$folder/findings/$target-" -print_final_stats=1 -verbosity=0 -close_fd_mask=1 \
        "$folder/corpus/$target" "$folder/seeds/$target" >"$folder/$target.log" 2>&1; then
        runs=$(sed -n 's/stat::number_of_executed_units: *//p' "$folder/$target.log")
        echo "fuzz $target: clean; $runs runs in $seconds s, corpus of $(find "$folder/corpus/$target" -type f | wc -l) inputs"
    else
        echo "fuzz $target: a finding: see $folder/$target.log and $folder/findings"
        failed=1
    fi
done
[ -z "$failed" ]
