"""The protocol: what it refuses, what it must not see, and that its numbers can be found in another way."""
import json
import os

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from test_metrics import make

from medstrat.evaluation.metrics import Encoded, join
from medstrat.evaluation.protocol import ROWS, Evaluation, evaluate


def splits(): return {"train": make(300), "val": make(60, seed=1), "test": make(90, seed=2)}


@pytest.mark.parametrize("change, arguments, words", [
    (lambda s: s.pop("train"), {}, "lacks ['train']"),
    (lambda s: s.pop("val"), {"on": "val+test"}, "lacks ['val']"),
    (lambda s: s.update(tets=s["test"]), {}, "tets"),
    (lambda s: s.update(test=s["train"]), {}, "share their embedding"),
    (lambda s: s.update(test=make(9, d=4)), {}, "4 dimensions, train 6"),
    (lambda s: None, {"on": "train"}, "never on train"),
    (lambda s: None, {"n_clusters": 3}, "n_clusters=3"),
    (lambda s: None, {"k": 0}, "k=0"),
    (lambda s: None, {"probe_fraction": 20}, "0.2"),
    (lambda s: None, {"n_boot": 0}, "n_boot=0"),
])
def test_evaluate_refuses(change, arguments, words):
    s = splits()
    change(s)
    with pytest.raises(ValueError) as e: evaluate(s, **({"n_clusters": 5} | arguments))
    assert words in str(e.value)


def test_evaluation_is_complete_reproducible_and_json():
    result = evaluate(splits(), n_clusters=5)
    m = result.metrics
    assert json.loads(json.dumps(m)) == m == evaluate(splits(), n_clusters=5).metrics
    for row in ("stat", "knn", "probe", "paper_probe", "one_to_one"):
        assert {f"{row}_{s}" for s in ("accuracy", "accuracy_low", "accuracy_high", "balanced_accuracy", "precision", "recall")} <= set(m)
        assert m[f"{row}_accuracy"] == np.mean(result.predictions[row] == splits()["test"].labels)
    assert {"nmi", "ari", "majority_rate", "n_clusters", "active_clusters", "n_scored", "n_train", "scored_on", "k_neighbors", "probe_fraction"} <= set(m)
    assert (m["n_scored"], m["n_train"], m["scored_on"], m["k_neighbors"]) == (90, 300, "test", 5)
    assert result.table().shape == (5, 5) and "scored on test (90 images)" in repr(result)


def test_numbers_found_in_another_way():
    s = splits()
    m, knn = evaluate(s, n_clusters=5).metrics, KNeighborsClassifier(5, algorithm="brute").fit(s["train"].embedding, s["train"].labels)
    assert m["knn_balanced_accuracy"] == pytest.approx(balanced_accuracy_score(s["test"].labels, knn.predict(s["test"].embedding)))
    assert all(m[f"{r}_accuracy_low"] <= m[f"{r}_accuracy"] <= m[f"{r}_accuracy_high"] for r in ROWS)


def test_what_a_reader_sees():
    scores = {f"{r}_{s}": .5 for r in ROWS for s in ("accuracy", "accuracy_low", "accuracy_high", "balanced_accuracy", "precision", "recall")}
    sizes = dict(majority_rate=.7, scored_on="val", n_scored=3, n_train=4, n_clusters=2, active_clusters=1, nmi=.1, ari=.2, k_neighbors=5, probe_fraction=.2)
    made = Evaluation(scores | sizes, {}, np.zeros(2))
    assert made.table().shape == (5, 5) and made.table().iloc[0, 0] == "0.500 [0.500, 0.500]"
    assert "scored on val (3 images)" in repr(made) and "<table" in made._repr_html_()


def test_scoring_data_never_reaches_a_fit():
    s = splits()
    base = evaluate(s, n_clusters=5).predictions
    t = s["test"]
    other = evaluate({**s, "val": make(7, seed=9), "test": Encoded(t.embedding, t.clusters, (t.labels + 1) % 3)}, n_clusters=5).predictions
    for row in ("stat", "knn", "probe", "paper_probe"): np.testing.assert_array_equal(base[row], other[row])
    half = evaluate({**s, "test": Encoded(t.embedding[:40], t.clusters[:40], t.labels[:40])}, n_clusters=5).predictions
    for row in ("stat", "knn", "probe", "paper_probe"): np.testing.assert_array_equal(base[row][:40], half[row])


def test_val_and_test_together():
    s = splits()
    m = evaluate(s, n_clusters=5, on="val+test").metrics
    assert m["scored_on"] == "val+test" and m["n_scored"] == 150
    assert m == evaluate({"train": s["train"], "test": join(s["val"], s["test"])}, n_clusters=5).metrics | {"scored_on": "val+test"}


def test_unseen_and_missing_classes():
    s = splits()
    s["train"] = Encoded(*(getattr(s["train"], f)[s["train"].labels < 2] for f in ("embedding", "clusters", "labels")))
    m = evaluate(s, n_clusters=5).metrics
    assert all(m[f"{r}_accuracy"] <= 2 / 3 for r in ("stat", "knn", "probe", "paper_probe"))
    only = s["test"].labels == 0
    s["test"] = Encoded(s["test"].embedding[only], s["test"].clusters[only], s["test"].labels[only])
    m = evaluate(s, n_clusters=5).metrics
    assert m["majority_rate"] == 1 and m["knn_balanced_accuracy"] == m["knn_accuracy"]


def test_one_class_one_image_constant_embedding():
    train = Encoded(np.ones((8, 3)), [0] * 8, [4] * 8)
    m = evaluate({"train": train, "test": Encoded(np.ones((1, 3)), [0], [4])}, n_clusters=1).metrics
    assert all(m[f"{r}_accuracy"] == 1 for r in ("stat", "knn", "probe", "paper_probe", "one_to_one"))


def test_codes_need_not_be_dense():
    s = {k: Encoded(e.embedding, e.clusters, e.labels * 100 + 7) for k, e in splits().items()}
    np.testing.assert_allclose([v for v in evaluate(s, n_clusters=5).metrics.values() if isinstance(v, float)],
                               [v for v in evaluate(splits(), n_clusters=5).metrics.values() if isinstance(v, float)])


# --- a set that is not embedded ----------------------------------------------------------------

def test_majority_rates_of_pneumoniamnist():
    path = os.path.join(os.environ.get("MEDSTRAT_DATA", ""), "pneumoniamnist.npz")
    if not os.path.isfile(path): pytest.skip("pneumoniamnist.npz is not in the folder named by MEDSTRAT_DATA")
    with np.load(path) as f:
        encoded = {s: Encoded(f[f"{s}_images"].reshape(len(f[f"{s}_images"]), -1)[:, ::40], np.zeros(len(f[f"{s}_labels"]), int), f[f"{s}_labels"].ravel()) for s in ("train", "val", "test")}
    assert evaluate(encoded, n_clusters=1).metrics["majority_rate"] == 390 / 624
    both = evaluate(encoded, n_clusters=1, on="val+test").metrics
    assert both["majority_rate"] == both["stat_accuracy"] == 779 / 1148
