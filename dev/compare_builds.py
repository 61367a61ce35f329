#!/usr/bin/env python3
"""Shows that two builds of the programs compute the same bits: for changes that must not change any number.

    dev/compare_builds.py OLD NEW TEXT.txt     OLD, NEW: folders with train_gpt, fold and infer

Runs both on the same command lines, in all gate modes and both kinds of norm, on one rank and two, whole and resumed. Models,
states (their arguments and provenance apart), logs (times apart), logits and generated texts must be equal. Prints a line per comparison;
exit status 1 if any differs.
"""
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

SIZES = "--n-layer 2 --n-head 2 --n-embd 32 -t 48 -b 3 -v 8 -m 2 --log-norms 6 --gate-warmup 4 --gate-end 12 -n 7 -o m.bin".split()
RUNS = {f"{gate}, {norm}": ["-g", gate, "--norm", norm]
        for gate in ("norm", "taper", "taper-all") for norm in ("layernorm", "rmsnorm")}
RUNS |= {"accumulated": ["-d", "288"], "recomputed": ["-r", "2"], "moments": ["--carry-moments", "-k", "wsd"],
         "no defaults": ["--skip-grad", "0", "--scale-loss", "0", "--freeze-gains"]}
os.environ["OMP_WAIT_POLICY"] = "passive"  # changes no bit, and spares busy machines
different = 0


def tensors(path):
    """The metadata and a hash of every tensor of a safetensors file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    metadata = {k: v for k, v in header.pop("__metadata__", {}).items() if k not in ("arguments", "checksum", "content", "provenance")}
    body = data[8 + size:]
    return metadata, {name: (t["dtype"], t["shape"], hashlib.sha256(body[slice(*t["data_offsets"])]).hexdigest())
                      for name, t in header.items()}


def log(path):
    updates = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in update.items() if "second" not in k} for update in updates if "step" in update]


def text(path):
    return path.read_bytes()


def compare(old, new, name, read):
    global different
    if not (old / name).exists() and not (new / name).exists():
        return
    equal = (old / name).exists() and (new / name).exists() and read(old / name) == read(new / name)
    different += not equal
    print(f"{'equal    ' if equal else 'DIFFERENT'} {new.name}: {name}")


def compare_files(old, new):
    for name in ("m.bin", "m.state.bin", "m.state.1.bin", "f.bin", "m.logits", "f.logits"):
        compare(old, new, name, tensors)
    compare(old, new, "m.log.jsonl", log)
    for name in ("fold.txt", "m.text", "f.text", "m.lines", "f.lines", "m.eval", "f.eval"):
        compare(old, new, name, text)


def run(folder, *command, save=None, keep=lambda line: True):
    result = subprocess.run([str(c) for c in command], cwd=folder, capture_output=True)
    if result.returncode != 0:
        print(f"failed    {folder.name}: {result.stderr.decode(errors='replace').strip()}")
    if save:
        lines = result.stdout.splitlines(keepends=True)
        (folder / save).write_bytes(b"".join(line for line in lines if keep(line.decode(errors="replace"))))


def use(folder, build, lines):
    """Folds the model and reads both in every mode of infer."""
    run(folder, build / "fold", "m.bin", "f.bin", save="fold.txt")
    for m in ("m", "f"):
        infer = [build / "infer", m + ".bin", "--threads", "2"]
        run(folder, *infer, "-n", "60", "--prompt", "The king", save=m + ".text",
            keep=lambda line: not re.match(r"model |device |prompt \d", line))
        run(folder, *infer, "--prompts", lines, "-n", "90", save=m + ".lines")
        run(folder, *infer, "--last-token", "--prompt", "The king", "--dump", m + ".logits")
        run(folder, *infer, "--eval", lines, "--weights", "int8", save=m + ".eval", keep=lambda line: "with fp32" in line)


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    builds = [pathlib.Path(argument).resolve() for argument in sys.argv[1:3]]
    with tempfile.TemporaryDirectory() as work:
        corpus, lines = pathlib.Path(work, "corpus.txt"), pathlib.Path(work, "lines.txt")
        corpus.write_bytes(pathlib.Path(sys.argv[3]).read_bytes()[:120000])
        lines.write_text("Once upon\nThe king\nA\n")

        def both(name, act):
            folders = [pathlib.Path(work, side, name) for side in ("old", "new")]
            for folder, build in zip(folders, builds):
                folder.mkdir(parents=True)
                act(folder, [build / "train_gpt", "-i", corpus, *SIZES], build)
            compare_files(*folders)

        def whole(flags):
            def act(folder, train, build):
                run(folder, *train, "-x", "24", "--threads", "2", *flags)
                use(folder, build, lines)
            return act

        def resumed(folder, train, build):
            run(folder, *train, "-x", "14", "--threads", "2")
            run(folder, build / "train_gpt", "-y", "-o", "m.bin", "-x", "24")

        for name, flags in RUNS.items():
            both(name, whole(flags))
        init = ["--init", pathlib.Path(work, "old", "norm, layernorm", "m.bin")]
        both("from a model", whole(init))
        both("taught by a model", whole([*init, "--distill", "0.5"]))
        both("resumed", resumed)
        for zero in "01":
            mpirun = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2"]
            both(f"two ranks, -z {zero}", lambda folder, train, build: run(
                folder, *mpirun, *train, "-x", "24", "--threads", "1", "-z", zero))
    print(f"{different} different")
    sys.exit(different > 0)


main()
