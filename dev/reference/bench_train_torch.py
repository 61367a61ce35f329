"""Tokens per second of GPT-2 training in PyTorch on the CPU, fp32: forward, backward, clip, fused AdamW.

With dev/.venv/bin/python, the small model and 124M:

    dev/reference/bench_train_torch.py --compile
    dev/reference/bench_train_torch.py --compile --n-layer 12 --n-head 12 --n-embd 768 --vocab 50257 --batch 4
"""

import argparse
import statistics

import peer_gpt2


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    peer_gpt2.add_arguments(parser)
    parser.add_argument("--steps", type=int, default=10, help="steps that count (default 10)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them (default 2)")
    args = parser.parse_args()
    torch = peer_gpt2.import_torch(args)

    model = peer_gpt2.build(torch, args)
    run = torch.compile(model) if args.compile else model
    groups = [{"params": [w for w in model.parameters() if w.dim() == 2], "weight_decay": 0.1},
              {"params": [w for w in model.parameters() if w.dim() < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), fused=True)
    tokens = torch.randint(args.vocab, (args.batch, args.seq_len + 1))
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = run(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    timing = peer_gpt2.timed(step, args.warmup, args.steps)
    rate = args.batch * args.seq_len / statistics.median(timing[0])
    peer_gpt2.report(torch, args, "train", timing, tokens_per_s=round(rate, 1))


if __name__ == "__main__":
    main()
