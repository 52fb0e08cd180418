"""Does the loop of TRL learn as ours does? Writes the record that `nbs/pages/scale` reads.

    python tools/engines_record.py FOLDER

For three seeds and both engines, `calibrl train --engine ENGINE --steps 20 --seed SEED` and
`calibrl eval` on the embedded test set; about a quarter of an hour. A run that stands in FOLDER is
only read.
"""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from calibrl.cli import main
from calibrl.eval import read_answers
from calibrl.files import read_jsonl, write_atomic
from calibrl.runs.sources import versions

OUT = Path(__file__).resolve().parent.parent/"benchmarks/engines.json"
TRAIN = "calibrl train --engine {engine} --steps 20 --seed {seed} --out {out}"
EVAL = "calibrl eval {adapter}--benchmarks geometry_test --out {out}-eval"
SEEDS = (0, 1, 2)


def run(command):
    "Run a command of ours, or end."
    if main(command.split()[1:]):
        sys.exit(f"failed: {command}")


def verdicts(out, adapter):
    "The verdicts on the test set of a run's adapter, or of none: 1 or 0 by problem."
    if not Path(f"{out}-eval/summary.json").exists():
        run(EVAL.format(out=out, adapter=adapter))
    rows = read_answers(f"{out}-eval/answers.jsonl")
    return [int(row["correct"][0]) for row in rows]


def record(folder):
    "What all runs came to."
    runs = []
    for seed in SEEDS:
        for engine in ("calibrl", "trl"):
            out = folder/f"{engine}-{seed}"
            if not (out/"summary.json").exists():
                run(TRAIN.format(engine=engine, seed=seed, out=out))
            steps = [round(row["accuracy"], 4) for row in read_jsonl(out/"metrics.jsonl")]
            runs.append({"engine": engine, "seed": seed, "sampled": steps,
                         "right": verdicts(out, f"--adapter {out} ")})
    before = verdicts(folder/"base", "")
    return {"commands": [TRAIN, EVAL], "versions": versions("trl"), "before": before, "runs": runs}


if __name__ == "__main__":
    found = record(Path(sys.argv[1]))
    write_atomic(OUT, json.dumps(found) + "\n")
