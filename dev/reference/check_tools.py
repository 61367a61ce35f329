#!/usr/bin/env python3
"""Runs what others measure models with on exports of small trained models; nothing is downloaded. What is not installed is
skipped with a line. Build the programs first.

    dev/.venv/bin/pip install lm_eval transformer_lens
    dev/.venv/bin/python dev/reference/check_tools.py

lm-eval         a local task with the items of tests/golden/hf/hellaswag.jsonl: acc as `infer --hellaswag` has it, on byte
                models in the plain layout and with the modeling file. (acc_norm divides by characters there and by tokens
                in infer, and is only shown.)
TransformerLens a TransformerBridge of a plain export: the logits of transformers, and a hook at every block.
"""
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import tempfile

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TQDM_DISABLE": "1", "LMEVAL_LOG_LEVEL": "ERROR"}

import numpy as np
import torch
import transformers

from check_hf import ITEMS, ROOT, limit_for, logits_of, run, train

TASK = """
task: local_items
dataset_path: json
dataset_kwargs: {data_files: {validation: %s}}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{ctx}}"
doc_to_choice: "{{endings}}"
doc_to_target: "{{label | int}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""


def version(package):
    """Of an installed package; "" for none, which is said."""
    if importlib.util.find_spec(package):
        return importlib.metadata.version(package)
    print(f"{package}: skipped, not installed (pip install {package})")
    return ""


def check_lm_eval(folder):
    found = version("lm_eval")
    if not found:
        return
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    (folder / "tasks").mkdir()
    (folder / "tasks" / "items.yaml").write_text(TASK % json.dumps(str(ITEMS)))
    os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
    for gate in ("norm", "taper"):
        train(folder, f"{gate}.bin", "-g", gate, "-x", 200, "-t", 64)
        run(ROOT / "train_gpt", "export", folder / f"{gate}.bin", folder / gate)
        ours = json.loads(run(ROOT / "infer", folder / f"{gate}.bin", "--hellaswag", ITEMS, "--device", "cpu", "--json"))
        done = simple_evaluate(model="hf", model_args={"pretrained": str(folder / gate), "trust_remote_code": gate == "taper"},
                               tasks=["local_items"], device="cpu", batch_size=1, bootstrap_iters=0,
                               task_manager=TaskManager(include_path=str(folder / "tasks"), include_defaults=False))
        theirs = done["results"]["local_items"]
        print(f"lm_eval {found}, -g {gate}: acc {theirs['acc,none']:.4f}, infer {ours['acc']:.4f}; "
              f"acc_norm {theirs['acc_norm,none']:.4f}, infer {ours['acc_norm']:.4f}")
        if not abs(theirs["acc,none"] - ours["acc"]) < 1e-9:
            raise SystemExit("expected the same acc")


def check_transformer_lens(folder):
    found = version("transformer_lens")
    if not found:
        return
    from transformer_lens.model_bridge import TransformerBridge
    for gate in ("norm", "taper-all"):
        train(folder, f"lens-{gate}.bin", "-g", gate, "-x", 200, "--bound", 0)
        out = folder / f"lens-{gate}"
        run(ROOT / "train_gpt", "export", folder / f"lens-{gate}.bin", out)
        tokens = list(b"The cat number 7 sat on")
        theirs = logits_of(transformers.GPT2LMHeadModel.from_pretrained(out).eval(), tokens)
        bridge = TransformerBridge.boot_transformers(str(out), device="cpu")
        with torch.no_grad():
            logits, cache = bridge.run_with_cache(torch.tensor([tokens]))
        error = np.abs(logits[0].numpy() - theirs).max()
        print(f"transformer_lens {found}, -g {gate}: max |dlogit| {error:.1e} (logits up to {np.abs(theirs).max():.1f})")
        if not (error < limit_for(theirs) and all(f"blocks.{l}.hook_out" in cache for l in range(2))):
            raise SystemExit(f"expected below {limit_for(theirs):.1e}, and blocks.0.hook_out and blocks.1.hook_out; hooks: {sorted(cache)}")


if __name__ == "__main__":
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as temporary:
        check_lm_eval(pathlib.Path(temporary))
        check_transformer_lens(pathlib.Path(temporary))
    print("all as required")
