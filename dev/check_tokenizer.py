#!/usr/bin/env python3
"""Compares our tokenizer and BPE trainer with the packages tokenizers and tiktoken, token for token.

    make prepare bpe_train
    dev/check_tokenizer.py --vocab data/downloads/gpt2 --text books.txt --train-text books.txt

Needs the Python packages tokenizers and tiktoken; downloads nothing. Exit status 1 where anything differs.
"""
import argparse
import json
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time
import unicodedata

import numpy as np
import tiktoken
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

MARKER = "<|endoftext|>"
# As tiktoken's registry has it for gpt2.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
WHITE = [chr(c) for c in [*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028,
                          0x2029, 0x202F, 0x205F, 0x3000]]
# Not white space, though some libraries' \s takes them for it.
NOT_WHITE = ["\u180e", "\u200b", "\u200d", "\u2060", "\ufeff", "\x1c", "\x1d", "\x1e", "\x1f", "\0"]


def mixed_text(rng, characters):
    """Everything that can sit next to everything else."""
    words = ("the and don't I'll we've they're it's I'd I'm DON'T 's 'S ''s x'll'd "
             "1234 3.14 0x1F 1st ½ ² ٣٤٥ १२३ Ⅻ "
             "naïve Ünïcödé ﬁ Straße привет мир γειά שלום مرحبا بالعالم 你好世界 こんにちは カタカナ 한국어 ไทย हिन्दी "
             "🙂 👩‍👩‍👧‍👦 🇺🇳 👍🏽 e\u0301 \u0301 -- ... !!! ?! == != <= -> :: // /* */ #include <a> {} [] () "
             "return x_y; def f(self): print(\"a\\n\") "
             "$100 €50 % & @ _ __ <|endoftext <|endoftext|").split(" ")
    planes = [(0x20, 0x7F), (0x80, 0x250), (0x300, 0x370), (0x370, 0x600), (0x600, 0x700), (0x900, 0xE00),
              (0x1100, 0x1200), (0x2000, 0x2C00), (0x3000, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4),
              (0xE000, 0xE100), (0xFB00, 0x10000), (0x10000, 0x10400), (0x1D400, 0x1D800), (0x1F300, 0x1F700)]
    out, length = [], 0
    while length < characters:
        kind = rng.random()
        if kind < 0.40:
            piece = rng.choice(words)
        elif kind < 0.55:
            piece = " "
        elif kind < 0.70:
            piece = "".join(rng.choice(WHITE) for _ in range(rng.randint(1, 4)))
        elif kind < 0.75:
            piece = rng.choice(NOT_WHITE)
        elif kind < 0.80:
            piece = rng.choice(["\n", "\n\n", "\n\n\n", "\r\n", "    ", "\t\t", " \n"])
        else:
            low, high = rng.choice(planes)
            piece = "".join(chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 6)))
        out.append(piece)
        length += len(piece)
    return "".join(out)


def chunks(text, size=1 << 20):
    """Parts with the words of the whole: cut before white space that follows anything else."""
    cut = re.compile(r"(?<=[!-~])(?=[ \n])")
    at = 0
    while at < len(text):
        found = cut.search(text, at + size)
        end = found.start() if found else len(text)
        yield text[at:end]
        at = end


class Check:
    def __init__(self, args):
        self.programs = pathlib.Path(args.programs).resolve()
        self.tmp = pathlib.Path(args.tmp)
        self.failed = False
        self.log = open(self.tmp / "log", "w")

    def say(self, name, ok, detail=""):
        self.failed |= not ok
        print(f"{'ok  ' if ok else 'FAIL'} {name}{': ' + detail if detail else ''}", flush=True)

    def run(self, program, *arguments):
        start = time.time()
        subprocess.run([self.programs / program, *map(str, arguments)], check=True,
                       stdout=subprocess.DEVNULL, stderr=self.log)
        return time.time() - start

    def ours(self, data, vocabulary, threads):
        """Ids of one document: what prepare writes, without the <|endoftext|> in front."""
        with tempfile.TemporaryDirectory(dir=self.tmp) as out:
            # In a text file the marker separates documents; in JSON it is text like any other.
            json_lines = MARKER.encode() in data
            source = pathlib.Path(out) / ("x.jsonl" if json_lines else "x.txt")
            source.write_bytes(json.dumps({"text": data.decode()}).encode() if json_lines else data)
            self.run("prepare", source, "-o", out, "--tokenizer", vocabulary, "--val-tokens", 0,
                     "--threads", threads)
            shards = sorted(pathlib.Path(out).glob("x_train_*.bin"))
            return np.concatenate([np.fromfile(s, "<u2", offset=1024) for s in shards])[1:]

    def compare(self, name, ours, theirs):
        theirs = np.asarray(theirs)
        if len(ours) == len(theirs) and (ours == theirs).all():
            return self.say(name, True, f"{len(ours)} tokens equal")
        n = min(len(ours), len(theirs))
        at = int(np.argmax(ours[:n] != theirs[:n])) if (ours[:n] != theirs[:n]).any() else n
        self.say(name, False, f"{len(ours)} and {len(theirs)} tokens, first difference at {at}: "
                              f"{ours[at:at + 8].tolist()} and {theirs[at:at + 8].tolist()}")


def check_encoding(check, vocabulary, texts):
    vocab = json.load(open(vocabulary / "vocab.json", encoding="utf-8"))
    hugging = tokenizers.Tokenizer(models.BPE.from_file(str(vocabulary / "vocab.json"),
                                                        str(vocabulary / "merges.txt")))
    hugging.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    hugging.decoder = decoders.ByteLevel()
    alphabet = {character: byte for byte, character in enumerate(byte_characters())}
    ranks = {bytes(alphabet[c] for c in token): i for token, i in vocab.items() if token != MARKER}
    tik = tiktoken.Encoding("ours", pat_str=PATTERN, mergeable_ranks=ranks,
                            special_tokens={MARKER: vocab[MARKER]})
    for name, data in texts.items():
        text = data.decode("utf-8", errors="replace")
        if text.encode() != data:
            ours = check.ours(data, vocabulary, 1)
            back = b"".join(tik.decode_single_token_bytes(int(i)) for i in ours)
            check.say(f"{name}, not UTF-8: decoding gives the bytes back", back == data)
            continue
        ours = check.ours(data, vocabulary, 2)
        check.compare(f"{name}, {len(data) / 1e6:.1f} MB, tokenizers {tokenizers.__version__}", ours,
                      [i for part in chunks(text) for i in hugging.encode(part).ids])
        check.compare(f"{name}, {len(data) / 1e6:.1f} MB, tiktoken {tiktoken.__version__}", ours,
                      [i for part in chunks(text) for i in tik.encode_ordinary(part)])


def byte_characters():
    """GPT-2's printable character of each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(rest)) for b in range(256)]


def check_training(check, path, vocab_size):
    text = path.read_text(encoding="utf-8")
    out = check.tmp / "trained"
    seconds = check.run("bpe_train", path, "-o", out, "-v", vocab_size)
    ours = [line for line in (out / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]]
    hugging = tokenizers.Tokenizer(models.BPE())
    hugging.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, min_frequency=2, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    start = time.time()
    hugging.train_from_iterator(chunks(text), trainer)
    reference_seconds = time.time() - start
    hugging.model.save(str(check.tmp))
    theirs = (check.tmp / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    vocab = json.load(open(out / "vocab.json", encoding="utf-8"))
    their_vocab = json.load(open(check.tmp / "vocab.json", encoding="utf-8"))
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    times = f"{seconds:.1f} s, tokenizers {reference_seconds:.1f} s"
    check.say(f"merges of {path.name}, V = {vocab_size}", ours == theirs,
              f"{len(ours)} and {len(theirs)}, the first {same} equal; {times}")
    check.say(f"vocabulary of {path.name}, V = {vocab_size}",
              vocab == their_vocab | {MARKER: len(their_vocab)})
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=pathlib.Path, help="directory with GPT-2's vocab.json and merges.txt")
    parser.add_argument("--text", type=pathlib.Path, nargs="*", default=[], help="texts to encode (UTF-8)")
    parser.add_argument("--train-text", type=pathlib.Path, help="text to train vocabularies on")
    parser.add_argument("--train-sizes", type=int, nargs="*", default=[1000, 10000])
    parser.add_argument("--mixed", type=int, default=3_000_000, help="characters of generated mixed text")
    parser.add_argument("--programs", default=".", help="where prepare and bpe_train are")
    args = parser.parse_args()
    rng = random.Random(1)
    with tempfile.TemporaryDirectory() as args.tmp:
        check = Check(args)
        texts = {path.name: path.read_bytes() for path in args.text}
        texts["mixed"] = mixed_text(rng, args.mixed).encode()
        texts["every character"] = "".join(
            f"a{chr(c)}b {chr(c)}{chr(c)} 1{chr(c)}\n" for c in range(0x110000)
            if not 0xD800 <= c < 0xE000 and assigned(c)).encode()
        texts["a long run"] = b"a" * 1_000_000 + b" " * 100_000 + b"\n" * 100_000 + b"ab" * 100_000
        texts["random bytes"] = bytes(rng.randrange(256) for _ in range(300_000))
        if args.vocab:
            check_encoding(check, args.vocab, texts)
        if args.train_text:
            for size in args.train_sizes:
                trained = check_training(check, args.train_text, size)
            check_encoding(check, trained, {"mixed, trained vocabulary": texts["mixed"]})
    sys.exit(1 if check.failed else 0)


def assigned(code):
    """In Python's table of characters. Later ones are letters or not by each library's version of Unicode."""
    return unicodedata.category(chr(code)) not in ("Cn", "Co")


if __name__ == "__main__":
    main()
