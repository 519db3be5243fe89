"The estimator among scikit-learn's tools."

import numpy as np
import pytest
from conftest import images, tiny
from sklearn.base import clone
from sklearn.model_selection import ParameterGrid
from sklearn.pipeline import make_pipeline


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
