"""The recorded runs of the chapter on chest X-rays: what is kept of each under `results/stratify`.

    python results/stratify_xrays.py FOLDER [--work WORK] [--only vade]

FOLDER holds `images/` and `cohort.csv` (columns file, label, subtype, patient). Every run is `medstrat stratify` with three subgroups, pictures of
64×64, three seeds, and at least half of the epochs of the method's preset. Kept are: how the run was made, the number of films of each subtype in
each subgroup, and the tables of evidence; no film, no file's name. A run whose results are in WORK already is not made again.
"""
import argparse
import json
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pandas as pd
from sklearn.metrics import adjusted_rand_score

KEPT = Path(__file__).parent / "stratify"

HALF = ("-p", "epochs=15", "-p", "pretrain_epochs=20", "-p", "backbone=none")   # VaDE on pixels
RUNS = {
    "vade": ("vade", *HALF),
    "vade-beyond-exposure": ("vade", *HALF, "--condition", "file_exposure"),
    "pixels": ("pixels + k-means",),
    "features": ("features + k-means",),
}


def keep(out, table, target):
    target.mkdir(parents=True, exist_ok=True)
    films = pd.read_csv(out / "assignments.csv").merge(pd.read_csv(table), on="file", validate="one_to_one")
    pd.crosstab(films.cluster, films.subtype).to_csv(target / "subgroups.csv")
    for name in ("associations.csv", "characteristics.csv", "history.csv"): shutil.copy(out / name, target / name)
    record = json.loads((out / "record.json").read_text())
    record["question"] |= dict(folder="images", table="cohort.csv")
    (target / "record.json").write_text(json.dumps(record, indent=1) + "\n")


def agree(work, target):
    "Adjusted Rand index of the subgroups of every two seeds of a run."
    rows = []
    for name in RUNS:
        found = {p.name[-1]: pd.read_csv(p / "assignments.csv").cluster for p in sorted(work.glob(f"{name}-seed?"))}
        rows += [dict(run=name, seeds=f"{a} and {b}", ari=adjusted_rand_score(found[a], found[b])) for a, b in combinations(found, 2)]
    pd.DataFrame(rows).to_csv(target / "agreement.csv", index=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/stratify"))
    parser.add_argument("--only", choices=list(RUNS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    a = parser.parse_args()
    for seed in a.seeds:
        for name, (model, *more) in RUNS.items():
            out, table = a.work / f"{name}-seed{seed}", a.folder / "cohort.csv"
            if a.only not in (None, name): continue
            if not out.exists():
                words = [str(Path(sys.executable).with_name("medstrat")), "stratify", str(a.folder / "images"), "--table", str(table), "--model", model,
                         "--clusters", "3", "--patient", "patient", "--size", "64", "--seed", str(seed), "--out", str(out), *more]
                subprocess.run(words, check=True)
            keep(out, table, KEPT / out.name)
    agree(a.work, KEPT)


if __name__ == "__main__": main()
