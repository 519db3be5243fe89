"A whole run of the contrastive autoencoder: what is recorded of it, and what is refused before anything is written."
import json

import pandas as pd
import pytest

from medstrat.runs.records import finish, start_run
from medstrat.runs.tables import read_runs
from medstrat.training.saving import load_model


@pytest.mark.parametrize("more", [dict(network="mlp", hidden=(32,), augment=dict(affine=1.0, noise=0.5)), dict(channels=(4, 8), preset="paper", n_clusters="elbow", augment="medical")], ids=["mlp", "paper"])
def test_a_run_on_digits(more, tmp_path):
    words = dict(dict(image_size=16, epochs=1, decoder_epochs=1, latent_dim=8, projection_dim=8, n_clusters=5, n_init=1, verbose=False), **more)
    run = start_run("contrastive autoencoder", "digits", seed=0, out=tmp_path, **words)
    folder = finish(run)
    record = json.loads((folder / "run.json").read_text())
    assert record["model"] == "contrastive AE" and folder.name.startswith("contrastiveae-digits") and record["settings"]["augment"] == words["augment"] and not record["interrupted"] and record["epochs"] == 2
    assert 0 < record["metrics"]["stat_accuracy"] <= 1 and len(read_runs(tmp_path)) == 1
    b = load_model(folder / "model.safetensors")
    assert (b.predict(run.splits.test) == run.encoded["test"].clusters).all() and list(pd.read_csv(folder / "history.csv").phase) == ["contrast", "decode"]


def test_refusals_come_before_the_data(tmp_path):
    for bad, says in [(dict(batch_size=1), "batch_size=1"), (dict(augment="none"), "changes nothing"), (dict(crop=0), "crop=0"), (dict(tau=0), "tau=0")]:
        with pytest.raises(ValueError, match=says): start_run("contrastive", "digits", out=tmp_path, **bad)
    assert not list(tmp_path.iterdir())
