"""The yardstick of the preset `best`: methods × sets × seeds, one row a run in a CSV file.

    python studies/yardstick/yardstick.py studies/yardstick/runs.csv [--sets digits mnist-2000-16] [--models vade idec] [--seeds 0 1 2] [--clusters 20] [--version after] [--cache FOLDER]

Development sets are what the rules of `best` were chosen on; confirmation sets were only ever scored once the rules were fixed. All of them bear
names that no preset knows. What is in the file already is not run again; several processes may write to one file.
"""
import argparse, fcntl, json, os, time, warnings
from pathlib import Path

import numpy as np
import pandas as pd

DEVELOPMENT = ["digits", "mnist-500-28", "mnist-2000-16", "mnist-2000-28", "mnist-2000-64", "mnist-7000-16", "mnist-7000-28", "mnist-60000-28",
               "pneumoniamnist", "brain_mri_4class_128", "kermany_cxr_64", "kermany_pneumonia_64"]
CONFIRMATION = ["fundus_glaucoma_128", "lung_histology_128", "covid_cxr_view_128", "brain_mri_yesno_128"]
MODELS = ["pixels + k-means", "PCA + k-means", "AE + k-means", "VAE + k-means", "features + k-means", "VAESim", "contrastive AE", "DEC", "IDEC",
          "DVC", "DVC-2", "VaDE", "GMVAE"]

def images(name, split="test"):  # (training images, test images, test labels), or "train": (training images, their labels)
    "A set under a name that no preset knows."
    from medstrat.data.arrays import resize
    from medstrat.data.sources import load_dataset
    base, n, side = name, None, None
    if name.startswith("mnist-"): base, n, side = "mnist", *map(int, name.split("-")[1:])
    if name == "kermany_pneumonia_64": base = "kermany_cxr_64"
    s = load_dataset(base)
    (x, y), (xt, yt) = ((p.images, p.labels) for p in (s.train, s.test))
    if n is not None:
        rows = np.sort(np.random.default_rng(0).permutation(len(x))[:n])
        x, y = x[rows], y[rows]
        if side != x.shape[1]: x, xt = resize(x, side), resize(xt, side)
    if name == "kermany_pneumonia_64": x, y, xt, yt = x[y > 0], y[y > 0], xt[yt > 0], yt[yt > 0]
    return (x, y) if split == "train" else (x, xt, yt)

def scores(labels, clusters, k):
    "One-to-one accuracy, its balanced form, NMI, ARI; how many clusters the test images use."
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    codes = np.unique(labels, return_inverse=True)[1]
    table = np.zeros((k, codes.max() + 1), int)
    np.add.at(table, (clusters, codes), 1)
    best = linear_sum_assignment(-table)
    # the mean of the classes' recalls, each cluster and class matched to gain most of it
    share = table / table.sum(0)
    many = table.argmax(1)[clusters]
    recalls = [(many[codes == c] == c).mean() for c in range(codes.max() + 1)]
    return dict(accuracy=table[best].sum() / len(codes), balanced=share[linear_sum_assignment(-share)].sum() / share.shape[1],
                nmi=normalized_mutual_info_score(codes, clusters), ari=adjusted_rand_score(codes, clusters),
                many_to_one=(many == codes).mean(), many_balanced=np.mean(recalls),
                majority=np.bincount(codes).max() / len(codes), used=len(np.unique(clusters)))

def run(model, name, seed, k, version, parameters, cache=None):
    from medstrat.training.registry import get_method
    cls = get_method(model)
    kept = dict(cache_dir=cache) if cache and "cache_dir" in cls.__dataclass_fields__ else {}
    x, xt, yt = images(name)
    k = k or len(np.unique(yt))
    t = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = cls(n_clusters=k, random_state=seed, verbose=False, **kept, **parameters).fit(x)
    seconds = time.perf_counter() - t
    role = "confirmation" if name in CONFIRMATION else "development"
    row = dict(version=version, role=role, set=name, model=fitted.name, k=k, seed=seed, n=len(x), **scores(yt, fitted.predict(xt), k), seconds=round(seconds, 1),
               threads=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())), epochs=fitted.n_iter_,
               starts=getattr(fitted.settings_, "n_starts", 1), parameters=json.dumps(parameters),
               signs=" | ".join(getattr(s, "name", str(s)) for s in getattr(fitted, "signs_", []) or []))
    return row | {k: round(float(v), 4) for k, v in row.items() if isinstance(v, float)}

def known(path, key):
    if not Path(path).exists(): return False
    t = pd.read_csv(path, keep_default_na=False, dtype=str)
    return bool(np.all([t[c] == str(v) for c, v in key.items()], axis=0).any()) if len(t) else False

def add(path, row):
    with open(path, "a") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        f.seek(0, 2)
        pd.DataFrame([row]).to_csv(f, index=False, header=f.tell() == 0)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out"); p.add_argument("--sets", nargs="+", default=DEVELOPMENT); p.add_argument("--models", nargs="+", default=MODELS)
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2]); p.add_argument("--clusters", type=int, default=None)
    p.add_argument("--version", default="after"); p.add_argument("--parameters", default="{}")
    p.add_argument("--cache", help="a folder for features and pre-trainings")
    a = p.parse_args()
    for seed in a.seeds:
        for name in a.sets:
            for model in a.models:
                parameters = json.loads(a.parameters)
                from medstrat.training.registry import get_method
                key = dict(version=a.version, set=name, model=get_method(model).name, seed=seed, parameters=json.dumps(parameters))
                if a.clusters: key["k"] = a.clusters
                else: key["k"] = len(np.unique(images(name)[2]))
                if known(a.out, key): continue
                try: row = run(model, name, seed, a.clusters, a.version, parameters, a.cache)
                except Exception as e:
                    print(model, name, seed, f"{type(e).__name__}: {e}", flush=True); continue
                add(a.out, row)
                print({k: row[k] for k in ("version", "set", "model", "k", "seed", "accuracy", "balanced", "nmi", "used", "seconds")}, flush=True)

if __name__ == "__main__": main()
