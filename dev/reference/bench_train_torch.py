"""Tokens per second of GPT-2 training in PyTorch on the CPU, fp32: forward, backward, clip, fused AdamW.

With dev/.venv/bin/python, the small model and 124M:

    dev/reference/bench_train_torch.py --compile
    dev/reference/bench_train_torch.py --compile --n-layer 12 --n-head 12 --n-embd 768 --vocab 50257 --batch 4

A whole run, and its speed at its start, its half and its end, as a model that has learned may be slower to train:

    dev/reference/bench_train_torch.py --text FILE --steps 2700
"""

import argparse
import math
import pathlib
import statistics

import peer_gpt2


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    peer_gpt2.add_arguments(parser)
    parser.add_argument("--steps", type=int, default=10, help="steps that count (default 10)")
    parser.add_argument("--text", type=pathlib.Path, help="train on the bytes of this file, at train_gpt's default rates")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them (default 2)")
    args = parser.parse_args()
    torch = peer_gpt2.import_torch(args)

    model = peer_gpt2.build(torch, args)
    run = torch.compile(model) if args.compile else model
    groups = [{"params": [w for w in model.parameters() if w.dim() == 2], "weight_decay": 0.1},
              {"params": [w for w in model.parameters() if w.dim() < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.99 if args.text else 0.95), fused=True)
    tokens = torch.randint(args.vocab, (args.batch, args.seq_len + 1))
    text = torch.frombuffer(bytearray(args.text.read_bytes()), dtype=torch.uint8).long() if args.text else None
    done = 0

    def step():
        nonlocal tokens, done
        if text is not None:
            begins = torch.randint(len(text) - args.seq_len, (args.batch, 1))
            tokens = text[begins + torch.arange(args.seq_len + 1)]
            warm = max(1, args.steps // 50)
            part = min(1.0, max(0.0, (done - warm) / max(1, args.steps - warm)))
            rate = 3e-3 * (min(1.0, (done + 1) / warm) * (0.03 + 0.97 * (1 + math.cos(math.pi * part)) / 2))
            for group in optimizer.param_groups:
                group["lr"] = rate
            done += 1
        x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        optimizer.zero_grad(set_to_none=True)
        loss = run(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    timing = peer_gpt2.timed(step, 0 if args.text else args.warmup, args.steps)
    if args.text:
        along = {f"tokens_per_s_at_{p}_percent": round(args.batch * args.seq_len / statistics.median(part), 1)
                 for p, part in peer_gpt2.places(timing[0]).items()}
        return peer_gpt2.report(torch, args, "train a whole run", timing, last_loss=round(step(), 4), **along)
    rate = args.batch * args.seq_len / statistics.median(timing[0])
    peer_gpt2.report(torch, args, "train", timing, tokens_per_s=round(rate, 1))


if __name__ == "__main__":
    main()
