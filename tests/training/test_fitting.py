"A fit: interrupted trainings that end as if they had not been, and what a checkpoint knows of its training."

import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import images, interrupt, same_weights, tiny

from medstrat.data.hashing import seal
from medstrat.training.batches import ImageBatches
from medstrat.training.checkpoints import read_checkpoint
from medstrat.training.fitting import fingerprint
from medstrat.training.inputs import CommonParameters
from medstrat.training.method import Network
from medstrat.training.parameters import Settings


def history(a): return a.history_.drop(columns="seconds")
def noise(n=30): return np.random.default_rng(1).integers(0, 256, (n, 16, 16), dtype=np.uint8)   # as validation images: learning stripes makes them worse sooner or later


RESUMED = {"VAESim, printed": dict(preset="paper", n_clusters=3, batch_size=20), "VAESim, whole set": dict(update="set", reseed_after=1, kmeans_at=0.5, lr_schedule="cosine"),
           "AE + k-means": dict(lr_schedule="cosine"), "GMVAE": dict(floor=0.5)}


@pytest.mark.parametrize("stop", [4, 6, 11])     # in the second epoch, at its last batch, in the fourth
@pytest.mark.parametrize("case", RESUMED)
def test_resumed_training_equals_the_uninterrupted_one(case, stop, X, tmp_path):
    method, more = case.partition(",")[0], dict(epochs=5, **RESUMED[case])
    validation = images(20, seed=1)
    whole = tiny(method, **more).fit(X, validation=validation)
    with pytest.warns(UserWarning, match="interrupted in phase .train., epoch [1-4]; .*resume="):
        tiny(method, **more, checkpoint_dir=tmp_path, trainer_options=dict(callbacks=[interrupt(stop)])).fit(X, validation=validation)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    a = tiny(method, **more).fit(X, validation=validation, resume=tmp_path / "last.ckpt")
    assert same_weights(a, whole) and (a.labels_ == whole.labels_).all() and a.interrupted_ is False
    pd.testing.assert_frame_equal(history(a), history(whole))


def test_resume_accepts_text_and_early_stopping(X, tmp_path):
    more = dict(lr=0.02, epochs=40, patience=3)
    whole = tiny("AE + k-means", **more).fit(X, validation=noise())
    with pytest.warns(UserWarning): tiny("AE + k-means", **more, checkpoint_dir=tmp_path, trainer_options=dict(callbacks=[interrupt(3 * len(whole.history_) - 4)])).fit(X, validation=noise())
    assert same_weights(tiny("AE + k-means", **more).fit(X, validation=noise(), resume=str(tmp_path / "last.ckpt")), whole)


def test_what_a_checkpoint_holds(X, tmp_path):
    a = tiny(checkpoint_dir=tmp_path).fit(X)
    kept = read_checkpoint(a.checkpoint_)["medstrat"]
    assert {"method", "n", "shape", "images", "condition", "labels", "seed", "settings", "found", "memory", "n_clusters", "phase", "rows", "step"} == set(kept)
    assert not {"accelerator", "verbose", "checkpoint_dir", "random_state", "encoder"} & set(json.loads(kept["settings"])) and json.loads(kept["settings"])["epochs"] == 2
    state = torch.load(a.checkpoint_, weights_only=True)
    del state["medstrat"]["found"]
    torch.save(state, a.checkpoint_); seal(a.checkpoint_)
    with pytest.raises(ValueError, match="written by an earlier version of medstrat"): tiny().fit(X, resume=a.checkpoint_)


def test_the_images_of_a_training_are_known(X):
    "By 64 of them, and by how many they are"
    class Simple(CommonParameters): name = "simple"
    net, s = Network(Settings(), (16, 16, 1), 2), Settings(random_state=0, lr=1.0)
    prints = [fingerprint(Simple(), net, s, ImageBatches(x, labels=y)) for x, y in ((X, None), (X[:59], None), (255 - X, None), (X, np.arange(60)))]
    assert len({json.dumps(p) for p in prints}) == 4 and prints[0]["labels"] is None
