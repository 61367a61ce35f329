#!/usr/bin/env bash
# The smallest set of inputs that reaches every branch that all of them reach (make fuzz-corpus), from what make fuzz found and
# from what is kept already, to tests/fuzz/corpus: dev/fuzz_corpus.sh FOLDER TARGET...
set -euo pipefail
folder=$1
shift
[ -w /dev/shm ] && export TMPDIR=/dev/shm
for target in "$@"; do
    kept=tests/fuzz/corpus/$target smallest=$folder/smallest/$target
    rm -rf "$smallest" && mkdir -p "$smallest" "$kept" "$folder/corpus/$target"
    "$folder/fuzz_$target" -merge=1 -use_counters=0 -max_len=65536 -verbosity=0 -close_fd_mask=1 \
        "$smallest" "$kept" "$folder/corpus/$target" >"$folder/$target.merge.log" 2>&1
    rm -rf "$kept" && cp -r "$smallest" "$kept"
    echo "$kept: $(find "$kept" -type f | wc -l) inputs, $(du -sb "$kept" | cut -f1) bytes"
done
