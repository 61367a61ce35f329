#!/usr/bin/env python3
"""Schedule map: which k_warm, k_end, lambda and learning rate cost nothing, hurt, or diverge in a short run.

    dev/experiments/schedule.py [--report]      (--help: where corpora, program and work folder are)

0.2M parameters on books, 500 updates, the program's defaults for all that is not named: learning-rate warm-up 2%, cosine to 3%.
One seed a cell: a map, whose differences below about 1% may be chance. Each cell is the gap of the final validation loss to
`norm` at the same rate.

Stated before the first run:
  * "safe": gap at most +0.5%; "hurt": more; "diverged": a loss that is not finite.
  * The default (5% / 40%, lambda 0.1) stays unless it is not safe in some cell, or another schedule with the same meaning
    at every length is below it in every cell, by 0.5% or more on average.
  * Expected from the prototype: without the scale loss, schedules whose k_warm is early hurt, the more the higher the rate;
    with it, no cell is hurt. Removal in one update ("abrupt", the no-taper baseline; calibrated like the others) is expected
    to hurt or diverge at the highest rate, with or without the scale loss.
Planned for 2000 and 8000 updates too; cut to 500 while under way, for want of machine time.
"""
import runs
from runs import SHAPE, Run

RATES = ["1e-3", "3e-3", "9e-3"]
STEPS = 500
SCHEDULES = [("5%", "40%"), ("20%", "80%"), ("5%", "abrupt"), ("2%", "40%"), ("5%", "80%")]
LAMBDAS = ["0", "0.1"]
MORE_LAMBDAS = ["0.01", "1"]  # of the default schedule


def make_run(steps, rate, mode):
    return Run("books", f"{SHAPE} -x {steps} -l {rate} {mode} -v 0")


def norm(steps, rate):
    return make_run(steps, rate, "-g norm")


def taper(steps, rate, schedule, lam):
    warm, end = schedule
    if end == "abrupt":
        end = round(float(warm.rstrip("%")) / 100 * steps) + 1
    return make_run(steps, rate, f"-g taper --gate-warmup {warm} --gate-end {end} --scale-loss {lam}")


def cell(records, run, base):
    if run not in records or base not in records:
        return ""
    record = records[run]
    if not record["val_loss"]:
        return f"diverged at {record['steps'] + 1}"
    gap = runs.gap_text({1: record["val_loss"]}, {1: records[base]["val_loss"]})
    top = max(s for s in record["curve"]["stream_scale"] if s)
    return gap + (f" (s(h) to {top:.1f})" if record["scale_target"] and top > 4 * record["scale_target"] else "")


def main():
    args = runs.arguments(__doc__)
    columns = [(STEPS, rate) for rate in RATES]
    cells = [norm(*column) for column in columns]
    cells += [taper(*column, schedule, lam) for column in columns for schedule in SCHEDULES for lam in LAMBDAS]
    cells += [taper(*column, ("5%", "40%"), lam) for column in columns for lam in MORE_LAMBDAS]
    records = runs.run_all(args, cells)

    rows = [["norm, validation loss", ""] +
            [f"{records[norm(*c)]['val_loss']:.4f}" if norm(*c) in records else "" for c in columns]]
    settings = [(schedule, lam) for lam in LAMBDAS for schedule in SCHEDULES]
    settings += [(("5%", "40%"), lam) for lam in MORE_LAMBDAS]
    for schedule, lam in settings:
        rows.append([f"{schedule[0]} / {schedule[1]}", lam] +
                    [cell(records, taper(*c, schedule, lam), norm(*c)) for c in columns])
    text = runs.table(["k_warm / k_end", "lambda"] + [f"{steps} updates, {rate}" for steps, rate in columns], rows)
    print(text)
    runs.write_block(runs.RESULTS / "experiments.md", "schedule", text)


if __name__ == "__main__":
    main()
