#!/usr/bin/env python3
"""Reads what --tensorboard writes with TensorBoard's own reader, after a crash and a resumed run, and compares it with the
JSON log: dev/check_tensorboard.py (programs built; `make plot-env`)."""
import json
import pathlib
import struct
import subprocess
import tempfile

from needs import need

need("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = pathlib.Path(__file__).resolve().parent.parent
RUN = "--device cpu --threads 1 -b 1 --n-layer 2 --n-embd 16 --n-head 2 -t 16 --gate-warmup 10 --gate-end 20 -v 10 -m 1"


def main():
    with tempfile.TemporaryDirectory() as folder:
        def run(arguments):
            subprocess.run([ROOT / "train_gpt", *arguments.split()], cwd=folder, check=True, stdout=subprocess.DEVNULL)

        run(f"{RUN} -x 30 -n 20 --tensorboard board --log-norms 5 -k constant")
        # As after a crash behind update 30: the state is that of update 20, the event file has all 30.
        pathlib.Path(folder, "model.state.1.bin").rename(pathlib.Path(folder, "model.state.bin"))
        run("-y -x 40")
        logged = {}
        for line in pathlib.Path(folder, "model.log.jsonl").read_text().splitlines():
            record = json.loads(line)
            if record.pop("end", None):
                record = {"step": record["updates"], "final_val_loss": record["val_loss"]}
            step = record.pop("step", None)
            if step is None:
                continue  # which run it is
            for key, value in record.items():
                logged.setdefault(key, []).append((step, struct.unpack("f", struct.pack("f", value))[0]))
        board = EventAccumulator(str(pathlib.Path(folder, "board")))
        board.Reload()
        tags = board.Tags()["scalars"]
        assert set(tags) == set(logged), set(tags) ^ set(logged)
        for tag in tags:
            found = [(event.step, event.value) for event in board.Scalars(tag)]
            assert found == logged[tag], (tag, found, logged[tag])
        files = sorted(path.name for path in pathlib.Path(folder, "board").iterdir())
        print(f"{len(tags)} tags, {sum(map(len, logged.values()))} points, from {files}: as in the JSON log")


if __name__ == "__main__":
    main()
