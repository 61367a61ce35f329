#!/usr/bin/env python3
"""The worst text for a model that a search can find, with norms, without, and with a bound.

    dev/.venv/bin/python dev/experiments/worst_input.py [--report]        (--help: where corpora, models and programs are)

runaway.py's models of 0.93M parameters (seed 1), exported for transformers. From random bytes, shuffled text and text, 64 tokens are
changed one at a time: the gradient with respect to every token says which changes should raise the objective most, 64 of them
are tried, the best is kept, 100 times over. Objectives: the mean loss of the tokens, and the largest.

Stated before the runs: a bound is safe if the worst mean loss found is within 2 nats of norm's.
"""
import exported
import runaway
import runs

T, STEPS, TRIED, BEST = 64, 100, 64, 512
GROUPS = [("norm", ""), *((mode, bound) for mode in ("taper", "taper-all")
                          for bound in (" --skip-grad 0", " --skip-grad 0 --bound 8" + " --final-bound 1.5" * (mode == "taper-all")))]
OBJECTIVES = ["mean", "largest"]


def key(run):
    return f"{run.key}-worst"


def search(model, start, objective):
    """The largest value of the objective that the search finds from start [T]."""
    import torch
    embedding = model.get_input_embeddings().weight.detach()

    def losses(embedded, tokens):
        logits = model(inputs_embeds=embedded).logits.float()
        return torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")

    def value(loss):
        return loss.mean(-1) if objective == "mean" else loss.max(-1).values

    tokens, best = start.clone(), -float("inf")
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        one_hot = torch.nn.functional.one_hot(tokens, embedding.shape[0]).float().requires_grad_()
        # What changing an input does to the model; what it does as a target is found by trying.
        value(losses((one_hot @ embedding)[None], tokens[None])).sum().backward()
        gain = one_hot.grad - (one_hot.grad * one_hot.detach()).sum(-1, keepdim=True)
        chosen = gain.nan_to_num(0).flatten().topk(BEST).indices
        chosen = chosen[torch.randperm(BEST, generator=generator)[:TRIED]]
        tried = tokens.repeat(TRIED, 1)
        tried[torch.arange(TRIED), chosen // embedding.shape[0]] = chosen % embedding.shape[0]
        with torch.no_grad():
            values = value(losses(embedding[tried], tried)).nan_to_num(float("inf"))
        if values.max() > best:
            best, tokens = values.max().item(), tried[values.argmax()]
    return best


def worst(args, run):
    """{objective: the largest value from all starts}"""
    import torch
    torch.set_num_threads(1)
    text = torch.frombuffer(bytearray((args.data / "books_val.txt").read_bytes()), dtype=torch.uint8)[:T].long()
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randint(256, (T,), generator=generator), text[torch.randperm(T, generator=generator)], text]
    model = exported.load(args, run)
    return {objective: max(search(model, start, objective) for start in starts) for objective in OBJECTIVES}


def main():
    args = runs.arguments(__doc__)
    rows = []
    for mode, bound in GROUPS:
        run = runaway.make_run(mode, bound, 1)
        if not args.report and key(run) not in runs.read_records() and (args.work / run.key / "model.bin").exists():
            runs.append_record({"key": key(run), "of": run.key, **worst(args, run)})
        if record := runs.read_records().get(key(run)):
            rows.append([mode, runaway.shown(bound)] + [f"{record[o]:.4g}" for o in OBJECTIVES])
    text = runs.table(["mode", "bound", "worst mean loss found (nats)", "largest loss of a token found"], rows)
    print(text)
    runs.write_block(runs.RESULTS / "experiments.md", "worst-input", text)


if __name__ == "__main__":
    main()
