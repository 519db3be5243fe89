"A pre-training that cannot be kept."
import importlib

import pytest
from conftest import same_weights, tiny

module = importlib.import_module("medstrat.methods.pretraining")


def test_a_folder_that_cannot_be_written(X, tmp_path, monkeypatch):
    "A warning, and the training goes on as without it"
    def full(*args): raise OSError("no space left on device")
    monkeypatch.setattr(module, "write_tensors", full)
    small = lambda **more: tiny("DEC", network="mlp", n_init=2, epochs=1, **more)
    with pytest.warns(UserWarning, match="could not be kept in .*no space left.*the training goes on"): a = small(cache_dir=tmp_path).fit(X)
    assert same_weights(a, small().fit(X)) and not list(tmp_path.iterdir())
