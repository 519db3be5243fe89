"Settling: values and folders that are refused in time, seeds."
import numpy as np
import pytest
from conftest import images, same_weights, tiny

from medstrat.training.fitting import Fit
from medstrat.training.parameters import Settings
from medstrat.training.settling import settle_seed


def test_kinds_of_random_state(X):
    a = tiny(random_state=None).fit(X)
    b = tiny(random_state=None).fit(X)
    assert a.random_state_ != b.random_state_ and same_weights(tiny(random_state=a.random_state_).fit(X), a)
    c, d = (tiny(random_state=np.random.RandomState(5)).fit(X) for _ in range(2))
    assert same_weights(c, d)
    assert same_weights(tiny(random_state=np.int64(3)).fit(X), tiny(random_state=3).fit(X))


@pytest.mark.parametrize("bad", ["abc", 1.5, [1, 2]])
def test_bad_random_state(bad, X):
    with pytest.raises((ValueError, TypeError), match="random_state"): tiny(random_state=bad).fit(X)


@pytest.mark.parametrize("bad, says", [
    (dict(n_clusters=0), "n_clusters=0"), (dict(n_clusters="many"), "n_clusters='many'"), (dict(channels=[]), "channels"), (dict(channels=(4, 0)), "channels"), (dict(channels=8), "channels=8"),
    (dict(network="convolution"), "network"), (dict(image_size=1), "2"), (dict(patience=0), "patience=0"), (dict(lr=-1), "lr=-1"), (dict(lr=float("inf")), "lr=inf"), (dict(beta=float("nan")), "beta=nan"),
    (dict(num_workers=-1), "num_workers=-1"), (dict(batch_weight=1.5), "batch_weight=1.5"), (dict(tau_end=0.0), "tau_end=0.0"),
], ids=str)     # those that every method has: tests/test_contract.py
def test_values_are_checked_before_anything_is_trained(bad, says, X, monkeypatch):
    monkeypatch.setattr(Fit, "follow", lambda *a: pytest.fail("trained"))
    with pytest.raises(ValueError) as e: tiny(**bad).fit(X)
    assert says in str(e.value)


def test_folders_are_tried_before_the_training(tmp_path):
    (tmp_path / "file").write_text("")
    for name, method in (("checkpoint_dir", "VAESim"), ("cache_dir", "DEC")):
        model = tiny(method, **{name: tmp_path / "file"})
        with pytest.raises(ValueError, match=f"{name}=.*file"): model.fit(images())
        assert not hasattr(model, "history_")


def test_the_seed_of_a_fit():
    s = Settings(random_state=None, trainer_options=None)
    with pytest.raises(ValueError, match="several devices"): settle_seed(s.but(trainer_options=dict(devices=2)), None)
    assert settle_seed(s.but(trainer_options=dict(devices=2), random_state=7), None) == 7


def test_kind_none_is_looked_up():
    a = tiny("PCA + k-means", kind=None).fit(images())
    assert (a.settings_.kind, a.provenance_["kind"]) == ("film", "looked up in the images")
