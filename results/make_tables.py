"""The measured tables that the chapters on methods show: recorded runs → results/tables/*.csv.

`python results/make_tables.py` writes all of them, a row per line of the shown table, everything as text as `compare` prints it.
"""
from pathlib import Path

import numpy as np
import pandas as pd

from medstrat.runs.records import compare, read_runs

ROOT = Path(__file__).parent


def runs(study, *settings): return read_runs(ROOT / study, settings)


# ---- VAESim: results/comparison, results/ladder

STATISTICAL = ("stat_accuracy", "knn_accuracy", "probe_accuracy", "stat_balanced_accuracy", "nmi", "active_clusters", "majority_rate")
LADDER = ["model", "beta", "similarity", "tau_schedule", "tau_end", "compare", "update", "batch_weight", "kmeans_at"]


def vaesim(dataset="pneumoniamnist"): return compare(runs("comparison").query("dataset == @dataset"), STATISTICAL).droplevel("dataset")
def vaesim_mnist(): return vaesim("mnist")


def vaesim_difference():
    "VAESim minus VAE + k-means, seed by seed."
    scores = ["stat_accuracy", "knn_accuracy", "probe_accuracy", "nmi"]
    chosen = runs("comparison").query("dataset == 'pneumoniamnist' and preset == 'best' and model in ('VAESim', 'VAE + k-means')")
    by_seed = chosen.pivot(index="seed", columns="model", values=scores)
    difference = by_seed.xs("VAESim", axis=1, level=1) - by_seed.xs("VAE + k-means", axis=1, level=1)
    rows = pd.DataFrame({"mean difference": difference.mean(), "standard error": difference.sem()}).T[scores]
    return rows.round(4).rename_axis(columns=None, index="VAESim minus VAE + k-means")


def vaesim_ladder():
    "Old runs know the parameter `compare` by its earlier name, `condition_on`."
    ladder = runs("ladder", *LADDER[1:], "condition_on")
    ladder["compare"] = ladder["compare"].fillna(ladder.pop("condition_on"))
    ladder[LADDER] = ladder[LADDER].astype(object).where(ladder[LADDER].notna(), "–")
    scores = ("stat_accuracy", "knn_accuracy", "probe_accuracy", "nmi", "active_clusters")
    return compare(ladder, scores, by=LADDER).reset_index().sort_values("nmi").set_index("model")


# ---- contrastive autoencoder: results/contrastive_sweep

BASE = dict(augment="medical", crop=0.3, exposure=0.2, epochs=50, tau=0.5, batch_size=256, optimizer="adam", alpha=0.1, latent_dim=128)


def contrastive_sweep():
    "One setting of the preset `best` changed at a time; the best by the neighbours first."
    def is_base(value, usual):   # runs older than `exposure` do not name it; it was .2
        return value == usual if isinstance(value, str) else np.isclose(value, usual) or np.isnan(value)
    sweep = runs("contrastive_sweep", *BASE)
    if set(sweep.scored_on) != {"val"}: raise ValueError("settings are chosen on validation images, but these runs were scored on others")
    changed = lambda row: ", ".join(f"{k} = {row[k]}" for k, usual in BASE.items() if not is_base(row[k], usual))
    sweep["changed"] = [changed(row) or "nothing (best)" for row in sweep.to_dict("records")]
    order = sweep.groupby("changed").knn_accuracy.mean().sort_values(ascending=False).index
    scores = ("stat_accuracy", "stat_balanced_accuracy", "knn_accuracy", "probe_accuracy", "nmi", "ari", "majority_rate")
    return compare(sweep, scores, by=("changed",)).loc[order]


TABLES = {f.__name__: f for f in (vaesim, vaesim_mnist, vaesim_difference, vaesim_ladder, contrastive_sweep)}


def text(table: pd.DataFrame) -> pd.DataFrame:
    "As it is written: everything as text, the index as columns."
    return table.reset_index().astype(str)


def main(folder=ROOT / "tables"):
    folder.mkdir(exist_ok=True)
    for name, make in TABLES.items(): text(make()).to_csv(folder / f"{name}.csv", index=False)


if __name__ == "__main__": main()
