#!/usr/bin/env bash
# The CUDA tests on a real GPU, and under compute-sanitizer where there is one; writes dev/results/<gpu>-test.md.
#   dev/gpu_test.sh build/gpu/run_cuda_tests
set -euo pipefail
cd "$(dirname "$0")/.."
tests=$1
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1)
out=dev/results/$(echo "$gpu" | tr 'A-Z ' 'a-z-')-test.md
mkdir -p dev/results
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0

check() {  # name, command...
    local name=$1 begin=$SECONDS
    shift
    if "$@" >"$log" 2>&1; then
        echo "| $name | passed | $((SECONDS - begin)) |" | tee -a "$out"
    else
        echo "| $name | **failed** | $((SECONDS - begin)) |" | tee -a "$out"
        tail -n 40 "$log"
        status=1
    fi
}

{
    echo "# CUDA tests on $gpu"
    echo
    echo "\`make gpu-test\`, $(date -u +%Y-%m-%d), commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)," \
        "driver $(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1)."
    echo
    echo "| check | result | seconds |"
    echo "| --- | --- | ---: |"
} | tee "$out"
# Skipped cases would exit with 0 too: a GPU that the program cannot use must not look like a pass.
check "a GPU was found" bash -c "'$tests' --no-colors=true | grep -q ' 0 skipped'"
check "all tests" "$tests"
check "all tests, waiting after each launch" env SYNC_LAUNCHES=1 "$tests"
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
if [ -n "$sanitizer" ]; then
    # Ops alone: whole runs are too slow under the tools. Mixed reads of padding are the library's own business.
    for tool in memcheck racecheck initcheck; do
        check "compute-sanitizer $tool" "$sanitizer" --tool $tool --error-exitcode 1 "$tests" \
            -tc="cuda sites*,cuda gelu*,cuda cross-entropy*,cuda embedding*,cuda adamw*,cuda attention*"
    done
else
    echo "| compute-sanitizer | skipped: not installed | |" | tee -a "$out"
fi
exit $status
