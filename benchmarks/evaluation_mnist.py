"""Seconds that each part of the evaluation takes at MNIST's size: 60,000 training and 10,000 test images, d = 32, K = 10.

    MEDSTRAT_DATA=FOLDER python benchmarks/evaluation_mnist.py

The embedding is PCA-32 of the images in FOLDER/mnist.npz, clustered by k-means; without that file, random blobs of the same shape.
Target: kNN, converged probe, ACC, NMI and ARI together within 60 s on two cores (the paper's probe comes on top).
"""
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from medstrat.evaluation.metrics import (
    Encoded,
    bootstrap_interval,
    knn_predict,
    paper_probe_predict,
    probe_predict,
)
from medstrat.parts.matching import StatisticalMapping, one_to_one
from medstrat.evaluation.protocol import evaluate


def embeddings():
    "Name of the data; train and test embedding and labels."
    file = Path(os.environ.get("MEDSTRAT_DATA", "")) / "mnist.npz"
    if file.is_file():
        with np.load(file) as f: images = {s: f[f"{s}_images"].reshape(-1, 784).astype(np.float32) / 255 for s in ("train", "test")}; labels = {s: f[f"{s}_labels"].ravel() for s in images}
        pca = PCA(32, random_state=0).fit(images["train"])
        return "MNIST, PCA-32", {s: pca.transform(x) for s, x in images.items()}, labels
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, 32))
    labels = {"train": rng.integers(10, size=60_000), "test": rng.integers(10, size=10_000)}
    return "synthetic", {s: (centres[y] + rng.normal(size=(len(y), 32))).astype(np.float32) for s, y in labels.items()}, labels


def main():
    name, z, labels = embeddings()
    kmeans = KMeans(10, n_init=1, random_state=0).fit(z["train"])
    train, test = (Encoded(z[s], kmeans.predict(z[s]), labels[s]) for s in ("train", "test"))
    parts = {
        "statistical mapping": lambda: StatisticalMapping().fit(train.clusters, train.labels, 10).predict(test.clusters),
        "kNN, k = 5": lambda: knn_predict(train, test.embedding),
        "probe, converged": lambda: probe_predict(train, test.embedding),
        "one-to-one ACC": lambda: one_to_one(test.clusters, test.labels),
        "NMI and ARI": lambda: (normalized_mutual_info_score(test.labels, test.clusters), adjusted_rand_score(test.labels, test.clusters)),
        "bootstrap interval": lambda: bootstrap_interval(test.labels == test.clusters),
        "paper's probe, 20 % of train": lambda: paper_probe_predict(train, test.embedding),
        "evaluate(), all of them": lambda: evaluate({"train": train, "test": test}, n_clusters=10),
    }
    seconds = {}
    for part, run in parts.items():
        start = time.perf_counter()
        result = run()
        seconds[part] = time.perf_counter() - start
    required = sum(s for part, s in seconds.items() if not part.startswith(("paper", "evaluate")))
    seconds["kNN + probe + ACC + NMI + ARI (target: 60 s)"] = required
    print(f"{name}: {len(train):,} / {len(test):,}, d = {train.embedding.shape[1]}, {os.cpu_count()} cores")
    print(pd.Series(seconds, name="seconds").round(2).to_string())
    print(result)


if __name__ == "__main__": main()
