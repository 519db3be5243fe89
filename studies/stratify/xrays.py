"""The recorded runs of the chapter on chest X-rays: what is kept of them in `studies/stratify`.

    python studies/stratify/xrays.py FOLDER [--work WORK] [--only vade]

FOLDER holds `images/` and `cohort.csv` (columns file, label, subtype, patient). Every run is `medstrat stratify` with three subgroups, pictures of
64×64, three seeds, and at least half of the epochs of the method's preset. Kept are, a row or a few a run: how it was made (`runs.csv`), the number of
films of each subtype in each subgroup (`subgroups.csv`), what goes with the subgroups (`associations.csv`), and how well two seeds agree
(`agreement.csv`); no film, no file's name. A run whose results are in WORK already is not made again.
"""
import argparse
import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pandas as pd
from sklearn.metrics import adjusted_rand_score

KEPT = Path(__file__).parent

HALF = ("-p", "epochs=15", "-p", "pretrain_epochs=20", "-p", "backbone=none")   # VaDE on pixels
RUNS = {
    "vade": ("vade", *HALF),
    "vade-beyond-exposure": ("vade", *HALF, "--condition", "file_exposure"),
    "pixels": ("pixels + k-means",),
    "features": ("features + k-means",),
}


def made(out):
    "How a run was made, as one row."
    r = json.loads((out / "record.json").read_text())
    said = {k: r[k] for k in ("model", "images", "patients", "n_clusters", "chosen", "epochs", "checksum", "table_checksum", "device", "precision", "cores")}
    versions = {k: r["versions"][k] for k in ("medstrat", "torch", "python")}
    words = dict(condition=", ".join(r["question"]["condition"]), settings=json.dumps(r["settings"]), alarms=" ".join(r["alarms"]))
    return pd.DataFrame([said | words | {f"seconds_{k}": v for k, v in r["seconds"].items()} | versions])


def subgroups(out, table):
    films = pd.read_csv(out / "assignments.csv").merge(pd.read_csv(table), on="file", validate="one_to_one")
    return pd.crosstab(films.cluster, films.subtype).reset_index()


def keep(work, table):
    "The tables of all runs that are in a folder."
    folders = {(name, seed): work / f"{name}-seed{seed}" for name in RUNS for seed in range(100)}
    there = {key: out for key, out in folders.items() if out.exists()}
    parts = dict(runs=made, subgroups=lambda out: subgroups(out, table), associations=lambda out: pd.read_csv(out / "associations.csv"))
    for what, read in parts.items():
        rows = pd.concat({key: read(out) for key, out in there.items()}, names=["run", "seed"])
        rows.reset_index(level=[0, 1]).to_csv(KEPT / f"{what}.csv", index=False)


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
    table = a.folder / "cohort.csv"
    for seed in a.seeds:
        for name, (model, *more) in RUNS.items():
            out = a.work / f"{name}-seed{seed}"
            if a.only not in (None, name): continue
            if not out.exists():
                words = [str(Path(sys.executable).with_name("medstrat")), "stratify", str(a.folder / "images"), "--table", str(table), "--model", model,
                         "--clusters", "3", "--patient", "patient", "--size", "64", "--seed", str(seed), "--out", str(out), *more]
                subprocess.run(words, check=True)
    keep(a.work, table)
    agree(a.work, KEPT)


if __name__ == "__main__": main()
