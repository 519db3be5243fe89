"Label-efficiency curves of runs: recorded, read again, and never at the price of a run."
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import SMALL_RUN, interrupt, save_stripes

from medstrat.evaluation.labels import (
    FRACTIONS,
    label_efficiency,
    plot_label_efficiency,
    summarise_label_efficiency,
)
from medstrat.runs import records
from medstrat.runs.records import finish, start_run
from medstrat.runs.tables import read_label_efficiency, read_runs

@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    "Two seeds of one method and one run of another, on the same stripes"
    out = tmp_path_factory.mktemp("runs")
    stripes = save_stripes(tmp_path_factory.mktemp("data") / "stripes.npz")
    made = [start_run("vaesim", stripes, seed, out=out, **SMALL_RUN) for seed in (0, 1)]
    made.append(start_run("pca_kmeans", stripes, 0, on="val+test", out=out, **{k: v for k, v in SMALL_RUN.items() if k not in ("channels", "epochs", "batch_size")}))
    for run in made: finish(run)
    return out, made


def test_a_run_records_its_curve(recorded):
    for run in recorded[1]:
        record = json.loads((run.folder / "run.json").read_text())
        pd.testing.assert_frame_equal(pd.read_csv(run.folder / "label_efficiency.csv"), run.label_efficiency)
        assert run.label_efficiency.accuracy.iloc[-1] == record["metrics"]["probe_accuracy"]
        assert record["seconds"]["label_efficiency"] >= 0 and {"evaluate", "fit"} <= set(record["seconds"])
        assert run.label_efficiency.n_labels.tolist() == [n for f, n in zip(FRACTIONS, (2, 4, 6, 12, 30, 60), strict=True) for _ in range(10 if f < 1 else 1)]


def test_the_seed_of_a_run_picks_its_images(recorded):
    a, b, _ = (run.label_efficiency for run in recorded[1])
    again = label_efficiency(*(recorded[1][1].encoded[s] for s in ("train", "test")), seed=1)
    pd.testing.assert_frame_equal(b, again)
    assert (a.accuracy != b.accuracy).any()


def test_reading_curves(recorded, tmp_path):
    out, made = recorded
    curves, table = read_label_efficiency(out, settings=["latent_dim"]), read_runs(out, settings=["latent_dim"])
    assert len(curves) == 3 * 51 and set(curves.folder) == {str(r.folder) for r in made}
    for facts in ("model", "dataset", "preset", "seed", "protocol", "interrupted", "parameters", "scored_on", "majority_rate", "latent_dim"):
        assert curves.groupby("folder")[facts].first().to_dict() == table.set_index("folder")[facts].to_dict(), facts
    assert curves.n_labels.dtype == int and curves.interrupted.dtype == bool
    summary = summarise_label_efficiency(curves[curves.model == "VAESim"])
    assert summary.n.tolist() == [20] * 5 + [2]
    with pytest.raises(ValueError, match="differ in model"): summarise_label_efficiency(curves)
    assert plot_label_efficiency(dict(list(curves.groupby("model"))), majority_rate=curves.majority_rate[0]).axes[0].lines
    assert read_label_efficiency(tmp_path).empty
    with pytest.raises(ValueError, match="no label-efficiency curves"): summarise_label_efficiency(read_label_efficiency(tmp_path))


def test_runs_without_a_curve_and_unfinished_ones_are_left_out(recorded, tmp_path):
    for i, run in enumerate(recorded[1][:2]): shutil.copytree(run.folder, tmp_path / f"run{i}")
    shutil.copytree(recorded[1][0].folder, tmp_path / ".run2-x.partial")
    (tmp_path / "run0" / "label_efficiency.csv").unlink()       # as the runs recorded before there were curves
    assert len(read_runs(tmp_path)) == 2
    assert read_label_efficiency(tmp_path).folder.unique().tolist() == [str(tmp_path / "run1")]


def test_a_curve_that_fails_does_not_cost_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "label_efficiency", lambda *a, **k: 1 / 0)
    finish(start_run("vaesim", save_stripes(tmp_path / "stripes.npz"), out=tmp_path / "out", **SMALL_RUN))
    assert len(read_runs(tmp_path / "out")) == 1 and read_label_efficiency(tmp_path / "out").empty


def test_an_interrupted_fit_still_gets_its_curve(tmp_path):
    with pytest.warns(UserWarning, match="interrupted"):
        run = start_run("vaesim", save_stripes(tmp_path / "stripes.npz"), out=tmp_path / "out", **{**SMALL_RUN, "epochs": 9}, trainer_options=dict(callbacks=[interrupt(2)]))
    finish(run)
    curves = read_label_efficiency(tmp_path / "out")
    assert len(curves) == 51 and curves.interrupted.all()
    with pytest.raises(ValueError, match="interrupted"): summarise_label_efficiency(curves)


def test_one_class_has_no_curve(tmp_path):
    run = start_run("vaesim", save_stripes(tmp_path / "one.npz", labels=lambda n: np.zeros(n, int)), out=tmp_path / "out", **SMALL_RUN)
    folder = finish(run)
    assert run.label_efficiency is None and not (folder / "label_efficiency.csv").exists()
    assert "label_efficiency" not in run.record["seconds"] and len(read_runs(tmp_path / "out")) == 1 and read_label_efficiency(tmp_path / "out").empty
