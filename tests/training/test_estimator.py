"The estimator among scikit-learn's tools."

import numpy as np
import pytest
from conftest import cohort, images, tiny
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import ParameterGrid
from sklearn.pipeline import make_pipeline

from medstrat.training.estimator import DeepClusterer, can, check_cluster
from medstrat.training.method import Network
from medstrat.training.parameters import Settings


def test_pipeline(X):
    from sklearn.cluster import KMeans
    from sklearn.preprocessing import FunctionTransformer, StandardScaler
    first = make_pipeline(FunctionTransformer(lambda x: 255 - x), tiny("AE + k-means"))
    assert (first.fit_predict(X) == tiny("AE + k-means").fit_predict(255 - X)).all()
    last = make_pipeline(tiny("VAE + k-means"), StandardScaler(), KMeans(2, n_init=2, random_state=0)).fit(X)
    assert set(last.predict(X)) == {0, 1}


def test_grid_of_parameters(X):
    "What GridSearchCV does: clone, set, fit, score – with numpy's numbers"
    base, scores = tiny("VAE + k-means", epochs=1), []
    for point in ParameterGrid(dict(n_clusters=np.arange(2, 4), lr=np.array([1e-3, 1e-2]))):
        a = clone(base).set_params(**point).fit(X)
        assert a.n_clusters_ == point["n_clusters"]
        scores.append(a.history_.reconstruction.iloc[-1])
    assert len(set(scores)) >= 2


def test_no_elbow_does_not_lose_the_training(monkeypatch):
    from medstrat.methods import baselines
    def none(*args, **more): raise ValueError("no elbow.")
    monkeypatch.setattr(baselines, "choose_n_clusters", none)
    with pytest.warns(UserWarning, match="no elbow.*n_clusters="): model = tiny("AE + k-means", n_clusters="elbow").fit(images())
    assert model.n_clusters_ == 10 == len(model.cluster_centers_) and "no elbow" in model.provenance_["n_clusters"] and len(model.history_) == 2
    with pytest.raises(ValueError, match="no elbow"): tiny("pixels + k-means", n_clusters="elbow").fit(images())


# ---- verbs that a method has, and those that it has not

def test_what_can_be_asked_of_whom(X, fitted):
    a = fitted["VAE + k-means"]
    assert a.has_decoder and tiny("VAE + k-means").has_decoder
    for ask in (a.sample, a.prototypes, lambda **more: a.reconstruct(X, **more), lambda **more: a.inverse_transform(a.transform(X), **more)):
        with pytest.raises(ValueError, match="this VAE . k-means learned without a condition. Leave out condition=…"): ask(condition=dict(tone="dark"))
    for Z in (np.zeros((2, 3)), np.zeros(4), np.zeros((0, 4))):
        with pytest.raises(ValueError, match=r"embeddings of shape \(N, 4\) are needed, as `transform` gives them; got"): a.inverse_transform(Z)
    with pytest.raises(ValueError, match="n=0 images cannot be drawn"): a.sample(0)


@pytest.mark.parametrize("k", [-1, 3, True, np.True_, 1.0, "1"])
def test_what_is_no_cluster(k):
    with pytest.raises(ValueError, match="does not exist; there are clusters 0…2"): check_cluster(k, 3)
    check_cluster(np.int64(2), 3)


def test_a_method_without_words():
    class Silent(DeepClusterer): name, method = "silent", Network
    silent = Silent()
    with pytest.raises(NotFittedError): can(silent, "draw", "draw images")
    silent.module_ = Network(Settings(), (8, 8, 1), 2)
    assert not silent.has_decoder
    with pytest.raises(AttributeError, match="silent cannot draw images: its embeddings have no distribution"): silent.sample()
    for ask in (silent.prototypes, lambda: silent.reconstruct(images(2))):
        with pytest.raises((AttributeError, ValueError), match="silent cannot generate images|bank"): ask()


def test_a_condition_is_that_of_the_images(X):
    a = tiny("CDVaDE", condition="tone").fit(cohort())
    assert a.covariates_.names == ["tone"] and a.settings_.condition == ("tone",)
    own, bright = a.reconstruct(cohort()), a.reconstruct(cohort(), condition=dict(tone="bright"))
    rows = cohort().table["tone"].to_numpy() == "bright"
    assert np.array_equal(own[rows], bright[rows]) and not np.array_equal(own[~rows], bright[~rows])
    with pytest.raises(ValueError, match="no column 'tune'"): a.sample(condition=dict(tune="dark"))
