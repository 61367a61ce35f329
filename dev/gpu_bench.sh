#!/usr/bin/env bash
# Training speed on this machine's GPU: writes dev/results/<gpu>-bench.md. With PyTorch in dev/.venv or in python3, the
# same model there too.
#   dev/gpu_bench.sh build/gpu/bench_gpu
set -euo pipefail
cd "$(dirname "$0")/.."
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1)
out=dev/results/$(echo "$gpu" | tr 'A-Z ' 'a-z-')-bench.md
mkdir -p dev/results
"$1" | tee "$out"
python=$([ -x dev/.venv/bin/python ] && echo dev/.venv/bin/python || echo python3)
if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    {
        echo
        echo "| the same \`norm\` model | tokens/s | ms | | | | | GPU memory, GiB |"
        echo "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
        "$python" dev/reference/bench_gpu_torch.py
        echo
    } | tee -a "$out"
else
    echo "no PyTorch with a GPU: its row is left out (make dev-env installs the CPU's)"
fi
echo "Commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown), $(date -u +%Y-%m-%d)." >>"$out"
echo "wrote $out"
