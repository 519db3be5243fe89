"Whole runs of the methods on a pre-trained backbone: one pass over the images, what is recorded, and what fails before data are loaded."
import json

import numpy as np
import pytest
from conftest import BACKBONE, images

from medstrat.runs.records import finish, start_run
from medstrat.runs.tables import read_runs
from medstrat.training.saving import load_model

TINY, SIDE = BACKBONE, 32

pytestmark = [pytest.mark.usefixtures("empty_memory"), pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")]


@pytest.fixture
def no_hub(monkeypatch):
    import huggingface_hub as hub
    import huggingface_hub.constants  # imported lazily there
    monkeypatch.setattr(hub.constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *a, **k: None)
    monkeypatch.setattr(hub, "hf_hub_download", lambda *a, **k: pytest.fail("the download was tried although the hub did not answer"))


@pytest.mark.parametrize("model", ["transfer", "features + k-means"])
def test_a_run(model, file, tmp_path, spy):
    X, y = images(100), np.arange(100) % 2
    parts = dict(train=slice(0, 60), val=slice(60, 80), test=slice(80, 100))
    np.savez(tmp_path / "stripes.npz", **{f"{k}_images": X[s, ..., 0] for k, s in parts.items()}, **{f"{k}_labels": y[s, None] for k, s in parts.items()})
    small = dict(backbone=TINY, weights=str(file), input_size=SIDE, verbose=False, accelerator="cpu", precision="32-true")
    small |= dict(n_clusters=4) if model != "transfer" else dict(epochs=30, lr=1e-2)
    run = start_run(model, str(tmp_path / "stripes.npz"), out=tmp_path / "runs", **small)
    folder = finish(run)
    assert sum(spy) == 100                                      # every image once
    row, = read_runs(tmp_path / "runs", settings=("backbone",)).to_dict("records")
    assert row["backbone"] == TINY and row["stat_accuracy"] > 0.6 and json.loads((folder / "run.json").read_text())["settings"]["input_size"] == SIDE
    if model == "transfer":
        assert row["n_clusters"] == 2
        assert row["stat_accuracy"] == run.model.score(X[80:], y[80:])       # its clusters are the classes
        np.testing.assert_allclose(run.centres, [run.encoded["train"].embedding[y[:60] == k].mean(0) for k in (0, 1)], atol=1e-5)
    else: assert (run.centres == run.model.cluster_centers_).all()
    assert (load_model(folder / "model.safetensors").predict(X[80:]) == run.encoded["test"].clusters).all()


def test_a_run_fails_before_anything_is_loaded(monkeypatch, tmp_path, no_hub):
    monkeypatch.setattr("medstrat.runs.records.load_dataset", lambda *a, **k: pytest.fail("data were loaded"))
    with pytest.raises(FileNotFoundError, match="could not be had"): start_run("transfer", "digits", backbone="resnet18", out=tmp_path)
    with pytest.raises(ValueError, match="unknown parameter of transfer 'n_clusters'"): start_run("transfer", "digits", n_clusters=2, out=tmp_path)
    with pytest.raises(ValueError, match="unknown backbone 'resnet81'"): start_run("transfer", "digits", backbone="resnet81", out=tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file"): start_run("features + k-means", "digits", weights="nowhere.pth", out=tmp_path)
