#!/usr/bin/env python3
"""A GPT-2 with random weights as a GGUF file, for llama.cpp's llama-bench: its time does not depend on the weights.

    dev/.venv/bin/pip install gguf
    dev/.venv/bin/python dev/reference/gguf_gpt2.py gpt2-f32.gguf f32
    dev/.venv/bin/python dev/reference/gguf_gpt2.py gpt2-bf16.gguf bf16
    llama-bench -m gpt2-f32.gguf,gpt2-bf16.gguf -p 0 -n 128 -t 2
"""
import argparse

import gguf
import numpy as np


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("dtype", choices=["f32", "bf16"])
    for name, default in [("n-layer", 12), ("n-head", 12), ("n-embd", 768), ("vocab", 50257), ("context", 1024)]:
        parser.add_argument("--" + name, type=int, default=default)
    args = parser.parse_args()
    C, V = args.n_embd, args.vocab
    random = np.random.default_rng(1)
    w = gguf.GGUFWriter(args.out, "gpt2")
    w.add_context_length(args.context)
    w.add_embedding_length(C)
    w.add_feed_forward_length(4 * C)
    w.add_block_count(args.n_layer)
    w.add_head_count(args.n_head)
    w.add_layer_norm_eps(1e-5)
    w.add_vocab_size(V)
    w.add_file_type(gguf.LlamaFileType.ALL_F32 if args.dtype == "f32" else gguf.LlamaFileType.MOSTLY_BF16)
    w.add_tokenizer_model("gpt2")  # names for V tokens; no text is tokenized
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list([f"token{i}" for i in range(V)])
    w.add_token_types([gguf.TokenType.NORMAL] * V)
    w.add_token_merges(["t o"])

    def matrix(name, rows, columns, exact=False):
        data = random.standard_normal((rows, columns), dtype=np.float32) * np.float32(0.02)
        if args.dtype == "f32" or exact:
            return w.add_tensor(name, data)
        kind = gguf.GGMLQuantizationType.BF16
        w.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)

    def vectors(name, n, weight):
        if weight:
            w.add_tensor(name + ".weight", np.ones(n, np.float32))
        w.add_tensor(name + ".bias", np.zeros(n, np.float32))

    matrix("token_embd.weight", V, C)
    matrix("position_embd.weight", args.context, C, exact=True)
    vectors("output_norm", C, True)
    for layer in range(args.n_layer):
        block = f"blk.{layer}."
        vectors(block + "attn_norm", C, True)
        vectors(block + "ffn_norm", C, True)
        for name, outputs, inputs in [("attn_qkv", 3 * C, C), ("attn_output", C, C), ("ffn_up", 4 * C, C),
                                      ("ffn_down", C, 4 * C)]:
            matrix(block + name + ".weight", outputs, inputs)
            vectors(block + name, outputs, False)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


if __name__ == "__main__":
    main()
