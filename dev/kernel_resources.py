#!/usr/bin/env python3
"""Registers, memory and spills of every kernel, from what `nvcc -Xptxas -v` prints, and its tensor core instructions, from the code.

    dev/kernel_resources.py LOG FATBIN OUT.md [COMMITTED.md]        FATBIN: of `nvcc -fatbin --no-compress`

writes the table; exit status 1 if a kernel spills registers to memory, if the compiler made products of a warpgroup wait for one
another, if a kernel lacks the instructions that its name promises, if LOG and FATBIN have other kernels, or COMMITTED.md has others or
other architectures.
"""
import os
import re
import struct
import subprocess
import sys

ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\S+)' for '(?P<arch>sm_\d+\w?)'\n"
    r"(?:.*\n)*?\s+(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
    r"ptxas info\s+: Used (?P<registers>\d+) registers(?P<rest>.*)")

# Products of a warpgroup must run on while the warps do something else. Where registers or a missing wgmma_fence forbid that, ptxas
# takes them one by one, or waits and fences in places of its own, and merely says so, whatever warnings are: "(C7511) Potential
# Performance Loss: wgmma.mma_async instructions are serialized due to insufficient register resources for the wgmma pipeline in the
# function 'f'", "(C7517) warpgroup.wait is injected in around line 435 by compiler to allow use of registers ... in function 'f'".
WAITS = re.compile(r"^.*(?:wgmma\.mma_async instructions are serialized|(?:warpgroup|wgmma)\.\S+ is injected).*$", re.M)

# An instruction has 16 bytes, of which the low 12 bits say which it is and where its operands are: so they are in `nvdisasm -hex` of
# the trainer's kernels for sm_80, sm_90a and sm_100, and of products with the left operand in shared memory (0x9f0) and in
# registers (0xdf0). A group without products is closed by one of nothing, into register RZ (bits 16 to 23): it is not counted.
OPCODES = {0x23c: "HMMA", 0x9f0: "HGMMA", 0xdf0: "HGMMA"}


def tensor_instructions(fatbin):
    """{(mangled name, "90"): {"HMMA": how many, "HGMMA": how many}} in the machine code of every architecture."""
    data, found, at = read(fatbin, "rb"), {}, 0
    try:
        while at < len(data):  # parts, each of a header and entries
            magic, _, header, size = struct.unpack_from("<IHHQ", data, at)
            if magic != 0xba55ed50:
                raise ValueError("no fatbin")
            at, end = at + header, at + header + size
            while at < end:
                kind, _, header, size = struct.unpack_from("<HHIQ", data, at)
                arch, = struct.unpack_from("<I", data, at + 28)
                if kind == 2:  # machine code, which is ELF; 1 is PTX
                    for name, counts in code_of_elf(data[at + header:at + header + size]):
                        found[name, str(arch)] = counts
                at += header + size
    except (ValueError, struct.error) as why:
        sys.exit(f"kernel_resources.py: {fatbin}: expected what nvcc -fatbin --no-compress writes, found something else ({why})")
    return found


def code_of_elf(elf):
    """What each kernel of one architecture has: pairs of its name and its counts."""
    if elf[:4] != b"\x7fELF":
        raise ValueError("machine code that is no ELF file, or compressed")
    table, = struct.unpack_from("<Q", elf, 40)
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    sections = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]  # name, type, flags, address, offset, size
    for section in sections:
        begin = sections[names][4] + section[0]
        name = elf[begin:elf.index(b"\0", begin)].decode()
        if not name.startswith(".text."):
            continue
        counts = dict.fromkeys(OPCODES.values(), 0)
        for low, _ in struct.iter_unpack("<QQ", elf[section[4]:section[4] + section[5]]):
            if low & 0xfff in OPCODES and low >> 16 & 0xff != 0xff:
                counts[OPCODES[low & 0xfff]] += 1
        yield name.removeprefix(".text."), counts


def broken_promises(names, kernels, code):
    """Kernels whose machine code is not what they are named after, or of which the log says nothing: one line each."""
    logged = {(mangled, re.sub(r"\D", "", arch)) for mangled, arch in kernels}
    for mangled, number in sorted(code.keys() - logged):
        yield f"{names.get(mangled, mangled)}: sm_{number}: expected its registers in the log of nvcc -Xptxas -v, found machine code alone"
    for mangled, arch in kernels:
        name, number = names[mangled], re.sub(r"\D", "", arch)
        if (mangled, number) not in code:
            yield f"{name}: {arch}: expected machine code in the fatbin, found none"
            continue
        counts, base = code[mangled, number], name.split("<")[0]
        warpgroups = base.startswith("flash_wgmma_")
        if bool(counts["HGMMA"]) != (warpgroups and number == "90"):
            yield (f"{name}: {arch}: expected {'products' if not counts['HGMMA'] else 'no product'} of a warpgroup (HGMMA), found "
                   f"{counts['HGMMA']}; the kernels flash_wgmma_* have them, in sm_90a's code alone")
        if base.startswith("flash_") and not warpgroups and not counts["HMMA"]:
            yield f"{name}: {arch}: expected products on tensor cores (HMMA), found none"


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
    """With the head of the table, which has the architectures."""
    return set(re.findall(r"^\| (kernel \|.*|`.*`) \|", read(table), re.M))


def read(path, mode="r"):
    try:
        with open(path, mode) as f:
            return f.read()
    except OSError as why:
        sys.exit(f"kernel_resources.py: {path}: {why.strerror}")


def main():
    if len(sys.argv) not in (4, 5) or sys.argv[1].startswith("-"):
        sys.exit(__doc__.strip())
    log, fatbin, out, *committed = sys.argv[1:]
    text, rows = read(log), {}
    for m in ENTRY.finditer(text):
        shared = re.search(r"(\d+) bytes smem", m["rest"])
        rows[m["name"], m["arch"]] = (int(m["registers"]), int(m["stack"]), int(m["stores"]) + int(m["loads"]),
                                      int(shared[1]) if shared else 0)
    if not rows:
        sys.exit(f"kernel_resources.py: {log}: no kernel found; expected the output of nvcc -Xptxas -v")
    code = tensor_instructions(fatbin)
    names = readable(sorted({name for name, _ in [*rows, *code]}))
    archs = sorted({arch for _, arch in rows}, key=lambda a: int(re.sub(r"\D", "", a)))
    spills = sorted((names[name], arch) for (name, arch), row in rows.items() if row[2])
    nvcc = subprocess.run([os.environ.get("NVCC", "nvcc"), "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release [\d.]+", nvcc)
    with open(out, "w") as f:
        f.write("# Registers of every kernel\n\n`make kernel-table` writes this file"
                + (f" (nvcc {release[0]})" if release else "") + ". Registers per thread, for each architecture; stack is local\n"
                "memory in bytes. Dynamic shared memory is not listed: the compiler does not know it. HGMMA: products of a warpgroup\n"
                "in sm_90a's code.\n\n"
                f"Spills: {'none' if not spills else ', '.join(f'{n} ({a})' for n, a in spills)}.\n\n"
                f"| kernel | {' | '.join(archs)} | stack | HGMMA |\n| --- |{' ---: |' * (len(archs) + 2)}\n")
        for mangled, name in sorted(names.items(), key=lambda item: item[1]):
            if not any((mangled, a) in rows for a in archs):
                continue
            cells = [str(rows[mangled, a][0]) if (mangled, a) in rows else "" for a in archs]
            cells.append(str(max(rows[mangled, a][1] for a in archs if (mangled, a) in rows)))
            cells.append(str(code.get((mangled, "90"), {}).get("HGMMA") or ""))
            f.write(f"| `{name}` | {' | '.join(cells)} |\n")
    print(f"{out}: {len(names)} kernels, {len(archs)} architectures, {len(spills)} spill")
    wrong = [f"{name}: {arch}: expected no register in memory, found some spilled" for name, arch in spills]
    wrong += [line.strip() for line in WAITS.findall(text)] + list(broken_promises(names, sorted(rows), code))
    print("".join(f"{line}\n" for line in wrong), end="")
    status = 1 if wrong else 0
    for table in committed:
        if changed := sorted(kernels_of(out) ^ kernels_of(table)):
            print(f"{table}: expected the kernels of {out}, found others ({', '.join(changed)}); run make kernel-table")
            status = 1
    sys.exit(status)


main()
