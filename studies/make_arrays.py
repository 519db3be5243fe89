"""What the chapters on the papers need of a study's runs beside its table: run folders → studies/arrays/.

`python studies/make_arrays.py runs/NAME` writes, for the study NAME,
- `NAME-clusters.csv.gz`, for the sets in CLUSTERS: a row a test image, its label (and colour), and a column a run with its cluster;
- `NAME-RUN.npz` for the methods in PICTURES, seed 0: a map of the test images, their clusters, decoded prototypes, draws;
- where the images have a colour, the column `color_accuracy` of `NAME.csv`, if that table is there.
"""
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from medstrat.data.sources import load_dataset
from medstrat.parts.figures import embed_2d
from medstrat.parts.matching import StatisticalMapping, one_to_one
from medstrat.training.saving import load_model

STUDIES = Path(__file__).parent
CLUSTERS = "mnist", "colored-mnist"
PICTURES = "VAESim", "DVC", "DVC-2"


def finished(folder):
    "The runs that are whole: (folder, record)."
    for path in sorted(Path(folder).glob("*/run.json")):
        if path.parent.suffix != ".partial": yield path.parent, json.loads(path.read_text())


def assigned(run, split="test"):
    rows = pd.read_csv(run / "assignments.csv", keep_default_na=False)
    return rows[rows.split == split].reset_index(drop=True)


def clusters(runs):
    "What is known of the test images, and their clusters in each run."
    rows = {run.name: assigned(run) for run in runs}
    known = [part[[c for c in ("label", "color") if c in part]] for part in rows.values()]
    if not all(part.equals(known[0]) for part in known): raise ValueError("these runs were not scored on the same images")
    return known[0].assign(**{name: part.cluster for name, part in rows.items()})


def color_accuracy(run):
    "The share of test images whose cluster is the one matched with their colour, one-to-one."
    rows = assigned(run)
    codes = pd.factorize(rows.color, sort=True)[0]
    return float(np.mean(one_to_one(rows.cluster.to_numpy(), codes) == codes))


def as_bytes(images): return np.rint(255 * images).astype(np.uint8)


def picture(run, record):
    "A map of the test images and the prototypes, as the figures of the papers show them."
    model, images = load_model(run / "model.safetensors"), load_dataset(record["dataset"]).test
    embedding, found = model.encode(images)
    train = assigned(run, "train")
    mapping = StatisticalMapping().fit(train.cluster.to_numpy(), train.label.to_numpy(), model.n_clusters_)
    xy, index, prototypes_xy = embed_2d(embedding, prototypes=model.cluster_centers_)
    return dict(xy=xy.astype(np.float32), labels=images.labels[index], clusters=found[index],
                mapped=mapping.predict(found)[index], prototypes_xy=prototypes_xy.astype(np.float32),
                prototypes=as_bytes(model.prototypes()), samples=as_bytes(model.sample(40)))


def main(folder, out=STUDIES):
    folder, arrays = Path(folder), Path(out) / "arrays"
    runs, table = list(finished(folder)), Path(out) / f"{folder.name}.csv"
    arrays.mkdir(exist_ok=True)
    chosen = [run for run, record in runs if record["dataset"] in CLUSTERS]
    if chosen: clusters(chosen).to_csv(arrays / f"{folder.name}-clusters.csv.gz", index=False, compression=dict(method="gzip", mtime=0))
    for run, record in runs:
        if record["model"] in PICTURES and record["seed"] == 0: np.savez_compressed(arrays / f"{folder.name}-{run.name}.npz", **picture(run, record))
    colored = {run.name: color_accuracy(run) for run, _ in runs if "color" in assigned(run)}
    if colored and table.exists():
        rows = pd.read_csv(table, dtype=str, keep_default_na=False)   # as it was written, to the last digit
        rows.assign(color_accuracy=rows.run.map(colored).astype(str)).to_csv(table, index=False)


if __name__ == "__main__":
    for folder in sys.argv[1:]: main(folder)
