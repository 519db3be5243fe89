"Runs: what a folder holds, and that nothing half done is ever taken for a run."
import json
import os
import signal
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import SMALL_RUN, apart, cohort_file, images, interrupt, quick_run

from medstrat.methods.vaesim import VAESim
from medstrat.runs import records
from medstrat.runs.records import commit_of, finish, start_run
from medstrat.runs.requests import claim_folder, partial
from medstrat.runs.tables import compare, read_runs
from medstrat.training.saving import load_model

FILES = {"run.json", "model.safetensors", "history.csv", "assignments.csv", "label_efficiency.csv"}


def metrics(folder): return json.loads((folder / "run.json").read_text())["metrics"]


@pytest.mark.parametrize("request_, says", [
    (dict(model="vaesin"), "unknown model 'vaesin'.*Did you mean 'VAESim'"),
    (dict(preset="bset"), "unknown preset 'bset'.*Did you mean 'best'"),
    (dict(parameters=dict(latent_dimm=4)), "unknown parameter of VAESim 'latent_dimm'.*Did you mean 'latent_dim'"),
    (dict(parameters=dict(latent_dim="four")), "latent_dim='four'"),
    (dict(parameters=dict(lr=-1)), "lr=-1"),
    (dict(parameters=dict(similarity="cosin")), "Did you mean 'cosine'"),
    (dict(parameters=dict(random_state=3)), "unknown parameter.*random_state"),
    (dict(model="kmeans", parameters=dict(latent_dim=3)), "unknown parameter of pixels"),
    (dict(seed="three"), "seed='three'"), (dict(seed=1.5), "seed=1.5"), (dict(seed=True), "seed=True"), (dict(seed=-1), "seed=-1"),
    (dict(on="tset"), "tset.*test"), (dict(on=""), "test"),
    (dict(dataset="digitz"), "digitz.*digits"),
], ids=str)
def test_everything_is_checked_before_anything_is_trained(request_, says, tmp_path, monkeypatch):
    monkeypatch.setattr(VAESim, "fit", lambda *a, **k: pytest.fail("trained"))
    words = dict(dict(dataset="digits", out=tmp_path / "runs"), **{k: v for k, v in request_.items() if k != "parameters"}, **request_.get("parameters", {}))
    with pytest.raises(ValueError, match=says): start_run(**words)
    assert not (tmp_path / "runs").exists()


def test_a_split_that_the_set_lacks_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(VAESim, "fit", lambda *a, **k: pytest.fail("trained"))
    path = tmp_path / "two.npz"
    np.savez(path, **{f"{s}_{k}": v for s in ("train", "test") for k, v in dict(images=images(30)[..., 0], labels=np.arange(30) % 2).items()})
    with pytest.raises(ValueError, match="val"): start_run(dataset=str(path), on="val", out=tmp_path / "runs", **SMALL_RUN)


def test_what_a_run_leaves(done):
    assert sorted(p.name for p in done.iterdir()) == sorted(p.name for p in done.iterdir() if not p.name.startswith("."))
    folder, = done.glob("vaesim-*-seed1-*")
    assert {p.name for p in folder.iterdir()} == FILES
    r = json.loads((folder / "run.json").read_text())
    assert (r["model"], r["dataset"], r["preset"], r["seed"], r["epochs"], r["interrupted"]) == ("VAESim", "stripes", "best", 1, 1, False)
    assert r["images"] == dict(train=60, val=20, test=30) and r["settings"]["latent_dim"] == 4 and r["provenance"]["latent_dim"] == "given"
    assert set(r["settings"]) == set(r["provenance"]) and r["versions"]["torch"] and set(r["seconds"]) == {"load", "fit", "embed", "evaluate", "label_efficiency", "epochs"}
    rows = pd.read_csv(folder / "assignments.csv")
    assert rows.groupby("split").size().to_dict() == r["images"]
    model = load_model(folder / "model.safetensors")
    assert (model.predict(images(30, seed=2)) == rows[rows.split == "test"].cluster).all()
    assert (rows[rows.split == "test"].label == np.arange(30) % 2).all()
    m = r["metrics"]
    assert m["n_scored"] == 30 and m["scored_on"] == "test" and m["majority_rate"] == 0.5 and 0 <= m["nmi"] <= 1


def test_scores_belong_to_the_assignments(done):
    "The statistical accuracy can be computed again from assignments.csv"
    for folder in done.iterdir():
        rows, m = pd.read_csv(folder / "assignments.csv"), json.loads((folder / "run.json").read_text())["metrics"]
        train, test = rows[rows.split == "train"], rows[rows.split == "test"]
        label = {k: g.label.mode()[0] for k, g in train.groupby("cluster")}
        predicted = [label.get(c, train.label.mode()[0]) for c in test.cluster]
        assert np.mean(predicted == test.label) == pytest.approx(m["stat_accuracy"])


def test_the_same_run_twice_is_the_same(done, stripes, tmp_path):
    again = finish(start_run("vaesim", stripes, 1, out=tmp_path, **SMALL_RUN))
    first, = done.glob("vaesim-*-seed1-*")
    a, b = (json.loads((f / "run.json").read_text()) for f in (first, again))
    assert a["metrics"] == b["metrics"] and (first / "assignments.csv").read_text() == (again / "assignments.csv").read_text()
    assert first.name == again.name


def test_a_run_never_overwrites(done, stripes, tmp_path):
    folder, = done.glob("vaesim-*-seed0-*")
    before = (folder / "run.json").read_bytes()
    with pytest.raises(FileExistsError, match="never overwrites"): start_run("vaesim", stripes, folder=folder, **SMALL_RUN)
    assert (folder / "run.json").read_bytes() == before
    second = claim_folder(done, folder.name)
    assert second.name == folder.name + "-2"
    partial(second).rmdir()


def test_parameters_are_recorded_under_their_own_names(stripes, tmp_path):
    run = start_run("vaesim", stripes, out=tmp_path, **{**{k: v for k, v in SMALL_RUN.items() if k != "latent_dim"}, "LatentDim": 4})
    assert "latent_dim" in run.record["parameters"], "spelled otherwise, the same run would stand in two rows of the table"
    assert "latent_dim=4" in run.folder.name


def _killed(when, dataset, out):
    import pytorch_lightning as pl
    die = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
    class Die(pl.Callback):
        def on_train_batch_end(self, *a): die()
    run = start_run("vaesim", dataset, 0, out=out, **SMALL_RUN, trainer_options=dict(callbacks=[Die()]) if when == "fit" else None)
    Path.rename = die
    finish(run)


@pytest.mark.parametrize("when", ["fit", "finish"])
def test_a_killed_run_is_no_run(when, stripes, tmp_path_factory, tmp_path):
    status, said = apart(_killed, when, stripes, str(tmp_path), log=tmp_path_factory.mktemp("log") / "log")
    assert status == -signal.SIGKILL, said[-2000:]
    assert read_runs(tmp_path).empty
    left, = tmp_path.iterdir()
    assert left.name.endswith(".partial")
    (left / "stale.png").write_bytes(b"old")     # a figure that the next run will not make
    folder = finish(start_run("vaesim", stripes, 0, out=tmp_path, **SMALL_RUN, trainer_options=None))     # the same name again
    assert len(read_runs(tmp_path)) == 1 and {p.name for p in folder.iterdir()} == FILES


def test_a_failed_training_leaves_nothing(stripes, tmp_path, monkeypatch):
    monkeypatch.setattr(VAESim, "fit", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError): start_run("vaesim", stripes, out=tmp_path, **SMALL_RUN)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part, name", [("evaluate", "scores"), ("associations", "associations"), ("label_efficiency", "label_efficiency")])
def test_what_fails_after_the_training_is_missing_with_its_reason(part, name, stripes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(records, part, lambda *a, **k: 1 / 0)
    folder = finish(start_run("pixels+kmeans", stripes, out=tmp_path, n_clusters=3, verbose=False))
    record = json.loads((folder / "run.json").read_text())
    assert record["missing"] == {name: "ZeroDivisionError: division by zero"} and "left out (division by zero)" in capsys.readouterr().out
    assert (folder / "model.safetensors").exists() and len(compare(read_runs(tmp_path))) == 1


def test_a_set_without_labels_runs(tmp_path):
    folder = quick_run(cohort_file(tmp_path / "bare.npz", age=np.linspace(20, 80, 84)), tmp_path / "runs")
    m = metrics(folder)
    assert m["unscored"] == "no image of train and test has a label" and m["n_scored"] == 24 and m["active_clusters"] == 3 and "nmi" not in m
    assert (pd.read_csv(folder / "assignments.csv").label == -1).all()
    table = compare(read_runs(tmp_path / "runs"))
    assert table.nmi.item() == "–" and table.active_clusters.item() == "3.000"


def test_a_finding_can_be_chosen(tmp_path):
    many = np.random.default_rng(0).random((84, 4)) < 0.4
    path = cohort_file(tmp_path / "many.npz", many[:60].astype(np.uint8), many[60:].astype(np.uint8))
    assert "unscored" in metrics(quick_run(path, tmp_path / "runs"))
    folder = quick_run(path, tmp_path / "runs", target="label_2")
    m, r = metrics(folder), json.loads((folder / "run.json").read_text())
    assert m["majority_rate"] == pytest.approx(max(many[60:, 2].mean(), 1 - many[60:, 2].mean())) and r["parameters"]["target"] == "label_2"
    assert len(compare(read_runs(tmp_path / "runs"))) == 2        # another target is another row
    with pytest.raises(KeyError, match="label_9"): quick_run(path, tmp_path / "runs", target="label_9")


def test_images_marked_as_unlabelled_are_not_scored(tmp_path):
    y = np.arange(84) % 2
    some = np.where(np.arange(84) % 3 == 0, -1, y)
    m = metrics(quick_run(cohort_file(tmp_path / "some.npz", some[:60], some[60:]), tmp_path / "runs"))
    assert (m["n_train"], m["n_scored"]) == (40, 16) and 0 <= m["probe_accuracy"] <= 1


def test_codes_may_be_huge_and_images_few(tmp_path):
    y = np.arange(84) % 2 + 254837009000
    assert metrics(quick_run(cohort_file(tmp_path / "codes.npz", y[:60], y[60:]), tmp_path / "runs"))["majority_rate"] == 0.5
    m = metrics(quick_run(cohort_file(tmp_path / "few.npz", y[:4], y[4:8], n=4, m=4), tmp_path / "runs"))
    assert m["k_neighbors"] == 4


def test_a_table_that_nothing_can_be_said_of(tmp_path):
    "Hashes beyond 63 bits, dates as text, a constant, gaps: left out with a remark, or compared"
    columns = dict(accession=np.arange(84, dtype=np.uint64) + np.uint64(2**63), day=np.array([f"2026-01-{1 + i % 28:02d}" for i in range(84)]), constant=np.ones(84), score=np.where(np.arange(84) % 5, 1.5, np.nan))
    folder = quick_run(cohort_file(tmp_path / "odd.npz", **columns), tmp_path / "runs")
    record = json.loads((folder / "run.json").read_text())
    assert {a["column"] for a in record["associations"]} == set(columns) and record["missing"] == {}


def test_equal_runs_at_once_get_folders_of_their_own(stripes, tmp_path):
    a, b = (start_run("pixels+kmeans", stripes, out=tmp_path, n_clusters=3, verbose=False) for _ in range(2))      # the second begins while the first is in progress
    assert {finish(b).name, finish(a).name} == {a.folder.name, a.folder.name + "-2"} and len(read_runs(tmp_path)) == 2


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_place_that_cannot_be_written_is_refused_before_training(place, stripes, tmp_path, monkeypatch):
    monkeypatch.setattr(VAESim, "fit", lambda *a, **k: pytest.fail("trained"))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Give another folder"): start_run("vaesim", stripes, out=tmp_path / place, **SMALL_RUN)


def test_modes_respect_the_umask(stripes, tmp_path):
    before = os.umask(0o027)
    try: folder = quick_run(stripes, tmp_path / "runs")
    finally: os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o750 and {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o640}


def test_patients_are_kept_whole_unless_told_otherwise(tmp_path):
    X, patient = images(80)[..., 0], np.arange(80) // 4
    np.savez(tmp_path / "cohort.npz", train_images=X, train_labels=np.arange(80) % 2, train_patient=patient, train_site=np.arange(80) // 8)
    both = lambda run, column: set(run.splits.train.table[column]) & set(run.splits.test.table[column])
    words = dict(model="pixels+kmeans", dataset=str(tmp_path / "cohort.npz"), out=tmp_path / "runs", n_clusters=3, verbose=False)
    assert not both(start_run(**words), "patient") and not both(start_run(**words, group="site"), "site")
    with pytest.warns(UserWarning, match="patient"): torn = start_run(**words, group=False)
    assert both(torn, "patient") and any("patient" in n for n in torn.record["notices"])


def test_seeds_of_any_size(stripes, tmp_path):
    assert json.loads((quick_run(stripes, tmp_path, seed=20250101123000) / "run.json").read_text())["seed"] == 20250101123000


def test_an_interrupted_run_says_so(stripes, tmp_path):
    with pytest.warns(UserWarning, match="interrupted"):
        run = start_run("vaesim", stripes, out=tmp_path, **{**SMALL_RUN, "epochs": 9}, trainer_options=dict(callbacks=[interrupt(2)]))
    finish(run)
    table = read_runs(tmp_path)
    assert table.interrupted.tolist() == [True] and table.epochs.tolist() == [1]


# ---- the commit

def git(folder, *words): return subprocess.run(["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    "A repository with a package in it"
    package = tmp_path / "repository" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("a = 1\n")
    git(package, "init", "-q")
    git(package, "add", "-A")
    git(package, "commit", "-q", "-m", "first")
    commit_of.cache_clear()
    yield package
    commit_of.cache_clear()


def test_the_commit_of_a_checkout(checkout):
    (checkout.parent / "beside.txt").write_text("not of the package")
    assert commit_of(checkout) == git(checkout, "rev-parse", "HEAD") and len(commit_of(checkout)) == 40


@pytest.mark.parametrize("change", [lambda p: (p / "__init__.py").write_text("a = 2\n"), lambda p: (p / "new.py").write_text("b = 1\n"), lambda p: (p / "__init__.py").chmod(0o755)])
def test_what_differs_is_marked(change, checkout):
    change(checkout)
    assert commit_of(checkout) == git(checkout, "rev-parse", "HEAD") + "-dirty"


def test_a_checkout_that_moves_on(checkout):
    "What was loaded is what counts"
    before = commit_of(checkout)
    (checkout / "__init__.py").write_text("a = 2\n")
    git(checkout, "commit", "-q", "-a", "-m", "second")
    assert commit_of(checkout) == before != git(checkout, "rev-parse", "HEAD")


def test_where_there_is_no_commit(checkout, tmp_path, monkeypatch):
    "Installed inside another's repository; in none; a repository without a commit; no git; another repository in the environment"
    installed = checkout.parent / "env" / "medstrat"
    installed.mkdir(parents=True)
    (installed / "__init__.py").touch()
    assert commit_of(installed) is None and commit_of(tmp_path / "nowhere") is None and commit_of(tmp_path) is None
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "__init__.py").touch()
    git(tmp_path / "empty", "init", "-q")
    git(tmp_path / "empty", "add", "-A")
    assert commit_of(tmp_path / "empty") is None
    monkeypatch.setenv("GIT_DIR", str(checkout.parent / ".git"))
    assert commit_of(installed.parent) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of(checkout) is None


def test_a_record_says_when_and_by_which_code(stripes, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "commit_of", lambda package: "c0ffee" if (package / "runs" / "records.py").exists() else None)
    record = json.loads((quick_run(stripes, tmp_path) / "run.json").read_text())
    made = datetime.fromisoformat(record["made"])
    assert record["commit"] == "c0ffee" and made.utcoffset() == timedelta(0) and abs(datetime.now(timezone.utc) - made) < timedelta(minutes=5)
