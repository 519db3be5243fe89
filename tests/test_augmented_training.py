"Sets of augmentations as a parameter of methods: in the pre-training, in saved models, in the cache."
import json

import numpy as np
import pytest
from conftest import images, same_weights, tiny
from sklearn.base import clone

from medstrat.methods import pretraining
from medstrat.training.saving import load_model


@pytest.mark.parametrize("method", ["DEC", "DVC", "VaDE"])
@pytest.mark.parametrize("how", ["medical", "contrastive", dict(flip=0.5, crop=0.3)], ids=str)
def test_sets_in_the_pretraining(method, how, X, tmp_path):
    more = dict(augment=how, n_init=2, epochs=1, pretrain_epochs=1)
    a = tiny(method, **more).fit(X)
    assert np.isfinite(a.history_.loss).all() and a.settings_.augment == how and same_weights(a, tiny(method, **more).fit(X))
    assert not same_weights(a, tiny(method, **(more | dict(augment="none"))).fit(X))
    a.save(tmp_path / "m")
    b = load_model(tmp_path / "m")
    assert b.settings_.augment == how and (b.predict(X) == a.labels_).all() and clone(b).get_params()["augment"] == how
    json.dumps(b.get_params()["augment"])


def test_a_kept_pretraining_belongs_to_its_set(X, tmp_path):
    for how in ("affine", "medical", dict(flip=0.5), dict(flip=0.6), dict(flip=0.5, noise=0.5), dict(noise=0.5, flip=0.5)):
        tiny("DEC", augment=how, epochs=0, pretrain_epochs=1, cache_dir=tmp_path, n_init=1, network="mlp").fit(X)
    assert len(list(tmp_path.iterdir())) in (5, 6)     # the order of operations may or may not count


@pytest.mark.parametrize("bad, says", [("medcal", "augment.*Did you mean 'medical'"), (dict(rotate=0.5), "augment=.*'rotation'"), (dict(flip=2), "augment=.*less than or equal to 1"), (["flip"], "augment=.*'medical'"), (dict(flip=float("nan")), "augment=")], ids=str)
@pytest.mark.parametrize("method", ["DEC", "VaDE", "contrastive AE"])
def test_estimators_refuse_what_does_not_exist(method, bad, says, X):
    with pytest.raises(ValueError, match=says): tiny(method, augment=bad).fit(X)


def test_validation_images_stay_as_they_are_in_the_pretraining(X, monkeypatch):
    "Their loss is the plain reconstruction's"
    seen = []
    monkeypatch.setattr(pretraining, "augmenter", lambda how: lambda x: seen.append(len(x)) or x)
    tiny("DEC", augment="affine", epochs=0, pretrain_epochs=1, n_init=1).fit(X, validation=images(13, seed=1))
    assert seen == [20, 20, 20]
