#!/usr/bin/env python3
"""Registers, memory and spills of every kernel, from what `nvcc -Xptxas -v` prints.

    dev/kernel_resources.py LOG OUT.md [COMMITTED.md]

writes the table; exit status 1 if a kernel spills registers to memory, or if COMMITTED.md lists other kernels.
"""
import re
import subprocess
import sys

ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for '(?P<arch>sm_\d+\w?)'\n"
    r"(?:.*\n)*?\s+(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
    r"ptxas info\s+: Used (?P<registers>\d+) registers(?P<rest>.*)")


def readable(names):
    """Kernel names without parameter lists: attention_forward_kernel<__nv_bfloat16, 64>."""
    out = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout.split("\n")
    short = {}
    for mangled, name in zip(names, out):
        name = re.sub(r"^void ", "", name).replace("(anonymous namespace)::", "").replace("tapernorm::", "").replace("__nv_bfloat16", "bf16")
        depth = 0
        for i, c in enumerate(name):
            depth += (c == "<") - (c == ">")
            if c == "(" and depth == 0:
                name = name[:i]
                break
        short[mangled] = re.sub(r"\((\w+)\)(\d+)", r"\1 \2", name)
    return short


def kernels_of(table):
    return set(re.findall(r"^\| `(.*)` \|", open(table).read(), re.M))


def main():
    log, out, *committed = sys.argv[1:]
    rows = {}
    for m in ENTRY.finditer(open(log).read()):
        shared = re.search(r"(\d+) bytes smem", m["rest"])
        rows[m["name"], m["arch"]] = (int(m["registers"]), int(m["stack"]), int(m["stores"]) + int(m["loads"]),
                                      int(shared[1]) if shared else 0)
    if not rows:
        sys.exit(f"kernel_resources.py: {log}: no kernel found; expected the output of nvcc -Xptxas -v")
    names = readable(sorted({name for name, _ in rows}))
    archs = sorted({arch for _, arch in rows}, key=lambda a: int(re.sub(r"\D", "", a)))
    spills = sorted((names[name], arch) for (name, arch), row in rows.items() if row[2])
    nvcc = subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release [\d.]+", nvcc)
    with open(out, "w") as f:
        f.write("# Registers of every kernel\n\n`make kernel-table` writes this file"
                + (f" (nvcc {release[0]})" if release else "") + ". Registers per thread, for each architecture; stack is local\n"
                "memory in bytes. Dynamic shared memory is not listed: the compiler does not know it.\n\n"
                f"Spills: {'none' if not spills else ', '.join(f'{n} ({a})' for n, a in spills)}.\n\n"
                f"| kernel | {' | '.join(archs)} | stack |\n| --- |{' ---: |' * (len(archs) + 1)}\n")
        for mangled, name in sorted(names.items(), key=lambda item: item[1]):
            cells = [str(rows[mangled, a][0]) if (mangled, a) in rows else "" for a in archs]
            stack = max(rows[mangled, a][1] for a in archs if (mangled, a) in rows)
            f.write(f"| `{name}` | {' | '.join(cells)} | {stack} |\n")
    print(f"{out}: {len(names)} kernels, {len(archs)} architectures, {len(spills)} spill")
    status = 1 if spills else 0
    for table in committed:
        if changed := sorted(kernels_of(out) ^ kernels_of(table)):
            print(f"{table}: expected the kernels of {out}, found others ({', '.join(changed)}); run make kernel-table")
            status = 1
    sys.exit(status)


main()
