"The experiment notebook under papermill: it makes a run, reads like a report, and refuses what it does not know."
import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import ENV, SMALL_RUN, images

NOTEBOOK = Path(__file__).parents[1] / "nbs" / "07_experiments.ipynb"
FILES = {"run.json", "model.safetensors", "history.csv", "assignments.csv", "label_efficiency.csv"}


def _papermill(where, **parameters):
    import papermill
    report = where / "report.ipynb"
    papermill.execute_notebook(str(NOTEBOOK), str(report), parameters=parameters, kernel_name="python3", progress_bar=False, cwd=str(where))
    return json.loads(report.read_text())


@pytest.fixture(scope="module")
def papermilled(stripes, tmp_path_factory):
    out = tmp_path_factory.mktemp("papermill")
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = ENV["PYTHONPATH"]
    try: yield out, _papermill(out, model="VAE-Sim", dataset=stripes, seed=3, preset="paper", out="here", **SMALL_RUN)
    finally: os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


def test_the_notebook_makes_a_run(papermilled):
    out, _ = papermilled
    folder, = (out / "here").iterdir()
    assert FILES <= {p.name for p in folder.iterdir()}
    assert len(list(folder.glob("*.png"))) >= 4
    r = json.loads((folder / "run.json").read_text())
    assert (r["model"], r["seed"], r["preset"]) == ("VAESim", 3, "paper") and r["settings"]["channels"] == [4, 8]
    assert r["provenance"]["similarity"].startswith("paper")


def test_the_notebook_reads_like_a_report(papermilled):
    _, nb = papermilled
    outputs = [o for c in nb["cells"] if c["cell_type"] == "code" for o in c["outputs"]]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    tables = [o for o in outputs if "text/html" in o.get("data", {})]
    errors = [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert len(pictures) >= 4 and len(tables) >= 3 and not errors, [o.get("text") for o in errors]
    text = "".join("".join(o.get("text", "")) + "".join(o.get("data", {}).get("text/plain", "")) for o in outputs)
    assert "VAESim on stripes, seed 3" in text and "NMI" in text and "missing" not in text


def test_the_notebook_without_labels_in_colour_without_decoder(tmp_path, papermilled):
    path = tmp_path / "rgb.npz"
    np.savez(path, train_images=images(40, channels=3), test_images=images(30, seed=1, channels=3))
    nb = _papermill(tmp_path, model="kmeans", dataset=str(path), out="here", n_clusters=2)
    folder, = (tmp_path / "here").iterdir()
    assert json.loads((folder / "run.json").read_text())["missing"] == {} and (folder / "latent_space.png").exists() and not (folder / "composition.png").exists()
    assert "no scores: no image of train and test has a label" in json.dumps(nb)


def test_the_notebook_refuses_what_it_does_not_know(stripes, tmp_path, papermilled):
    from papermill.exceptions import PapermillExecutionError
    with pytest.raises(PapermillExecutionError) as e: _papermill(tmp_path, dataset=stripes, out="here", **SMALL_RUN, latent_dimm=4)
    assert e.value.ename == "ValueError" and "Did you mean 'latent_dim'" in e.value.evalue
    assert not (tmp_path / "here").exists()
