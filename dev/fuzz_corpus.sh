#!/usr/bin/env bash
# The smallest set of inputs that reaches every branch that all of them reach (make fuzz-corpus), from what make fuzz found, the
# seeds and what is kept already, to tests/fuzz/corpus/TARGET.tar.xz: dev/fuzz_corpus.sh FOLDER TARGET...
# dev/fuzz_corpus.sh --unpack FOLDER: what is kept, to FOLDER/TARGET.
set -euo pipefail
if [ "$1" = --unpack ]; then
    mkdir -p "$2"
    for kept in tests/fuzz/corpus/*.tar.xz; do
        tar -xJf "$kept" -C "$2" || echo "$kept: skipped: no xz"
    done
    exit
fi
folder=$1
shift
dev/fuzz_corpus.sh --unpack "$folder/kept"
dev/fuzz_seeds.sh "$folder/seeds"
[ -w /dev/shm ] && export TMPDIR=/dev/shm
for target in "$@"; do
    rm -rf "${folder:?}/smallest/$target"
    mkdir -p "$folder"/{smallest,kept,corpus}/"$target"
    "$folder/fuzz_$target" -merge=1 -use_counters=0 -max_len=65536 -verbosity=0 -close_fd_mask=1 "$folder/smallest/$target" \
        "$folder/seeds/$target" "$folder/kept/$target" "$folder/corpus/$target" >"$folder/$target.merge.log" 2>&1
    tar -c --sort=name --mtime=@0 --owner=0 --group=0 -C "$folder/smallest" "$target" | xz -9 > "tests/fuzz/corpus/$target.tar.xz"
    echo "$target: $(find "$folder/smallest/$target" -type f | wc -l) inputs, $(stat -c %s "tests/fuzz/corpus/$target.tar.xz") bytes packed"
done
