"Runs: the folder, the papermill notebook, the command – and that nothing half done is ever taken for a run."
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import apart, images
from typer.testing import CliRunner

import medstrat
from medstrat import cli
from medstrat.runs import records as runs
from medstrat.methods.vaesim import VAESim
from medstrat.runs.requests import claim_folder, partial, read_scalar
from medstrat.runs.records import compare, finish, read_runs, start_run
from medstrat.runs.requests import Request, run_name
from medstrat.training.saving import load_model

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "nbs" / "07_experiments.ipynb"
FILES = {"run.json", "model.safetensors", "history.csv", "assignments.csv", "label_efficiency.csv"}
SMALL = dict(n_clusters=3, image_size=16, epochs=1, batch_size=20, channels=[4, 8], latent_dim=4, verbose=False)
ENV = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    "A small set in an .npz file: two kinds of stripes, in three splits"
    path = tmp_path_factory.mktemp("data") / "stripes.npz"
    np.savez(path, **{f"{s}_{k}": v for i, (s, n) in enumerate(dict(train=60, val=20, test=30).items())
                      for k, v in dict(images=images(n, seed=i)[..., 0], labels=(np.arange(n) % 2)[:, None]).items()})
    return str(path)


def python(*code, **kw):
    return subprocess.run([sys.executable, "-c", *code], capture_output=True, text=True, env=ENV, **kw)


@pytest.fixture(scope="module")
def done(stripes, tmp_path_factory):
    "Two finished runs of one method and one of another"
    out = tmp_path_factory.mktemp("runs")
    small = {k: v for k, v in SMALL.items() if k not in ("channels", "epochs", "batch_size")}
    for seed in (0, 1): finish(start_run("VAEsim", stripes, seed, out=out, **SMALL))
    finish(start_run("pca_kmeans", stripes, 0, out=out, **small))
    return out


# ---- requests

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
    with pytest.raises(ValueError, match="val"): start_run(dataset=str(path), on="val", out=tmp_path / "runs", **SMALL)


def test_names_of_folders(tmp_path):
    name = lambda **kw: run_name(r := Request(**kw), r.estimator())
    assert name() == "vaesim-digits-best-seed0"
    assert name(model="VAE_KMEANS", dataset="/some/where/Heart.npz", seed=3, preset="Paper", on="val+test", parameters=dict(latent_dim=16, channels=(4, 8))) \
        == "vae-k-means-heart-paper-seed3-on-val+test-channels=48-latent_dim=16"
    assert name(parameters=dict(verbose=False)) == name()
    assert "/" not in name(parameters=dict(checkpoint_dir="../a/b")) and not name(parameters=dict(checkpoint_dir="../a/b")).startswith(".")
    assert name(target="finding", group=False) == "vaesim-digits-best-seed0-group=false-target=finding"
    assert len(name(dataset="/x/" + "ü" * 200 + ".npz", parameters=dict(lr=0.5)).encode()) <= 150
    assert claim_folder(tmp_path, "a") == tmp_path / "a"
    (tmp_path / "a-2").mkdir()
    assert claim_folder(tmp_path, "a") == tmp_path / "a-3"


# ---- the folder

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
    again = finish(start_run("vaesim", stripes, 1, out=tmp_path, **SMALL))
    first, = done.glob("vaesim-*-seed1-*")
    a, b = (json.loads((f / "run.json").read_text()) for f in (first, again))
    assert a["metrics"] == b["metrics"] and (first / "assignments.csv").read_text() == (again / "assignments.csv").read_text()
    assert first.name == again.name


def test_a_run_never_overwrites(done, stripes, tmp_path):
    folder, = done.glob("vaesim-*-seed0-*")
    before = (folder / "run.json").read_bytes()
    with pytest.raises(FileExistsError, match="never overwrites"): start_run("vaesim", stripes, folder=folder, **SMALL)
    assert (folder / "run.json").read_bytes() == before
    second = claim_folder(done, folder.name)
    assert second.name == folder.name + "-2"
    partial(second).rmdir()


def test_parameters_are_recorded_under_their_own_names(stripes, tmp_path):
    run = start_run("vaesim", stripes, out=tmp_path, **{**{k: v for k, v in SMALL.items() if k != "latent_dim"}, "LatentDim": 4})
    assert "latent_dim" in run.record["parameters"], "spelled otherwise, the same run would stand in two rows of the table"
    assert "latent_dim=4" in run.folder.name


def test_tables(done):
    table = read_runs(done)
    assert len(table) == 3 and set(table.model) == {"VAESim", "PCA + k-means"} and {"stat_accuracy", "nmi", "seconds", "folder", "parameters"} <= set(table)
    c = compare(table)
    one = table[table.model == "VAESim"].stat_accuracy
    row = c.xs("VAESim", level="model").iloc[0]
    assert row.stat_accuracy == f"{one.mean():.3f} ± {np.std(one, ddof=1):.3f}" and row.seeds == 2
    single = c.xs("PCA + k-means", level="model").iloc[0]
    assert "±" not in single.stat_accuracy and single.seeds == 1
    with pytest.raises(ValueError, match="no finished runs"): compare(read_runs(done / "nothing"))
    with pytest.raises(ValueError, match="different protocols"): compare(table.assign(protocol=[1, 1, 2]))


def test_settings_that_had_another_name(done, tmp_path):
    shutil.copytree(done, tmp_path / "runs")
    for path in (tmp_path / "runs").glob("*/run.json"): path.write_text(path.read_text().replace('"compare"', '"condition_on"'))
    table = read_runs(tmp_path / "runs", settings=("compare", "condition_on"))
    for name in ("compare", "condition_on"): assert table[name].fillna("").tolist() == ["", "mean", "mean"]


# ---- a run that is killed

def _killed(when, dataset, out):
    import pytorch_lightning as pl
    die = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
    class Die(pl.Callback):
        def on_train_batch_end(self, *a): die()
    run = start_run("vaesim", dataset, 0, out=out, **SMALL, trainer_options=dict(callbacks=[Die()]) if when == "fit" else None)
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
    folder = finish(start_run("vaesim", stripes, 0, out=tmp_path, **SMALL, trainer_options=None))     # the same name again
    assert len(read_runs(tmp_path)) == 1 and {p.name for p in folder.iterdir()} == FILES


def test_a_failed_training_leaves_nothing(stripes, tmp_path, monkeypatch):
    monkeypatch.setattr(VAESim, "fit", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError): start_run("vaesim", stripes, out=tmp_path, **SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part, name", [("evaluate", "scores"), ("associations", "associations"), ("label_efficiency", "label_efficiency")])
def test_what_fails_after_the_training_is_missing_with_its_reason(part, name, stripes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, part, lambda *a, **k: 1 / 0)
    folder = finish(start_run("pixels+kmeans", stripes, out=tmp_path, n_clusters=3, verbose=False))
    record = json.loads((folder / "run.json").read_text())
    assert record["missing"] == {name: "ZeroDivisionError: division by zero"} and "left out (division by zero)" in capsys.readouterr().out
    assert (folder / "model.safetensors").exists() and len(compare(read_runs(tmp_path))) == 1


# ---- sets with few labels, many, or none

def cohort(path, labels=None, test_labels=None, n=60, m=24, **columns):
    X, labels = images(n + m, seed=5)[..., 0], {} if labels is None else {"train_labels": labels, "test_labels": test_labels}
    np.savez(path, train_images=X[:n], test_images=X[n:], **labels, **{f"{s}_{k}": v[r] for k, v in columns.items() for s, r in (("train", slice(n)), ("test", slice(n, None)))})
    return str(path)


def quick(path, out, **words): return finish(start_run("pixels+kmeans", path, out=out, n_clusters=3, verbose=False, **words))


def metrics(folder): return json.loads((folder / "run.json").read_text())["metrics"]


def test_a_set_without_labels_runs(tmp_path):
    folder = quick(cohort(tmp_path / "bare.npz", age=np.linspace(20, 80, 84)), tmp_path / "runs")
    m = metrics(folder)
    assert m["unscored"] == "no image of train and test has a label" and m["n_scored"] == 24 and m["active_clusters"] == 3 and "nmi" not in m
    assert (pd.read_csv(folder / "assignments.csv").label == -1).all()
    table = compare(read_runs(tmp_path / "runs"))
    assert table.nmi.item() == "–" and table.active_clusters.item() == "3.000"


def test_a_finding_can_be_chosen(tmp_path):
    many = np.random.default_rng(0).random((84, 4)) < 0.4
    path = cohort(tmp_path / "many.npz", many[:60].astype(np.uint8), many[60:].astype(np.uint8))
    assert "unscored" in metrics(quick(path, tmp_path / "runs"))
    folder = quick(path, tmp_path / "runs", target="label_2")
    m, r = metrics(folder), json.loads((folder / "run.json").read_text())
    assert m["majority_rate"] == pytest.approx(max(many[60:, 2].mean(), 1 - many[60:, 2].mean())) and r["parameters"]["target"] == "label_2"
    assert len(compare(read_runs(tmp_path / "runs"))) == 2        # another target is another row
    with pytest.raises(KeyError, match="label_9"): quick(path, tmp_path / "runs", target="label_9")


def test_images_marked_as_unlabelled_are_not_scored(tmp_path):
    y = np.arange(84) % 2
    some = np.where(np.arange(84) % 3 == 0, -1, y)
    m = metrics(quick(cohort(tmp_path / "some.npz", some[:60], some[60:]), tmp_path / "runs"))
    assert (m["n_train"], m["n_scored"]) == (40, 16) and 0 <= m["probe_accuracy"] <= 1


def test_codes_may_be_huge_and_images_few(tmp_path):
    y = np.arange(84) % 2 + 254837009000
    assert metrics(quick(cohort(tmp_path / "codes.npz", y[:60], y[60:]), tmp_path / "runs"))["majority_rate"] == 0.5
    m = metrics(quick(cohort(tmp_path / "few.npz", y[:4], y[4:8], n=4, m=4), tmp_path / "runs"))
    assert m["k_neighbors"] == 4


def test_a_table_that_nothing_can_be_said_of(tmp_path):
    "Hashes beyond 63 bits, dates as text, a constant, gaps: left out with a remark, or compared"
    columns = dict(accession=np.arange(84, dtype=np.uint64) + np.uint64(2**63), day=np.array([f"2026-01-{1 + i % 28:02d}" for i in range(84)]), constant=np.ones(84), score=np.where(np.arange(84) % 5, 1.5, np.nan))
    folder = quick(cohort(tmp_path / "odd.npz", **columns), tmp_path / "runs")
    record = json.loads((folder / "run.json").read_text())
    assert {a["column"] for a in record["associations"]} == set(columns) and record["missing"] == {}


# ---- whose folder, whose data

def test_equal_runs_at_once_get_folders_of_their_own(stripes, tmp_path):
    a, b = (start_run("pixels+kmeans", stripes, out=tmp_path, n_clusters=3, verbose=False) for _ in range(2))      # the second begins while the first is in progress
    assert {finish(b).name, finish(a).name} == {a.folder.name, a.folder.name + "-2"} and len(read_runs(tmp_path)) == 2


def test_folders_are_claimed_by_one_only(tmp_path):
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(8) as pool: claimed = list(pool.map(lambda _: claim_folder(tmp_path, "x"), range(40)))
    assert len(set(claimed)) == 40


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_place_that_cannot_be_written_is_refused_before_training(place, stripes, tmp_path, monkeypatch):
    monkeypatch.setattr(VAESim, "fit", lambda *a, **k: pytest.fail("trained"))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Give another folder"): start_run("vaesim", stripes, out=tmp_path / place, **SMALL)


def test_modes_respect_the_umask(stripes, tmp_path):
    before = os.umask(0o027)
    try: folder = quick(stripes, tmp_path / "runs")
    finally: os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o750 and {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o640}


def test_two_files_of_one_name_are_two_sets(tmp_path):
    for i, place in enumerate(("a", "b")):
        (tmp_path / place).mkdir()
        y = (np.arange(84) + i) % 2
        quick(cohort(tmp_path / place / "xrays.npz", y[:60], y[60:]), tmp_path / "runs", seed=i)
    shutil.copy(tmp_path / "a" / "xrays.npz", tmp_path / "xrays.npz")      # the same set at another place
    quick(str(tmp_path / "xrays.npz"), tmp_path / "runs", seed=2)
    table = compare(read_runs(tmp_path / "runs"))
    assert sorted(table.seeds) == [1, 2] and all(name.startswith("xrays (") for name in table.index.get_level_values("dataset"))


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"name": "another tool"}', '{"model": "VAESim", "parameters": 3}', "\xff"])
def test_a_stray_record_is_named_and_left_out(text, done, tmp_path):
    shutil.copytree(done, tmp_path / "runs")
    (tmp_path / "runs" / "stray").mkdir()
    (tmp_path / "runs" / "stray" / "run.json").write_bytes(text.encode("latin-1"))
    with pytest.warns(UserWarning, match=r"stray.run\.json is left out"): assert len(read_runs(tmp_path / "runs")) == 3


def test_patients_are_kept_whole_unless_told_otherwise(tmp_path):
    X, patient = images(80)[..., 0], np.arange(80) // 4
    np.savez(tmp_path / "cohort.npz", train_images=X, train_labels=np.arange(80) % 2, train_patient=patient, train_site=np.arange(80) // 8)
    both = lambda run, column: set(run.splits.train.table[column]) & set(run.splits.test.table[column])
    words = dict(model="pixels+kmeans", dataset=str(tmp_path / "cohort.npz"), out=tmp_path / "runs", n_clusters=3, verbose=False)
    assert not both(start_run(**words), "patient") and not both(start_run(**words, group="site"), "site")
    with pytest.warns(UserWarning, match="patient"): torn = start_run(**words, group=False)
    assert both(torn, "patient") and any("patient" in n for n in torn.record["notices"])


def test_seeds_of_any_size(stripes, tmp_path):
    assert json.loads((quick(stripes, tmp_path, seed=20250101123000) / "run.json").read_text())["seed"] == 20250101123000


def test_an_interrupted_run_says_so(stripes, tmp_path):
    from conftest import interrupt
    with pytest.warns(UserWarning, match="interrupted"):
        run = start_run("vaesim", stripes, out=tmp_path, **{**SMALL, "epochs": 9}, trainer_options=dict(callbacks=[interrupt(2)]))
    finish(run)
    table = read_runs(tmp_path)
    assert table.interrupted.tolist() == [True] and table.epochs.tolist() == [1]


# ---- the notebook

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
    try: yield out, _papermill(out, model="VAE-Sim", dataset=stripes, seed=3, preset="paper", out="here", **SMALL)
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
    with pytest.raises(PapermillExecutionError) as e: _papermill(tmp_path, dataset=stripes, out="here", **SMALL, latent_dimm=4)
    assert e.value.ename == "ValueError" and "Did you mean 'latent_dim'" in e.value.evalue
    assert not (tmp_path / "here").exists()


# ---- the command

def command(*words, cwd=None): return python("from medstrat.cli import main; main()", *words, cwd=cwd)



@pytest.mark.parametrize("words, says", [
    (["run", "vaesin"], "Did you mean 'VAESim'"),
    (["run", "vaesim", "-p", "latent_dimm=4"], "Did you mean 'latent_dim'"),
    (["run", "vaesim", "-p", "latent_dim"], "write -p name=value"),
    (["run", "vaesim", "-p", "lr=[1"], "lr"),
    (["run", "vaesim", "-p", "lr=fast"], "lr='fast'"),
    (["run", "vaesim", "-p", "seed=3"], "seed"),
    (["run", "vaesim", "--preset", "bset"], "Did you mean 'best'"),
    (["run", "vaesim", "--on", "tset"], "tset"),
    (["run", "vaesim", "--seed", "-1"], "seed"),
    (["run", "vaesim", "--dataset", "digitz"], "digits"),
    (["run", "vaesim", "--dataset", "nowhere.npz"], "nowhere"),
    (["table", "nothing-here"], "no finished runs"),
], ids=lambda w: " ".join(w) if isinstance(w, list) else None)
def test_errors_are_one_line(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["medstrat", *words])
    monkeypatch.setattr(cli, "kernel", contextlib.nullcontext)
    monkeypatch.setattr(cli, "execute", lambda *_: pytest.fail("not noticed before the notebook"))
    with pytest.raises(SystemExit) as e: cli.main()
    got = capsys.readouterr()
    assert e.value.code == 1 and not got.out
    assert len(got.err.splitlines()) == 1 and got.err.startswith("medstrat: ") and says in got.err
    assert not list(tmp_path.iterdir())



def test_an_error_inside_the_notebook_says_where_the_notebook_is(tmp_path):
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"this is no zip file")
    got = command("run", "vaesim", "--dataset", str(bad), "--out", "mine", cwd=tmp_path)
    last = got.stderr.splitlines()[-1]                  # the kernel may have spoken before
    assert got.returncode == 1 and last.startswith("medstrat: ValueError: ") and "bad.npz" in last and "Traceback" not in got.stderr and not got.stdout
    left, = (tmp_path / "mine").iterdir()               # no run, but what was executed of the notebook
    assert left.name.endswith(".unfinished.ipynb") and str(left) in last


def test_usage_errors_end_with_two():
    run = CliRunner().invoke
    assert run(cli.app, ["runn"]).exit_code == 2 and run(cli.app, ["run", "--sead", "1"]).exit_code == 2 and run(cli.app, ["run", "--seed", "x"]).exit_code == 2
    assert run(cli.app, []).exit_code in (0, 2) and "run" in run(cli.app, ["--help"]).output


def test_lists():
    run = CliRunner().invoke
    got = run(cli.app, ["models"])
    assert got.exit_code == 0 and all(name in got.output for name in ("VAESim", "VAE + k-means", "PCA + k-means")) and "VAESim(" not in got.output
    got = run(cli.app, ["datasets"])
    assert got.exit_code == 0 and "digits" in got.output and "pneumoniamnist" in got.output


def test_table(done):
    got = CliRunner().invoke(cli.app, ["table", str(done)])
    assert got.exit_code == 0 and "VAESim" in got.output and "±" in got.output and "seeds" in got.output


@pytest.mark.parametrize("text", ["16", "016", "-3", "1e-3", "1:30", "True", "true", "None", "null", "no", "none", "[8,16]", "[8, '16']", "{affine: 0.5}", "'16'", '"null"', "1_000", "nan", "b=c", " 5 ", "[a, null]", "é"])
def test_both_doors_read_the_same(text):
    from papermill.cli import _resolve_type
    assert repr(read_scalar(text)) == repr(_resolve_type(text)), "the first step is papermill's"
    assert cli.parse_parameters([f"x={text}"]) == {"x": read_scalar(text)} or text == "nan"


def test_values_of_both_doors():
    asked = Request("dec", parameters=cli.parse_parameters(["hidden=[8, 016]", "lr=1e-3", "image_size=null", "augment={affine: 0.5}", "n_clusters=007"]))
    asked.estimator()
    assert asked.parameters == dict(hidden=(8, 16), lr=0.001, image_size=None, augment={"affine": 0.5}, n_clusters=7)
    with pytest.raises(ValueError, match="epochs"): Request("dec", parameters=cli.parse_parameters(["epochs=1:30"])).estimator()


def test_ctrl_c_ends_the_command_in_order(stripes, tmp_path):
    "What has been learned is kept, as the estimator promises, or nothing is; in both cases without a traceback"
    more = {**SMALL, "epochs": 100000, "checkpoint_dir": str(tmp_path / "checkpoints")}
    words = [w for k, v in more.items() for w in ("-p", f"{k}={json.dumps(v)}")]
    process = subprocess.Popen([sys.executable, "-c", "from medstrat.cli import main; main()", "run", "--dataset", stripes, "--out", "mine", *words],
                               cwd=tmp_path, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        while not (tmp_path / "checkpoints" / "last.ckpt").exists() and process.poll() is None: time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)       # as the terminal does: to all processes of the group
        out, err = process.communicate()
    finally:
        if process.poll() is None: os.killpg(process.pid, signal.SIGKILL)
    assert "Traceback" not in err, err[-1500:]
    table = read_runs(tmp_path / "mine")
    assert table.empty or table.interrupted.tolist() == [True]


# ---- imports

def loaded(code, *names):
    got = python(f"import sys\n{code}\nprint(*[m for m in {names!r} if m in sys.modules])")
    assert got.returncode == 0, got.stderr[-2000:]
    return got.stdout.splitlines()[-1].split()


def test_import_is_light():
    assert loaded("import medstrat; dir(medstrat); medstrat.__version__", "torch", "pytorch_lightning", "numpy", "pandas", "sklearn") == []


def test_help_is_light():
    for words in (["--help"], ["run", "--help"]):
        code = f"sys.argv = ['medstrat', *{words!r}]\nfrom medstrat.cli import main\ntry: main()\nexcept SystemExit: pass"
        assert loaded(code, "torch", "pytorch_lightning", "sklearn", "pandas", "papermill", "matplotlib") == []


def test_importing_a_method_is_light():
    code = "from medstrat import VAESim; VAESim(lr=1); from medstrat.training.presets import list_methods; list_methods()"
    assert loaded(code, "pytorch_lightning", "lightning", "medmnist", "matplotlib.pyplot", "openTSNE", "papermill", "kneed", "timm", "huggingface_hub") == []


def test_names_of_the_package():
    assert medstrat.VAESim is VAESim and "VAESim" in dir(medstrat) and "load_dataset" in dir(medstrat)
    for name in dir(medstrat): assert getattr(medstrat, name) is not None, name
    with pytest.raises(AttributeError, match="no attribute 'VAESimm'"): _ = medstrat.VAESimm
    with pytest.raises(ImportError): exec("from medstrat import VAESimm")
    assert not hasattr(medstrat, "_labels")


def test_a_setting_that_is_a_score_as_well():
    "K is both: the setting may be \"elbow\", the score says how many it was; no run is left out"
    folder = Path(__file__).parent.parent / "results" / "comparison"
    runs = read_runs(folder, settings=("n_clusters", "latent_dim"))
    assert len(runs) == len(read_runs(folder)) and runs.n_clusters.ge(1).all()
