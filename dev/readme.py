#!/usr/bin/env python3
"""Regenerates what the documentation quotes of programs: what lies between `<!-- block: NAME -->` and `<!-- end -->`.

    dev/readme.py            the help texts, in dev/guides/command-line.md, and README.md's lines of the demo
    dev/readme.py --demo F   also the demo's transcript, in dev/results/demo.md, from the file F (make demo | tee F)
    dev/readme.py --check    writes nothing; exit status 1 if a quoted text is not what the program prints

The help of a program that is not built stays as it is, with a note. To build all of them: make all data-tools bench_infer.
"""
import argparse
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
COMMANDS = ROOT / "dev" / "guides" / "command-line.md"
TRANSCRIPT = ROOT / "dev" / "results" / "demo.md"
PROGRAMS = ["train_gpt", "train_gpt export", "fold", "infer", "bench_infer", "prepare", "bpe_train"]
STEP = re.compile(r"step +(\d+)/(\d+) ")


def fenced(text):
    return "```\n" + text.strip("\n") + "\n```\n"


def find(page, text, name):
    block = re.search(rf"(?<=<!-- block: {re.escape(name)} -->\n).*?(?=<!-- end -->)", text, re.DOTALL)
    return block or sys.exit(f"{page.relative_to(ROOT)}: no block {name}")


def replace(page, text, name, block):
    old = find(page, text, name)
    return text[:old.start()] + block + text[old.end():]


def with_help(text):
    for command in PROGRAMS:
        program, *arguments = command.split()
        if not (ROOT / program).exists():
            print(f"{program}: not built; its help is left as it is", file=sys.stderr)
            continue
        shown = subprocess.run([ROOT / program, *arguments, "--help"], capture_output=True, text=True, check=True).stdout
        text = replace(COMMANDS, text, f"help {command}", fenced(f"$ ./{command} --help\n{shown}"))
    return text


def transcript(text):
    """From the first command on, without most of the progress lines."""
    lines, steps = [], 0
    for line in text[text.index("$ ./train_gpt"):].splitlines():
        step = STEP.match(line)
        if step:
            steps += 1
            if steps % 8 != 1 and step[1] != step[2]:
                continue
        lines.append(line)
    return fenced("\n".join(lines))


def six_lines(text):
    """The demo in six lines: the first update, one while the norms taper, the last; the loss; the fold's check; a story."""
    lines = text.splitlines()

    def first(pattern, start=0):
        for line in lines[start:]:
            if re.search(pattern, line):
                return line
        return sys.exit(f"the demo's transcript: no line matches {pattern}")

    steps = [line for line in lines if STEP.match(line)]
    tapering = [line for line in steps if not re.search(r"\| g (1\.000|0\.000) ", line)]
    if not tapering:
        sys.exit("the demo's transcript: no line of an update with a gate between 0 and 1")
    told = next((i for i, line in enumerate(lines) if line.startswith("$ ./infer") and "-n " in line), len(lines))
    return fenced("\n".join([steps[0], tapering[0], steps[-1], first(r"^validation loss [\d.]+ \("),
                             first(r"max \|dlogit\|"), first(r"^Once upon a time", told)]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=pathlib.Path)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    old = {page: page.read_text() for page in (README, COMMANDS, TRANSCRIPT)}
    new = dict(old)
    if args.demo:
        new[TRANSCRIPT] = replace(TRANSCRIPT, old[TRANSCRIPT], "demo", transcript(args.demo.read_text()))
    new[COMMANDS] = with_help(old[COMMANDS])
    lines = six_lines(find(TRANSCRIPT, new[TRANSCRIPT], "demo")[0])
    new[README] = replace(README, old[README], "demo", lines)
    for page in old:
        if new[page] == old[page]:
            continue
        if args.check:
            sys.exit(f"{page.relative_to(ROOT)}: a quoted text is not what the program prints; run dev/readme.py")
        whole = page.with_name(page.name + ".new")  # a page is never there in part
        whole.write_text(new[page])
        whole.replace(page)


if __name__ == "__main__":
    main()
