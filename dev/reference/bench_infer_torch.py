"""Inference of GPT-2 in PyTorch on the CPU, fp32. Random weights: the time does not depend on them.

    prefill  a whole context of T tokens in, the logits of the last token out, B contexts at once
    decode   greedy, one token at a time over a preallocated KV cache, after a prompt; ms per token

With dev/.venv/bin/python, a 30M model's contexts and 124M's decoding:

    dev/reference/bench_infer_torch.py --n-layer 8 --n-head 8 --n-embd 512 --vocab 10000
    dev/reference/bench_infer_torch.py --n-layer 12 --n-head 12 --n-embd 768 --vocab 50257 --decode 32
"""

import argparse
import statistics

import peer_gpt2


def prefill(torch, args, model):
    tokens = torch.randint(args.vocab, (args.batch, args.seq_len))
    run = torch.compile(model) if args.compile else model
    timing = peer_gpt2.timed(lambda: run(tokens), args.warmup, args.steps)
    rate = args.batch * args.seq_len / statistics.median(timing[0])
    peer_gpt2.report(torch, args, "last-token logits", timing, tokens_per_s=round(rate, 1))


def decode(torch, args, model):
    head_size = args.n_embd // args.n_head
    caches = [torch.zeros(2, args.batch, args.n_head, args.seq_len, head_size) for _ in range(args.n_layer)]
    prompt = torch.randint(args.vocab, (args.batch, args.prompt))
    token, at = model.decode(prompt, caches, 0).argmax(-1, keepdim=True), args.prompt

    def step():
        nonlocal token, at
        token, at = model.decode(token, caches, at).argmax(-1, keepdim=True), at + 1

    timing = peer_gpt2.timed(step, args.warmup, args.decode)
    peer_gpt2.report(torch, args, "decode", timing, prompt=args.prompt,
                     tokens_per_s=round(args.batch / statistics.median(timing[0]), 2))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    peer_gpt2.add_arguments(parser, batch=1)
    parser.add_argument("--steps", type=int, default=20, help="passes that count (default 20)")
    parser.add_argument("--warmup", type=int, default=3, help="passes or tokens before them (default 3)")
    parser.add_argument("--decode", type=int, default=0, metavar="N", help="decode N tokens, not prefill")
    parser.add_argument("--prompt", type=int, default=16, help="tokens in the cache before (default 16)")
    parser.add_argument("--freeze", action="store_true", help="with --compile: constant, prepacked weights")
    args = parser.parse_args()
    if args.decode and args.compile:
        parser.error("--compile is for prefill: every length of the cache would be compiled again")
    if args.freeze and not args.compile:
        parser.error("--freeze needs --compile")
    needed = args.prompt + args.warmup + args.decode
    if args.decode and needed > args.seq_len:
        parser.error(f"--seq-len {args.seq_len} is shorter than prompt + warmup + decode = {needed}")
    torch = peer_gpt2.import_torch(args)
    if args.freeze:
        import torch._inductor.config as inductor
        inductor.freezing = True
    with torch.inference_mode() if not args.freeze else torch.no_grad():
        model = peer_gpt2.build(torch, args).eval()
        (decode if args.decode else prefill)(torch, args, model)


if __name__ == "__main__":
    main()
