#!/usr/bin/env python3
"""What llama.cpp makes of a GGUF file and a text, as JSON, for check_gguf.py: the ids, and for each prefix of them the ids and
log-probabilities that come next, the 5 largest: {"tokens": ids, "top": [[[id, log-probability], ...], ...]}.

    dev/.venv/bin/pip install xllamacpp      # llama.cpp with its server, compiled: a wheel of 34 MB
    dev/.venv/bin/python dev/reference/llama_logits.py model.gguf "The cat"
"""
import json
import sys
import urllib.request

import xllamacpp


def main():
    path, text = sys.argv[1:]
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = 1
    params.n_parallel = 1
    params.cache_prompt = False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.verbosity = 0
    server = xllamacpp.Server(params)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever http_proxy says

    def ask(path, body=None):
        request = urllib.request.Request(server.listening_address + path, body and json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        return json.load(opener.open(request))

    tokens = ask("/tokenize", {"content": text, "add_special": True})["tokens"]  # a start token, too, where the file says so
    assert ask("/detokenize", {"tokens": tokens})["content"] == text
    top = []
    for n in range(1, len(tokens) + 1):
        answer = ask("/completion", {"prompt": tokens[:n], "n_predict": 1, "n_probs": 5, "temperature": 0})
        top.append([[t["id"], t["logprob"]] for t in answer["completion_probabilities"][0]["top_logprobs"]])
    print(json.dumps({"tokens": tokens, "top": top}))


if __name__ == "__main__":
    main()
