#!/usr/bin/env python3
"""Compares ./infer and ./train_gpt with Hugging Face's GPT-2 and back, on randomly initialised models: nothing is
downloaded. Build the programs first.

    dev/.venv/bin/python dev/reference/check_hf.py import    # models of others, read by us
    dev/.venv/bin/python dev/reference/check_hf.py export    # ours, read by transformers
    dev/.venv/bin/python dev/reference/check_hf.py hellaswag # scores of tests/golden/hf/hellaswag.jsonl
    dev/.venv/bin/python dev/reference/check_hf.py real      # a pretrained model, where its wheel is
    dev/.venv/bin/python dev/reference/check_hf.py           # all
    dev/.venv/bin/python dev/reference/check_hf.py --write   # makes tests/golden/hf anew

import  GPT-2s of several shapes, with every parameter away from its usual start, saved by transformers in fp32, bf16 and
        fp16, with and without the prefix "transformer.", sharded, with the buffers of old files, as pytorch_model.bin
        (torch.save), and as llm.c's checkpoints (fp32, bf16; written here from the published layout): the logits of `infer MODEL --dump` against
        those of the same numbers in transformers, and the loss that `train_gpt --init MODEL` prints before its first
        update.

export  Models trained for a few updates at a high rate in every mode, of both kinds of norm, folded and not, with bytes
        and with a small BPE: `train_gpt export`, then from_pretrained; GPT2LMHeadModel where the export says so, else
        AutoModelForCausalLM with the modeling file. Logits, ids of the tokenizer, and reading the folder back, also as
        save_pretrained writes it again.

real    MicroFormer's weights, of the package microformer-mgm: read, fine-tuned a little in each mode, folded, exported.

hellaswag  `infer --hellaswag` on the items as JSON lines and in llm.c's format, against scores computed here from
        transformers' logits.

--write trains three tiny models, exports them, and stores what transformers makes of the exports: tests/test_export.cpp
compares that with the programs. It also writes tests/golden/torch: a random GPT-2 as torch.save stores it and its logits,
for tests/test_torch_file.cpp.

In fp32 max |dlogit| below 64 half-units in the last place of the largest logit is required (limit_for).
"""
import argparse
import copy
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
import transformers
from transformers import GPT2Config, GPT2LMHeadModel

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
def limit_for(logits):
    """64 half-units in the last place of the largest fp32 logit, as in tests/test_export.cpp: a logit is the end of some hundreds of
    sums after each other, whose rounding errors have either sign."""
    return 64 * 2.0**-24 * np.abs(logits).max()


SHAPES = {
    "tiny": dict(vocab_size=256, n_positions=32, n_embd=24, n_layer=2, n_head=3),
    "odd": dict(vocab_size=257, n_positions=17, n_embd=33, n_layer=3, n_head=1, layer_norm_epsilon=1e-3),
    "wide": dict(vocab_size=1000, n_positions=64, n_embd=128, n_layer=1, n_head=8, reorder_and_upcast_attn=True),
    "deep": dict(vocab_size=512, n_positions=48, n_embd=64, n_layer=6, n_head=4, activation_function="gelu_pytorch_tanh"),
}


def random_gpt2(shape, **changes):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**SHAPES[shape] | changes, bos_token_id=0, eos_token_id=0)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p += torch.randn_like(p) * (0.3 if ".ln_" in name or name.endswith("bias") else 0.1)
    return model


def logits_of(model, tokens):
    with torch.no_grad():
        return model.float()(torch.tensor([tokens])).logits[0].numpy()


def run(*command, cwd=None):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, errors="replace", cwd=cwd)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def our_logits(path, tokens, folder):
    dump = folder / "logits.safetensors"
    prompt = ["--prompt", tokens] if isinstance(tokens, str) else ["--tokens", ",".join(map(str, tokens))]
    run(ROOT / "infer", path, *prompt, "-n", 1, "--dump", dump, "--device", "cpu")
    return load_file(dump)["logits"]


def tokens_for(model):
    c = model.config
    return np.random.default_rng(1).integers(0, c.vocab_size, c.n_positions).tolist()


def report(what, ours, theirs, limit=None):
    limit = limit or limit_for(theirs)
    error = np.abs(ours - theirs).max()
    print(f"{what:44s} max |dlogit| {error:.2e}   (logits: std {theirs.std():.2f}, max {np.abs(theirs).max():.1f})")
    if not error < limit:
        sys.exit(f"{what}: expected below {limit:g}")


def without_prefix(folder):
    from safetensors.torch import load_file as load
    path = folder / "model.safetensors"
    tensors = {k.removeprefix("transformer."): v.contiguous() for k, v in load(path).items()}
    T = json.loads((folder / "config.json").read_text())["n_positions"]
    for l in range(json.loads((folder / "config.json").read_text())["n_layer"]):  # as in OpenAI's own file
        tensors[f"h.{l}.attn.bias"] = torch.tril(torch.ones(T, T)).view(1, 1, T, T)
        tensors[f"h.{l}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, path)


def write_llmc(model, path, dtype):
    """llm.c's layout (train_gpt2.py, write_model): header, then every kind of tensor for all layers; Linear's [out, in],
    which is Conv1D's transposed; the vocabulary padded with zeros to a multiple of 128."""
    c, state = model.config, model.state_dict()
    padded = (c.vocab_size + 127) // 128 * 128
    header = [20240326, {"fp32": 3, "bf16": 5}[dtype], c.n_positions, c.vocab_size, c.n_layer, c.n_head, c.n_embd, padded]
    wte = torch.zeros(padded, c.n_embd)
    wte[:c.vocab_size] = state["transformer.wte.weight"]
    order = [wte, state["transformer.wpe.weight"]]
    for kind in ("ln_1.weight ln_1.bias attn.c_attn.weight attn.c_attn.bias attn.c_proj.weight attn.c_proj.bias ln_2.weight "
                 "ln_2.bias mlp.c_fc.weight mlp.c_fc.bias mlp.c_proj.weight mlp.c_proj.bias").split():
        for l in range(c.n_layer):
            t = state[f"transformer.h.{l}.{kind}"]
            order.append(t.t() if t.dim() == 2 else t)
    order += [state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]]
    with open(path, "wb") as f:
        f.write(struct.pack("<256i", *header, *[0] * (256 - len(header))))
        for t in order:
            t = t.contiguous()
            f.write(t.float().numpy().tobytes() if dtype == "fp32" else t.bfloat16().view(torch.int16).numpy().tobytes())


def save_torch(model, path, shards=1):
    """As transformers did before it had safetensors: a state_dict, with the tied head as a second name of one storage, and
    the attention masks that older versions kept."""
    shutil.rmtree(path, ignore_errors=True)
    model.config.save_pretrained(path)
    state, T = model.state_dict(), model.config.n_positions
    assert state["lm_head.weight"].data_ptr() == state["transformer.wte.weight"].data_ptr()
    for l in range(model.config.n_layer):
        state[f"transformer.h.{l}.attn.bias"] = torch.tril(torch.ones(T, T, dtype=torch.bool)).view(1, 1, T, T)
        state[f"transformer.h.{l}.attn.masked_bias"] = torch.tensor(-1e4)
    if shards == 1:
        return torch.save(state, path / "pytorch_model.bin")
    names = {k: f"pytorch_model-{i % shards + 1:05}-of-{shards:05}.bin" for i, k in enumerate(state)}
    for name in set(names.values()):
        torch.save({k: v for k, v in state.items() if names[k] == name}, path / name)
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def compare_losses(said, model, val, T, B):
    """The loss that train_gpt --init printed, against that of transformers on the same tokens."""
    ours = float(re.search(r"validation loss ([\d.]+) before the first update", said)[1])
    rows = (len(val) - 1) // (T * B) * B
    ids = torch.tensor(np.stack([val[i * T:i * T + T + 1] for i in range(rows)]).astype(np.int64))
    with torch.no_grad():
        logits = model.float()(ids[:, :-1]).logits
    theirs = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1)).item()
    print(f"{'  loss before the first update':44s} {ours:.6f}, transformers {theirs:.6f}")
    if not abs(ours - theirs) < 1e-5:  # it has six decimals; both are sums of fp32's
        sys.exit("expected the same loss")


def check_loss(path, model, folder):
    """The loss that train_gpt prints before its first update, against transformers on the same validation bytes."""
    T, B = 16, 2
    rng = np.random.default_rng(2)
    (folder / "train.txt").write_bytes(rng.integers(32, 127, 4000, dtype=np.uint8).tobytes())
    val = rng.integers(32, 127, 400, dtype=np.uint8)
    (folder / "val.txt").write_bytes(val.tobytes())
    out = run(ROOT / "train_gpt", "--init", path, "-i", "train.txt", "-j", "val.txt", "--tokenizer", "bytes", "-b", B, "-t",
              T, "-x", 4, "--gate-warmup", 2, "--gate-end", 4, "-m", 1000, "--device", "cpu", cwd=folder)
    compare_losses(out, model, val, T, B)


def check_untied(folder, shape, tokens):
    """A head of its own: read, folded, exported in either layout; train_gpt refuses to start from it."""
    path = folder / f"{shape}-untied"
    model = random_gpt2(shape, tie_word_embeddings=False)
    assert not torch.equal(model.lm_head.weight, model.transformer.wte.weight)
    model.save_pretrained(path)
    theirs = logits_of(model, tokens)
    report(f"{shape} untied", our_logits(path, tokens, folder), theirs)
    run(ROOT / "fold", path, folder / "untied.bin")
    report(f"{shape} untied, folded", our_logits(folder / "untied.bin", tokens, folder), theirs)
    for i, source in enumerate((path, folder / "untied.bin")):
        for flags in ([], ["--hf-code"]):
            out = folder / f"{shape}-untied-{i}{''.join(flags)}"
            run(ROOT / "train_gpt", "export", source, out, *flags)
            hf = transformers.AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True).eval()
            report(f"{shape} untied, exported {' '.join(flags)}", logits_of(hf, tokens), theirs)
            report("  read by infer", our_logits(out, tokens, folder), theirs)


def check_import(folder):
    for shape in SHAPES:
        model = random_gpt2(shape)
        tokens = tokens_for(model)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            name = f"{shape} {str(dtype).removeprefix('torch.')}"
            path = folder / name.replace(" ", "-")
            rounded = random_gpt2(shape).to(dtype)
            rounded.save_pretrained(path)
            theirs = logits_of(rounded, tokens)
            report(name, our_logits(path, tokens, folder), theirs)
            report(name + ", the file", our_logits(path / "model.safetensors", tokens, folder), theirs)
            if shape == "tiny":
                check_loss(path, rounded, folder)
            without_prefix(path)
            report(name + ", no prefix, old buffers", our_logits(path, tokens, folder), theirs)
            shutil.rmtree(path)
            rounded.save_pretrained(path, max_shard_size="20KB")
            if shape != "wide":
                assert (path / "model.safetensors.index.json").exists()
            report(name + ", sharded", our_logits(path, tokens, folder), theirs)
            save_torch(rounded, path)
            report(name + ", torch.save", our_logits(path, tokens, folder), theirs)
            torch.save(dict(rounded.named_parameters()), path / "parameters.bin")
            report(name + ", its parameters", our_logits(path / "parameters.bin", tokens, folder), theirs)
            save_torch(rounded, path, 3)
            report(name + ", torch.save, sharded", our_logits(path, tokens, folder), theirs)
        check_untied(folder, shape, tokens)
        for dtype in ("fp32", "bf16"):
            path = folder / f"{shape}-{dtype}.bin"
            write_llmc(model, path, dtype)
            rounded = random_gpt2(shape, layer_norm_epsilon=1e-5)  # llm.c knows no other
            rounded.to(torch.float32 if dtype == "fp32" else torch.bfloat16)
            report(f"{shape} llm.c {dtype}", our_logits(path, tokens, folder), logits_of(rounded, tokens))
            if shape == "tiny":
                check_loss(path, rounded, folder)


TEXT = "Once upon a time, the cat sat on the mat.\n\n  It's 12 o'clock \u2014 caf\u00e9 \u2603!\tThe end<|endoftext|>"


def train(folder, out, *flags):
    corpus = folder / "corpus.txt"
    if not corpus.exists():
        corpus.write_text("".join(f"The cat number {i} sat on the mat and saw {7 * i} birds.\n" for i in range(400)))
    run(ROOT / "train_gpt", "-i", corpus, "-b", 4, "-t", 24, "--n-layer", 2, "--n-head", 2, "--n-embd", 32, "-l", 0.02,
        "--device", "cpu", "-o", folder / out, *flags)


def small_bpe(folder):
    import tokenizers
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train([str(folder / "corpus.txt")], vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    (folder / "vocabulary").mkdir()
    bpe.save_model(str(folder / "vocabulary"))
    return folder / "vocabulary"


def check_exported(folder, model, plain, dtype="fp32"):
    out = folder / f"hf-{model.removesuffix('.bin')}-{dtype}"
    said = run(ROOT / "train_gpt", "export", folder / model, out, "--dtype", dtype)
    assert ("GPT2LMHeadModel.from_pretrained" in said) == plain, said
    if plain:
        hf = GPT2LMHeadModel.from_pretrained(out, output_loading_info=True, dtype=torch.float32)
    else:
        hf = transformers.AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True, output_loading_info=True,
                                                               dtype=torch.float32)
    hf, info = hf
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    tokenizer = transformers.AutoTokenizer.from_pretrained(out, trust_remote_code=not plain)
    ids = tokenizer(TEXT)["input_ids"]
    assert tokenizer.decode(ids) == TEXT
    assert len(tokenizer) <= hf.config.vocab_size
    if hf.config.vocab_size == 256:
        assert ids == list(TEXT.encode())
        for text in ("\u0100 is no end", "a zero\0byte"):
            assert tokenizer(text)["input_ids"] == list(text.encode()) and tokenizer.decode(list(text.encode())) == text
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == hf.generation_config.eos_token_id is not None
    tokens = ids[:24]
    theirs = logits_of(hf.eval(), tokens)
    limit = None if dtype == "fp32" else 0.05 * np.abs(theirs).max()  # weights of 8 bits
    what = f"{model} {dtype}: {type(hf).__name__}"
    report(what, our_logits(folder / model, tokens, folder), theirs, limit)
    report("  the folder, read by infer", our_logits(out, tokens, folder), theirs)  # rounding and all
    check_saved_again(folder, hf, tokenizer, tokens, theirs)
    text = "caf\u00e9 \u2603 the mat"  # the same text, cut by each side's tokenizer
    report("  from text", our_logits(folder / model, text, folder), logits_of(hf, tokenizer(text)["input_ids"]), limit)


def check_saved_again(folder, hf, tokenizer, tokens, theirs):
    """What save_pretrained makes of an export is read as the export is: whole, in shards, in bf16, folded, exported again."""
    back = folder / "back"
    for what, options in (("saved again", {}), ("in shards", {"max_shard_size": "20KB"})):
        shutil.rmtree(back, ignore_errors=True)
        hf.save_pretrained(back, **options)
        tokenizer.save_pretrained(back)
        assert (back / "model.safetensors.index.json").exists() == bool(options)
        report(f"  {what}", our_logits(back, tokens, folder), theirs)
        report(f"  {what}, from text", our_logits(back, "the mat", folder), logits_of(hf, tokenizer("the mat")["input_ids"]))
    gate = getattr(hf.config, "gate", 0) if getattr(hf.config, "gate_mode", "norm") != "norm" else 0
    unfolded = getattr(hf.config, "folded", "none") == "none"
    if unfolded and gate == 0:
        run(ROOT / "fold", back, folder / "back-folded.bin")
        report("  in shards, folded", our_logits(folder / "back-folded.bin", tokens, folder), theirs)
    shutil.rmtree(folder / "again", ignore_errors=True)
    run(ROOT / "train_gpt", "export", back, folder / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(folder / "again", trust_remote_code=True, dtype=torch.float32)
    assert type(again).__name__ == type(hf).__name__
    report("  in shards, exported again", logits_of(again.eval(), tokens), theirs)
    shutil.rmtree(back)
    rounded = copy.deepcopy(hf).to(torch.bfloat16)
    rounded.save_pretrained(back)
    report("  saved in bf16", our_logits(back, tokens, folder), logits_of(rounded, tokens))


def check_export(folder):
    train(folder, "norm.bin", "-g", "norm", "-x", 30)
    train(folder, "tapering.bin", "-g", "taper", "-x", 30, "--gate-warmup", 10, "--gate-end", 50)
    bpe = small_bpe(folder)
    for gate in ("norm", "taper", "taper-all"):
        for kind in ("layernorm", "rmsnorm"):
            name = f"{gate}-{kind}.bin"
            train(folder, name, "-g", gate, "--norm", kind, "-x", 40, "--bound", 0, "--tokenizer", bpe if kind == "layernorm" else "bytes")
            run(ROOT / "fold", folder / name, folder / f"folded-{name}")
            for model in (name, "folded-" + name):
                check_exported(folder, model, kind == "layernorm" and gate != "taper")
            if gate != "norm":  # a bound that acts on a good part of the numbers
                train(folder, f"bounded-{name}", "-g", gate, "--norm", kind, "-x", 40, "--bound", 0.7, "--tokenizer", "bytes")
                run(ROOT / "fold", folder / f"bounded-{name}", folder / f"clamped-{name}")
                for model in (f"bounded-{name}", f"clamped-{name}"):
                    check_exported(folder, model, False)
    check_exported(folder, "norm.bin", True)
    check_exported(folder, "tapering.bin", False)
    train(folder, "bounded-tapering.bin", "-g", "taper-all", "-x", 30, "--gate-warmup", 10, "--gate-end", 50, "--bound", 0.7)
    check_exported(folder, "bounded-tapering.bin", False)
    for model in ("norm.bin", "taper-layernorm.bin", "taper-all-layernorm.bin", "folded-taper-all-layernorm.bin"):
        check_exported(folder, model, not model.startswith("taper-l"), "bf16")


ITEMS = ROOT / "tests" / "golden" / "hf" / "hellaswag.jsonl"


def choices(tokenize, T):
    for line in ITEMS.read_text().splitlines():
        item = json.loads(line)
        endings = [tokenize(" " + e) for e in item["endings"]]
        keep = T - max(map(len, endings))
        yield tokenize(item["ctx"])[-keep:], endings, int(item["label"])


def hellaswag_scores(model, items):
    """acc by the sum, acc_norm by the mean of the log-likelihoods of an ending's tokens, and the mean over the items of
    the right ending's: one whole row per ending, no cache."""
    acc, acc_norm, likelihood, n = 0, 0, 0, 0
    for context, endings, label in items:
        sums, means = [], []
        for ending in endings:
            logp = torch.log_softmax(torch.tensor(logits_of(model, context + ending)).double(), -1)
            rows = range(len(context) - 1, len(context) + len(ending) - 1)
            sums.append(sum(logp[r, t].item() for r, t in zip(rows, ending)))
            means.append(sums[-1] / len(ending))
        acc += int(np.argmax(sums)) == label
        acc_norm += int(np.argmax(means)) == label
        likelihood += means[label]
        n += 1
    return acc / n, acc_norm / n, likelihood / n


def write_hellaswag_bin(path, items):
    """llm.c's layout (data_common.py, write_evalfile)."""
    stream, longest, items = [], 0, list(items)
    for i, (context, endings, label) in enumerate(items):
        one = [65535, 0, i, label, len(endings), len(context), *context]
        for ending in endings:
            one += [len(ending), *ending]
        one[1] = 2 * len(one)
        longest = max(longest, one[1])
        stream += one
    with open(path, "wb") as f:
        f.write(struct.pack("<256i", 20240522, 1, len(items), longest, *[0] * 252))
        f.write(np.array(stream, dtype=np.uint16).tobytes())


def check_hellaswag(folder):
    train(folder, "bytes.bin", "-g", "norm", "-x", 200, "-t", 64)
    bpe = small_bpe(folder)
    train(folder, "bpe.bin", "-g", "norm", "-x", 200, "-t", 64, "--tokenizer", bpe)
    for name in ("bytes", "bpe"):
        run(ROOT / "train_gpt", "export", folder / f"{name}.bin", folder / name)
        hf = GPT2LMHeadModel.from_pretrained(folder / name).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / name)
        items = list(choices(lambda text: tokenizer(text)["input_ids"], hf.config.n_positions))
        write_hellaswag_bin(folder / f"{name}-items.bin", items)
        expected = hellaswag_scores(hf, items)
        for file in (ITEMS, folder / f"{name}-items.bin"):
            out = run(ROOT / "infer", folder / f"{name}.bin", "--hellaswag", file, "--device", "cpu", "--json")
            found = [json.loads(out)[field] for field in ("acc", "acc_norm", "log_likelihood")]
            print(f"{name} {file.suffix:8} ours {found}, transformers {[round(x, 5) for x in expected]}")
            if not np.allclose(found, expected, rtol=0, atol=6e-5):
                sys.exit("expected the same scores")


def check_real(folder):
    """A GPT-2 with real weights: MicroFormer's, of the package microformer-mgm (MIT; 8 layers, 256 channels, 9,669 tokens), whose
    wheel must be in the folder WHEELS. It has no text: what transformers samples from it is its corpus."""
    wheels = sorted(pathlib.Path(os.environ.get("WHEELS", ".")).glob("microformer_mgm-*.whl"))
    if not wheels:
        return print("real: skipped, no microformer_mgm-*.whl in the folder WHEELS (pip download --no-deps microformer-mgm)")
    with zipfile.ZipFile(wheels[-1]) as wheel:
        for name in wheel.namelist():
            if "/general_model/" in name and name.endswith((".json", ".bin")):
                (folder / pathlib.Path(name).name).write_bytes(wheel.read(name))
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    torch.manual_seed(0)
    texts = model.generate(torch.tensor([[model.config.bos_token_id or 0]] * 40), do_sample=True, max_length=128, min_length=128,
                           pad_token_id=0)
    tokens = texts[0, :64].tolist()
    model.save_pretrained(folder / "saved")
    report("real, torch.save", our_logits(folder / "pytorch_model.bin", tokens, folder), logits_of(model, tokens))
    report("real, save_pretrained", our_logits(folder / "saved", tokens, folder), logits_of(model, tokens))
    streams = {name: rows.reshape(-1).numpy().astype(np.uint16) for name, rows in (("train", texts[:36]), ("val", texts[36:]))}
    for name, stream in streams.items():  # llm.c's shards: header, then uint16
        (folder / f"{name}.bin").write_bytes(struct.pack("<256i", 20240520, 1, len(stream), *[0] * 253) + stream.tobytes())
    for gate in ("norm", "taper", "taper-all"):
        said = run(ROOT / "train_gpt", "--init", folder / "saved", "-i", "train.bin", "-j", "val.bin", "-b", 2, "-t", 64, "-x", 6, "--gate-warmup",
            2, "--gate-end", 5, "-l", 1e-5, "--device", "cpu", "-g", gate, "-o", f"{gate}.bin", cwd=folder)
        if gate == "norm":  # tapering with --bound clips a little from the start
            compare_losses(said, model, streams["val"], 64, 2)
        run(ROOT / "fold", f"{gate}.bin", f"{gate}-folded.bin", cwd=folder)
        for name in (f"{gate}.bin", f"{gate}-folded.bin"):
            run(ROOT / "train_gpt", "export", name, f"hf-{name}", cwd=folder)
            hf = transformers.AutoModelForCausalLM.from_pretrained(folder / f"hf-{name}", trust_remote_code=True).eval()
            report(f"real, {name}", our_logits(folder / name, tokens, folder), logits_of(hf, tokens))


def write_goldens(folder):
    golden = ROOT / "tests" / "golden" / "hf"
    text = list(b"The cat number 7 sat")
    values = {"tokens": text}
    for gate in ("norm", "taper", "taper-all"):
        name = gate
        train(folder, "corpus-maker.bin", "-x", 1, "--gate-warmup", 1, "--gate-end", 2)
        run(ROOT / "train_gpt", "-i", folder / "corpus.txt", "-b", 4, "-t", 48, "--n-layer", 1, "--n-head", 2, "--n-embd", 8,
            "-x", 300, "-l", 0.02, "--device", "cpu", "-g", gate, "--bound", 0, "-o", golden / f"{name}.bin")
        for left in ("state.bin", "log.jsonl", "toml"):
            (golden / f"{name}.{left}").unlink()
        run(ROOT / "train_gpt", "export", golden / f"{name}.bin", folder / name)
        hf = transformers.AutoModelForCausalLM.from_pretrained(folder / name, trust_remote_code=True).eval()
        logits = logits_of(hf, text)
        values[gate] = [float(f"{x:.9g}") for x in logits[-1]]
        if gate == "norm":
            values["hellaswag"] = hellaswag_scores(hf, choices(lambda t: list(t.encode()), 48))
    (golden / "logits.json").write_text(json.dumps(values, separators=(",", ":")) + "\n")
    write_torch_golden()


def write_torch_golden():
    SHAPES["golden"] = dict(vocab_size=256, n_positions=12, n_embd=8, n_layer=1, n_head=2)
    model, golden = random_gpt2("golden"), ROOT / "tests" / "golden" / "torch"
    save_torch(model, golden)
    (golden / "generation_config.json").unlink(missing_ok=True)
    tokens = [17, 4, 39, 200, 81, 7]
    values = {"tokens": tokens, "logits": [float(f"{x:.9g}") for x in logits_of(model, tokens)[-1]]}
    (golden / "logits.json").write_text(json.dumps(values, separators=(",", ":")) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"import": check_import, "export": check_export, "hellaswag": check_hellaswag, "real": check_real}
    parser.add_argument("part", nargs="?", choices=parts)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    if args.write:
        parts = {"write": write_goldens}
    for name, part in parts.items():
        if args.part in (None, name) or args.write:
            with tempfile.TemporaryDirectory() as folder:
                part(pathlib.Path(folder))
    print("all as required")


if __name__ == "__main__":
    main()
