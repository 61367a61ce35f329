#!/usr/bin/env python3
"""PyTorch on a GPU, as dev/gpu_day.py sets it beside ours: training of the same GPT-2, or logits of the last token. Prints table rows.

train: bf16 autocast (so that its residual stream is fp32, unlike ours), torch.compile, SDPA with the attention asked for, fused AdamW, clipping;
the vocabulary is padded to a multiple of 128, as our trainer does. With --all-bf16 the stream is bf16, too, but so are the weights that AdamW
changes, which nobody would train with: ours keeps them in fp32 as well, and the truth about the stream lies between the two rows. infer: bf16 weights, eager and as a CUDA graph, with LayerNorms and without (as if they were folded away).
"""
import argparse
import contextlib
import statistics
import time

import torch

import peer_gpt2

TRAIN_HEADER = ["update", "tokens/s", "ms", "against `norm`", "TFLOP/s", "MFU", "of the limit", "GPU memory, GiB"]  # bench_gpu's
ATTENTION = {"flash": "FLASH_ATTENTION", "cudnn": "CUDNN_ATTENTION"}


def table(header, rows):
    for row in [header, ["---"] * len(header), *rows]:
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def attention(name):
    if name not in ATTENTION:
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel
    return sdpa_kernel(getattr(SDPBackend, ATTENTION[name]))


def wait(args):
    if args.device == "cuda":
        torch.cuda.synchronize()


def train(args):
    model = peer_gpt2.build(torch, args).to(args.device, torch.bfloat16 if args.all_bf16 else torch.float32)
    run = model if args.eager else torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.99), weight_decay=0.1, fused=args.device == "cuda")
    tokens = (args.vocab ** torch.rand(args.batch, args.seq_len + 1, device=args.device)).long() - 1  # as frequent as words, as in bench_gpu
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    times = []
    for step in range(args.steps + 5):
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(args.device, torch.bfloat16, enabled=not args.all_bf16), attention(args.attention):
            loss = run(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        loss.item()  # waits where our trainer waits for the loss: what follows overlaps with the next update's launches
        optimizer.step()
        if step >= 5:
            times.append(time.perf_counter() - begin)
    seconds = statistics.median(times)
    free, total = torch.cuda.mem_get_info() if args.device == "cuda" else (0, 0)
    name = f"PyTorch {torch.__version__}, {'eager' if args.eager else 'torch.compile'}, {args.attention} attention{', all bf16' if args.all_bf16 else ''}"
    table(TRAIN_HEADER, [[name, f"{x.numel() / seconds:.0f}", f"{seconds * 1e3:.2f}", "", "", "", "", f"{(total - free) / 2**30:.1f}"]])


def median_seconds(args, call):
    for _ in range(5):
        call()
    wait(args)
    times = []
    for _ in range(args.steps):
        begin = time.perf_counter()
        call()
        wait(args)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def recorded(model, tokens):
    """A call that replays the model's forward pass as one CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            model(tokens)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model(tokens)
    return graph.replay


@torch.no_grad()
def infer(args):
    models = {}
    for args.norm in ("layernorm", "none"):
        models[args.norm] = peer_gpt2.build(torch, args).to(args.device, torch.bfloat16).eval()
    rows = []
    for T in (args.seq_len // 4, args.seq_len // 2, args.seq_len):
        for B in (1, 4):
            tokens = torch.randint(args.vocab, (B, T), device=args.device)
            speeds = []
            for model in models.values():
                calls = [lambda model=model: model(tokens)]
                if args.device == "cuda":
                    calls.append(recorded(model, tokens))
                speeds += [f"{B * T / median_seconds(args, call):.0f}" for call in calls]
            rows.append([f"PyTorch {torch.__version__}, last token, T {T}, tokens/s", B, *speeds])
    kinds = ["eager", "CUDA graph"] if args.device == "cuda" else ["eager"]
    table(["protocol", "B", *(f"{kind}{more}" for more in ("", ", no norms") for kind in kinds)], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "infer"))
    peer_gpt2.add_arguments(parser, batch=32)
    parser.set_defaults(n_layer=12, n_head=12, n_embd=768, seq_len=1024, vocab=50304)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--eager", action="store_true", help="train without torch.compile")
    parser.add_argument("--all-bf16", action="store_true", help="train with weights, moments and residual stream in bf16, without autocast")
    parser.add_argument("--attention", choices=("default", *ATTENTION), default="default")
    args = parser.parse_args()
    torch.manual_seed(0)
    (train if args.what == "train" else infer)(args)


main()
