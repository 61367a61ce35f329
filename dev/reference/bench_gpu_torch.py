#!/usr/bin/env python3
"""Tokens per second of GPT-2 training in PyTorch on a GPU: bf16 autocast, torch.compile, SDPA, fused AdamW, clipping.

Prints one row of dev/gpu_bench.sh's table. The vocabulary is padded to a multiple of 128 here, as our trainer does."""

import argparse
import statistics
import time

import torch

import peer_gpt2


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    peer_gpt2.add_arguments(parser, batch=32)
    parser.set_defaults(n_layer=12, n_head=12, n_embd=768, seq_len=1024, vocab=50304)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = peer_gpt2.build(torch, args).to(args.device)
    run = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
    tokens = torch.randint(args.vocab, (args.batch, args.seq_len + 1), device=args.device)
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    times = []
    for step in range(args.steps + 5):
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(args.device, torch.bfloat16):
            loss = run(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()  # waits, as our trainer does to report the loss
        if step >= 5:
            times.append(time.perf_counter() - begin)
    seconds = statistics.median(times)
    peak = torch.cuda.max_memory_allocated() / 2**30 if args.device == "cuda" else 0
    print(f"| PyTorch {torch.__version__}, torch.compile | {x.numel() / seconds:.0f} | {seconds * 1e3:.2f} | | | | | {peak:.1f} |")


main()
