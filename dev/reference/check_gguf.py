#!/usr/bin/env python3
"""Compares `train_gpt export MODEL FILE.gguf` with other readers of GGUF, on tiny models trained here: nothing is downloaded.

    dev/.venv/bin/pip install gguf accelerate xllamacpp
    dev/.venv/bin/python dev/reference/check_gguf.py            # gguf's reader, and transformers' import of GGUF
    dev/.venv/bin/python dev/reference/check_gguf.py --llama    # and llama.cpp itself (dev/reference/llama_logits.py)

For every model that a GGUF file can hold (-g norm; -g taper-all at gate 0; both folded too; bytes and BPE; fp32 and bf16):

* gguf.GGUFReader: each tensor, bit for bit, against the folder that `export MODEL DIR` writes for transformers (with bf16, what stays
  fp32 in the GGUF file is compared after rounding); the metadata
  against that folder's config.json, vocab.json and merges.txt;
* transformers.AutoModelForCausalLM.from_pretrained(gguf_file=...), which turns it into a GPT2LMHeadModel: logits against `infer`;
* llama.cpp: the ids of a text against transformers' tokenizer, and the five largest log-probabilities of each position against
  those of `infer`.
"""
import argparse
import json
import pathlib
import sys
import tempfile

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import load_file

from check_hf import ROOT, TEXT, limit_for, our_logits, report, run, small_bpe, train

NAMES = {"transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm",
         "lm_head": "output", "transformer.h.": "blk.", "ln_1": "attn_norm", "ln_2": "ffn_norm",
         "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}


def check_file(path, folder):
    reader = gguf.GGUFReader(path)
    tensors = {t.name: t for t in reader.tensors}
    theirs = load_file(folder / "model.safetensors")
    assert len(tensors) == len(theirs), (sorted(tensors), sorted(theirs))
    for name, expected in theirs.items():
        renamed = name
        for old, new in NAMES.items():
            renamed = renamed.replace(old, new)
        t = tensors[renamed]
        if ".h." in name and expected.dim() == 2:
            expected = expected.t()
        if t.tensor_type == gguf.GGMLQuantizationType.BF16:
            found = torch.from_numpy(np.array(t.data).view(np.int16).reshape(expected.shape)).view(torch.bfloat16)
            assert expected.dtype == torch.bfloat16 and torch.equal(found, expected), name
        else:
            found = torch.from_numpy(np.array(t.data).reshape(expected.shape))
            assert torch.equal(found.to(expected.dtype), expected), name
    key = {k: f.contents() for k, f in reader.fields.items()}
    config = json.loads((folder / "config.json").read_text())
    for ours, hf in {"block_count": "n_layer", "context_length": "n_positions", "embedding_length": "n_embd",
                     "attention.head_count": "n_head"}.items():
        assert key["gpt2." + ours] == config[hf], ours
    assert np.float32(key["gpt2.attention.layer_norm_epsilon"]) == np.float32(config["layer_norm_epsilon"])
    vocab = json.loads((folder / "vocab.json").read_text())
    if "\0" in vocab:  # of a byte model, for GPT2Tokenizer's sake; here it is spelt like all bytes
        vocab["\u0100"] = vocab.pop("\0")
    assert {t: i for i, t in enumerate(key["tokenizer.ggml.tokens"])} == vocab
    merges = (folder / "merges.txt").read_text().splitlines()
    assert key["tokenizer.ggml.merges"] == [m for m in merges if m and not m.startswith("#version")]
    assert key["tokenizer.ggml.eos_token_id"] == vocab.get("<|endoftext|>", 0)


def log_softmax(x):
    return torch.log_softmax(torch.tensor(np.array(x)).double(), -1)


def check_llama(path, model, folder, limit):
    """model: the same numbers. limit: relative to the largest logit. llama.cpp looks GELU up in a table of fp16, where infer
    computes it in fp32; and it rounds what enters a matrix of bf16 to bf16."""
    text = TEXT.replace("<|endoftext|>", "")[:22]
    out = json.loads(run(sys.executable, ROOT / "dev" / "reference" / "llama_logits.py", path, text))
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.with_suffix(""))
    assert out["tokens"] == tokenizer(text)["input_ids"], (out["tokens"], tokenizer(text)["input_ids"])
    logits = our_logits(model, out["tokens"], folder)
    ours, limit = log_softmax(logits), limit * max(10, np.abs(logits).max())
    ids, theirs = torch.tensor(out["top"]).double().unbind(-1)
    error = (ours.gather(-1, ids.long()) - theirs)[theirs > -80].abs().max().item()  # below, its probability is 0 in fp32
    same = (ids[:, 0] == ours.argmax(-1)).double().mean().item()
    print(f"  llama.cpp, {len(out['tokens'])} ids: top 5 log-probabilities within {error:.1e}; the first is the same in {same:.0%}")
    if not error < limit:
        sys.exit(f"expected below {limit:g}")


def check_model(folder, name, llama):
    for dtype in ("fp32", "bf16"):
        out, path = folder / f"{name}-{dtype}", folder / f"{name}-{dtype}.gguf"
        run(ROOT / "train_gpt", "export", folder / f"{name}.bin", out, "--dtype", dtype)
        run(ROOT / "train_gpt", "export", folder / f"{name}.bin", path, "--dtype", dtype)
        check_file(path, out)
        tokens = [int(t) for t in np.random.default_rng(3).integers(1, 250, 24)]
        ours = our_logits(folder / f"{name}.bin", tokens, folder)
        hf = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=path.name, dtype=torch.float32,
                                                               n_positions=24).eval()  # it takes 1024 for given
        with torch.no_grad():
            theirs = hf(torch.tensor([tokens])).logits[0].numpy()
        size = max(10, np.abs(ours).max())  # rounding is in proportion to it; taper-all's logits run off on ids this random
        limit = limit_for(ours) if dtype == "fp32" else 0.05 * size  # weights of 8 bits
        report(f"{name} {dtype}: from_pretrained(gguf_file)", ours, theirs, limit)
        if llama:
            check_llama(path, out, folder, 2 * 2.0**-11 if dtype == "fp32" else 9 * 2.0**-9)  # 2 GELUs; 9 matrices, one after another


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama", action="store_true")
    args = parser.parse_args()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for gate in ("norm", "taper-all"):
            for kind in ("bytes", "bpe"):
                flags = ["-g", gate, "-x", 60, "--gate-warmup", 10, "--gate-end", 40, "--bound", 0]
                if kind == "bpe":
                    bpe = folder / "vocabulary"
                    flags += ["--tokenizer", bpe if bpe.exists() else small_bpe(folder)]
                name = f"{gate}-{kind}"
                train(folder, name + ".bin", *flags)
                run(ROOT / "fold", folder / f"{name}.bin", folder / f"{name}-folded.bin")
                for model in (name, name + "-folded"):
                    check_model(folder, model, args.llama)
    print("all as required")


if __name__ == "__main__":
    main()
