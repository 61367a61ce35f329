#!/usr/bin/env python3
"""Regenerates the blocks of README.md that quote programs: what lies between `<!-- block: NAME -->` and `<!-- end -->`.

    dev/readme.py            writes the help texts anew
    dev/readme.py --demo F   also the demo's output, from the file F (make demo | tee F)
    dev/readme.py --check    exit status 1 if a help text in README.md is not the program's
"""
import argparse
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = ROOT / "README.md"


def fenced(text):
    return "```\n" + text.strip("\n") + "\n```\n"


def help_of(program):
    return fenced(f"$ ./{program} --help\n" + subprocess.run(
        [ROOT / program, "--help"], capture_output=True, text=True, check=True).stdout)


def demo(text):
    """From the first command on, without the settings table and without most of the progress lines."""
    lines, steps = [], 0
    for line in text[text.index("$ ./train_gpt"):].splitlines():
        if re.match(r"step +\d+/", line):
            steps += 1
            if steps % 8 != 1 and not re.match(r"step +(\d+)/\1 ", line):
                continue
        lines.append(line)
    return fenced("\n".join(lines))


def replace(text, name, block):
    pattern = re.compile(rf"(<!-- block: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(text):
        sys.exit(f"README.md: no block {name}")
    return pattern.sub(lambda m: m[1] + block + m[2], text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=pathlib.Path)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    old = README.read_text()
    new = old
    for program in ("train_gpt", "infer"):
        new = replace(new, "train-help" if program == "train_gpt" else "infer-help", help_of(program))
    if args.check:
        if new != old:
            sys.exit("README.md: a help text is not the program's; run dev/readme.py")
        return
    if args.demo:
        new = replace(new, "demo", demo(args.demo.read_text()))
    README.write_text(new)


if __name__ == "__main__":
    main()
