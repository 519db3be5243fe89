"""What is known of the yardstick's sets beside the runs: their kinds, what features can carry with labels, what there is to begin from.

    python studies/yardstick/facts.py kinds  studies/yardstick/kinds.csv
    python studies/yardstick/facts.py probes studies/yardstick/probes.csv
    python studies/yardstick/facts.py beginnings studies/yardstick/beginnings.csv [--sets mnist-7000-16] [--seeds 0 1 2] [--cache FOLDER]

`beginnings` pre-trains an autoencoder as DEC does, fits mixtures to its embeddings from several starts, and says of each how well its clusters agree with the
labels of the training images (one-to-one accuracy), beside what is known without labels: likelihood and information.
"""
import argparse
import warnings

import numpy as np
from yardstick import add, images, scores

def kinds(a):
    from medstrat.parts.kinds import kind_of, two_tone
    names = [f"mnist-500-{side}" for side in (28, 16)] + ["digits", "pneumoniamnist", "brain_mri_4class_128", "kermany_cxr_64", "breast_ultrasound_128", "chest_ct_4class_128",
                                                         "fundus_glaucoma_128", "lung_histology_128", "covid_cxr_view_128", "brain_mri_yesno_128"]
    for name in names:
        x = images(name)[0]
        x = x if x.ndim == 4 else x[..., None]
        add(a.out, dict(set=name, images=len(x), side=x.shape[1], channels=x.shape[3], two_tone=round(float(two_tone(x)), 3), kind=kind_of(x)))

def probes(a):
    from sklearn.cluster import KMeans
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score as balanced
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler
    from medstrat.data.sources import load_dataset
    from medstrat.methods.baselines import FeatureKMeans
    for name in ("kermany_cxr_64", "brain_mri_4class_128"):
        s = load_dataset(name)
        for size in (112, 224):
            features = FeatureKMeans(n_clusters=2, input_size=size, random_state=0, verbose=False, cache_dir=a.cache).fit(s.train.images)
            A, V, B = (features.transform(p.images) for p in (s.train, s.val, s.test))
            scale = StandardScaler().fit(A)
            A, V, B = (scale.transform(f) for f in (A, V, B))
            y, v, t = s.train.labels, s.val.labels, s.test.labels
            k = len(np.unique(y))
            fitted = [LogisticRegression(C=c, max_iter=1000, class_weight="balanced").fit(A, y) for c in (1e-4, 1e-3, 1e-2)]
            best = max(fitted, key=lambda m: balanced(v, m.predict(V)))
            near = KNeighborsClassifier(15).fit(A, y)
            clusters = KMeans(k, n_init=20, random_state=0).fit(A).predict(B)
            add(a.out, dict(set=name, input_size=size, kmeans=round(scores(t, clusters, k)["balanced"], 3), knn=round(balanced(t, near.predict(B)), 3),
                            probe=round(balanced(t, best.predict(B)), 3)))

def uneven(y):  # rows
    "Classes in an order of chance, the first with ten times as many images as the last."
    rng = np.random.default_rng(0)
    names = rng.permutation(np.unique(y))
    most = np.bincount(y).min()
    return np.concatenate([rng.permutation(np.flatnonzero(y == c))[:int(most * 10 ** (-i / (len(names) - 1)))] for i, c in enumerate(names)])

def beginnings(a):
    from medstrat.methods.dec import DEC
    from medstrat.methods.self_training import PARTS, information, merge
    from medstrat.parts.mixture import SEEN, fit_mixture
    from medstrat.data.images import evenly
    for name in a.sets:
        x, y = images(name, "train")
        k = len(np.unique(y))
        for seed in a.seeds:
            net = DEC(n_clusters=k, random_state=seed, n_starts=1, epochs=0, init="k-means", verbose=False, cache_dir=a.cache).fit(x)
            Z, labels = net.transform(x).astype(np.float64), y
            if a.uneven: Z, labels = Z[rows := uneven(y)], y[rows]
            Z = (Z - Z.mean(0)) / Z.std()
            some = Z[evenly(len(Z), SEEN)]
            for how, parts in PARTS.items():
                for start in range(a.starts):
                    found = fit_mixture(some, parts * k, "full", 1, start)
                    r = merge(found.predict_proba(Z), k)
                    add(a.out, dict(set=name + ", uneven" * a.uneven, n=len(Z), k=k, seed=seed, init=how, start=start, accuracy=round(scores(labels, r.argmax(1), k)["accuracy"], 4),
                                    likelihood=round(found.lower_bound_, 4), information=round(information(r), 4)))
            print(name, seed, flush=True)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["kinds", "probes", "beginnings"]); p.add_argument("out")
    p.add_argument("--sets", nargs="+", default=["mnist-7000-16"]); p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    p.add_argument("--uneven", action="store_true", help="beginnings: of classes of very different size")
    p.add_argument("--starts", type=int, default=16); p.add_argument("--cache", help="a folder for features and pre-trainings")
    a = p.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dict(kinds=kinds, probes=probes, beginnings=beginnings)[a.what](a)

if __name__ == "__main__": main()
