"""The measured tables that the chapters on methods show: recorded runs → results/tables/*.csv.

`python results/make_tables.py` writes all of them, a row per line of the shown table, everything as text as `compare` prints it.
"""
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_rand_score

from medstrat.evaluation.association import associations, cramers_v
from medstrat.parts.matching import one_to_one
from medstrat.runs.tables import compare, read_runs

ROOT = Path(__file__).parent
SHOWN = ("one_to_one_accuracy", "nmi", "ari")
STATISTICAL = ("stat_accuracy", "knn_accuracy", "probe_accuracy", "stat_balanced_accuracy", "nmi")
COLORED = ("digit", "color", "active_clusters")


def runs(study, *settings): return read_runs(ROOT / study, settings)
def assigned(folder): return pd.read_csv(f"{folder}/assignments.csv.gz")
def dashes(table, columns): return table.assign(**{c: table[c].astype(object).where(table[c].notna(), "–") for c in columns})


# ---- VAESim: results/comparison, results/ladder

LADDER = ["model", "beta", "similarity", "tau_schedule", "tau_end", "compare", "update", "batch_weight", "kmeans_at"]


def vaesim(dataset="pneumoniamnist"): return compare(runs("comparison").query("dataset == @dataset"), (*STATISTICAL, "active_clusters", "majority_rate")).droplevel("dataset")
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


# ---- DEC and IDEC

def dec_runs():
    recorded = dashes(runs("self_training", "augment", "init"), ["augment", "init"])
    return recorded[(recorded.dataset == "mnist") & recorded.model.isin(["DEC", "IDEC", "AE + k-means", "pixels + k-means"])]


def dec(): return compare(dec_runs(), (*SHOWN, "active_clusters"), ("model", "preset", "augment", "init"))


def dec_agreement():
    "The adjusted Rand index between the test clusters of every two seeds, averaged."
    folders = dec_runs().query("model != 'pixels + k-means'").groupby("model").folder
    alike = lambda f: np.mean([adjusted_rand_score(a, b) for a, b in combinations([assigned(path).cluster for path in f], 2)])
    return pd.DataFrame({"agreement between seeds": folders.apply(alike).map("{:.3f}".format), "seeds": folders.size()})


# ---- DVC

def dvc_runs():
    recorded = runs("self_training", "pretrain_epochs", "beta")
    return dashes(recorded, ["pretrain_epochs", "beta"])[recorded.scored_on == "test"]


def dvc_mnist(): return dvc_runs().query("dataset == 'mnist' and preset == 'best'")
def dvc(): return compare(dvc_mnist(), SHOWN, ("model", "pretrain_epochs", "beta"))


def dvc_neighbours():
    chosen = dvc_mnist().model.isin(["DVC", "DVC-2", "IDEC", "VAE + k-means", "AE + k-means"])
    return compare(dvc_mnist()[chosen], ("one_to_one_accuracy", "nmi", "knn_accuracy"), ("model", "beta"))


def dvc_medical(): return compare(dvc_runs().query("dataset != 'mnist'"), (*SHOWN, "majority_rate"), ("dataset", "model"))


def dvc_init():
    chosen = runs("self_training", "init").query("scored_on == 'val'")
    return compare(chosen, ("one_to_one_accuracy", "nmi"), ("dataset", "model", "init"))


# ---- VaDE and GMVAE

def vade_runs(dataset): return runs("mixtures").query("dataset == @dataset and model == 'VaDE'")
def vade_mnist(): return compare(vade_runs("mnist"), (*SHOWN, "knn_accuracy", "active_clusters"), ("model", "preset"))


def vade_seeds():
    chosen = vade_runs("mnist")[["seed", "one_to_one_accuracy", "active_clusters"]].reset_index(drop=True)
    return chosen.assign(one_to_one_accuracy=chosen.one_to_one_accuracy.map("{:.3f}".format)).set_index("seed")


def vade_pneumonia(): return compare(vade_runs("pneumoniamnist"), (*STATISTICAL, "active_clusters", "majority_rate"), ("model",))


def gmvae():
    recorded = runs("mixtures", "sigma", "latent_dim").query("dataset == 'pneumoniamnist'")
    return compare(recorded, (*STATISTICAL, "active_clusters", "majority_rate"), ("model", "sigma", "latent_dim"))


# ---- CDVaDE

SETTINGS = ["network", "latent_dim", "sigma", "pretrain_kl"]


def cdvade_runs(*datasets):
    "With the accuracies of the test clusters, one-to-one, for the digit and for the colour."
    recorded = runs("mixtures", *SETTINGS)
    chosen = recorded[recorded.dataset.isin(datasets)]
    return chosen.assign(**{c: [matched(f, c) for f in chosen.folder] for c in ("digit", "color")})


def matched(folder, column):
    rows = assigned(folder).query("split == 'test'")
    codes = rows[column].astype("category").cat.codes.to_numpy()
    return np.mean(one_to_one(rows.cluster.to_numpy(), codes) == codes)


def cdvade():
    colored = cdvade_runs("colored-mnist")
    main = colored[(colored.model != "CDVaDE") | (colored.parameters == "condition=color")]
    return compare(main, (*COLORED, "nmi"), ("model",))


def cdvade_variants(): return compare(cdvade_runs("colored-mnist").query("model == 'CDVaDE'"), COLORED, SETTINGS)


def cdvade_rule():
    "Cramér's V of the training images' clusters with the colour: what may be seen without labels."
    chosen = runs("mixtures", *SETTINGS).query("dataset == 'colored-mnist' and model == 'CDVaDE'")
    parts = [assigned(f).query("split == 'train'") for f in chosen.folder]
    rows = chosen[SETTINGS].assign(active=chosen.active_clusters, color=[cramers_v(p.cluster, p.color) for p in parts])
    return rows.groupby(SETTINGS).mean().map("{:.2f}".format)


def cdvade_others(): return compare(cdvade_runs("colored-mnist-crossed", "colored-mnist-10"), COLORED, ("dataset", "model"))


def cdvade_chest():
    "Clusters and columns of chest X-rays: Cramér's V, what chance gives, and in how many seeds p ≤ 0.05."
    rows = [dict(row, model=r.model) for r in runs("mixtures").query("dataset == 'covid_cxr_view_128'").itertuples() for row in known(r.folder)]
    groups = pd.DataFrame(rows).groupby(["images", "column", "model"])
    found = groups.agg(V=("V", "mean"), by_chance=("by_chance", "mean"), seeds_below_5_percent=("significant", "sum"))
    return found.assign(**{c: found[c].map("{:.3f}".format) for c in ("V", "by_chance")})


def known(folder):
    rows = assigned(folder)
    for images, part in (("learned from", rows[rows.split == "train"]), ("held out", rows[rows.split != "train"])):
        found = associations(part.cluster, part[["view", "label", "patient"]], patient="patient")
        for c in ("view", "label"): yield dict(images=images, column=c, V=found.cramers_v[c], by_chance=found.by_chance[c], significant=found.p[c] <= 0.05)


# ---- transfer

def transfer():
    recorded = runs("contrastive")
    scores = ("stat_accuracy", "stat_precision", "stat_balanced_accuracy", "knn_accuracy", "probe_accuracy", "nmi", "ari", "n_clusters", "majority_rate")
    return compare(recorded[recorded.model.isin(["transfer", "features + k-means"])], scores, ("dataset", "scored_on", "model", "parameters"))


TABLES = {f.__name__: f for f in (
    vaesim, vaesim_mnist, vaesim_difference, vaesim_ladder, contrastive_sweep, dec, dec_agreement, dvc, dvc_neighbours, dvc_medical, dvc_init,
    vade_mnist, vade_seeds, vade_pneumonia, gmvae, cdvade, cdvade_variants, cdvade_rule, cdvade_others, cdvade_chest, transfer)}


def text(table: pd.DataFrame) -> pd.DataFrame:
    "As it is written: everything as text, the index as columns."
    return table.reset_index().astype(str)


def main(folder=ROOT / "tables"):
    folder.mkdir(exist_ok=True)
    for name, make in TABLES.items(): text(make()).to_csv(folder / f"{name}.csv", index=False)


if __name__ == "__main__": main()
