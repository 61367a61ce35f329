#!/usr/bin/env python3
"""What llama.cpp makes of a GGUF file and a text: {"tokens": ids, "logits": a row for each}, as JSON. For check_gguf.py.

    dev/.venv/bin/pip install llama-cpp-python      # builds llama.cpp; or LLAMA_CPP_LIB_PATH=FOLDER with a libllama of yours
    dev/.venv/bin/python dev/reference/llama_logits.py model.gguf "The cat"
"""
import json
import sys

import llama_cpp


def main():
    path, text = sys.argv[1:]
    llama = llama_cpp.Llama(path, n_ctx=0, logits_all=True, verbose=False, n_threads=1, flash_attn=False,
                            type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32)
    tokens = llama.tokenize(text.encode(), add_bos=True, special=False)  # add_bos: where the file says so
    llama.eval(tokens)
    assert llama.detokenize(tokens).decode() == text
    print(json.dumps({"tokens": tokens, "logits": llama.scores[:len(tokens)].tolist(), "end": llama.token_eos()}))


if __name__ == "__main__":
    main()
