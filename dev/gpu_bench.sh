#!/usr/bin/env bash
# Speed on this machine's GPU, training and inference: writes dev/results/<gpu>-bench.md. With PyTorch in dev/.venv or in
# python3, training of the same model there too. `make gpu-bench` builds what it needs and calls it.
#   dev/gpu_bench.sh build/gpu/bench_gpu
set -euo pipefail
cd "$(dirname "$0")/.."
gpu=$(nvidia-smi -i 0 --query-gpu=name --format=csv,noheader)
out=dev/results/$(echo "$gpu" | tr 'A-Z /' 'a-z--')-bench.md
mkdir -p dev/results
"$1" | tee "$out"
python=$([ -x dev/.venv/bin/python ] && echo dev/.venv/bin/python || echo python3)
if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    {
        echo
        echo "| the same \`norm\` model | tokens/s | ms | | | | | GPU memory, GiB |"
        echo "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
        timeout 180 "$python" dev/reference/bench_gpu_torch.py || echo "| PyTorch: failed or took longer than 3 minutes | | | | | | | |"
    } | tee -a "$out"
else
    echo "no PyTorch with a GPU: its row is left out (make dev-env installs PyTorch)"
fi
{
    echo
    echo "# Inference"
    echo
    echo "\`./bench_infer --model d12 --device cuda\`: random weights, bf16."
    ./bench_infer --model d12 --device cuda
    echo
    echo "Commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown), $(date -u +%Y-%m-%d)."
} | tee -a "$out"
echo "wrote $out"
