"Tables: one row a run, seeds averaged, unlike things apart, strays left out."
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import cohort_file, quick_run
from matplotlib.collections import PathCollection

from medstrat.runs.tables import beside, compare, plot_beside, read_label_efficiency, read_runs, tidy


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


def test_two_files_of_one_name_are_two_sets(tmp_path):
    for i, place in enumerate(("a", "b")):
        (tmp_path / place).mkdir()
        y = (np.arange(84) + i) % 2
        quick_run(cohort_file(tmp_path / place / "xrays.npz", y[:60], y[60:]), tmp_path / "runs", seed=i)
    shutil.copy(tmp_path / "a" / "xrays.npz", tmp_path / "xrays.npz")      # the same set at another place
    quick_run(str(tmp_path / "xrays.npz"), tmp_path / "runs", seed=2)
    table = compare(read_runs(tmp_path / "runs"))
    assert sorted(table.seeds) == [1, 2] and all(name.startswith("xrays (") for name in table.index.get_level_values("dataset"))


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"name": "another tool"}', '{"model": "VAESim", "parameters": 3}', "\xff"])
def test_a_stray_record_is_named_and_left_out(text, done, tmp_path):
    shutil.copytree(done, tmp_path / "runs")
    (tmp_path / "runs" / "stray").mkdir()
    (tmp_path / "runs" / "stray" / "run.json").write_bytes(text.encode("latin-1"))
    with pytest.warns(UserWarning, match=r"stray.run\.json is left out"): assert len(read_runs(tmp_path / "runs")) == 3


def test_a_setting_that_is_a_score_as_well():
    "K is both: the setting may be \"elbow\", the score says how many it was; no run is left out"
    study = Path(__file__).parents[2] / "studies" / "contrastive.csv"
    runs = read_runs(study, settings=("n_clusters", "latent_dim"))
    assert len(runs) == len(read_runs(study)) and runs.n_clusters.ge(1).all()


def test_a_table_in_place_of_folders(done, tmp_path):
    "Written and read again, it gives what the folders gave; its columns are the same for every method"
    table, path = tidy(done), tmp_path / "study.csv"
    assert table.run.tolist() == sorted(p.name for p in done.iterdir()) and table.columns[:3].tolist() == ["run", "made", "commit"]
    record = json.loads((done / table.run[2] / "run.json").read_text())
    row = table.iloc[2]
    assert (row.seed, row.torch, row.seconds_fit, row.nmi, json.loads(row.settings)) == (record["seed"], record["versions"]["torch"], record["seconds"]["fit"], record["metrics"]["nmi"], record["settings"])
    assert abs(pd.Timestamp.now("UTC") - pd.Timestamp(row.made)) < pd.Timedelta("1h")
    table.assign(remark="earlier code").to_csv(path, index=False)
    settings = ("latent_dim", "channels", "n_clusters")
    read, folders = read_runs(path, settings), read_runs(done, settings)
    assert read.folder.tolist() == table.run.tolist() and set(read.remark) == {"earlier code"}
    pd.testing.assert_frame_equal(read.drop(columns=["remark", "folder"]), folders.drop(columns="folder"))
    pd.testing.assert_frame_equal(compare(read), compare(folders))


def test_gaps_and_odd_texts_outlive_the_file(done, tmp_path):
    "A name that reads as a number or as nothing, no checksum, an outcome in words"
    shutil.copytree(done, tmp_path / "runs")
    first, second, _ = sorted((tmp_path / "runs").glob("*/run.json"))
    def change(path, **words): path.write_text(json.dumps(json.loads(path.read_text()) | words))
    change(first, dataset="NA", commit="1" * 40, checksum=None, metrics=dict(scored_on="test", unscored="no labels, \"none\""), missing=dict(scores="ValueError: a, b"))
    change(second, dataset="007", checksum="00000e1", interrupted=True, signs=[dict(name="collapse", text="…", remedy="…"), dict(name="noise", text="…", remedy="…")])
    table = tidy(tmp_path / "runs")
    table.to_csv(tmp_path / "study.csv", index=False)
    assert table.signs[1] == "collapse, noise" and table.missing[0] == "scores: ValueError: a, b"
    pd.testing.assert_frame_equal(read_runs(tmp_path / "study.csv").drop(columns="folder"), read_runs(tmp_path / "runs").drop(columns="folder"))


def test_places_without_runs(done, tmp_path):
    tidy(tmp_path).to_csv(tmp_path / "none.csv", index=False)
    assert read_runs(tmp_path / "none.csv").empty and read_runs(tmp_path).empty and read_label_efficiency(tmp_path / "none.csv").empty
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="not a table of runs.*'run'"): read_runs(tmp_path / "other.csv")
    with pytest.raises(FileNotFoundError): read_runs(tmp_path / "nothing.csv")


def test_curves_beside_a_table(done, tmp_path):
    folders = read_label_efficiency(done)
    tidy(done).to_csv(tmp_path / "study.csv", index=False)
    assert read_label_efficiency(tmp_path / "study.csv").empty
    (tmp_path / "arrays").mkdir()
    kept = [pd.read_csv(p).assign(run=p.parent.name) for p in sorted(done.glob("*/label_efficiency.csv"))]
    pd.concat(kept).to_csv(tmp_path / "arrays" / "study-label_efficiency.csv.gz", index=False)
    pd.testing.assert_frame_equal(read_label_efficiency(tmp_path / "study.csv").drop(columns="folder"), folders.drop(columns="folder"))


def paper_runs():
    "Two methods with both presets on two sets' worth of seeds, and one interrupted run."
    rows = [dict(model=m, preset=p, seed=s, parameters="", dataset="films", scored_on="test", protocol=1, interrupted=False, majority_rate=.625,
                 stat_accuracy=a + s / 100, n_clusters=k, folder=f"{m}{p}{s}")
            for m, p, a, k in (("VAESim", "best", .8, 40), ("VAESim", "paper", .7, 40), ("pixels", "best", .75, 10)) for s in range(2)]
    return pd.DataFrame([*rows, rows[0] | dict(seed=7, stat_accuracy=0., interrupted=True), rows[0]])


PRINTED = {"VAESim": {"accuracy": "0.677 ± 0.001"}, "GMVAE": {"accuracy": ".625"}, "ours alone": {}}
SCORED = {"accuracy": "stat_accuracy", "K": "n_clusters"}


def test_beside_what_was_published():
    table = beside(PRINTED, paper_runs(), SCORED)
    assert table.loc[("VAESim", "accuracy")].to_dict() == {
        "published": "0.677 ± 0.001", "released": "not run", "paper": "0.705 ± 0.007 (2)", "best": "0.805 ± 0.007 (2)", "majority rate": "0.625"}
    assert table.loc[("VAESim", "K")].tolist() == ["–", "not run", "40", "40", ""]
    # a row that was neither printed nor run is left out, but not a method of which nothing was printed
    assert list(table.index) == [("VAESim", "accuracy"), ("VAESim", "K"), ("GMVAE", "accuracy"), ("ours alone", "accuracy"), ("ours alone", "K"),
                                 ("pixels", "accuracy"), ("pixels", "K")]
    nothing = beside(PRINTED, pd.DataFrame(), SCORED)
    assert set(nothing.best) == {"not run"} and nothing.published.tolist() == ["0.677 ± 0.001", ".625", "–", "–"]


@pytest.mark.parametrize("fact, value", [("dataset", "digits"), ("scored_on", "val"), ("protocol", 2), ("parameters", "beta=2")])
def test_unlike_runs_do_not_meet_in_a_cell(fact, value):
    runs = paper_runs()
    runs.loc[1, fact] = value
    with pytest.raises(ValueError, match=f"differ in {fact}"): beside(PRINTED, runs, SCORED)


def test_a_picture_beside_what_was_published():
    ax, _ = plot_beside(PRINTED, paper_runs(), {"accuracy": "stat_accuracy", "kNN": "knn_accuracy"}).axes
    lines = {round(float(s[0][0]), 3) for c in ax.collections if c.get_label() == "published" for s in c.get_segments()}
    assert lines == {.677, .625} and [t.get_text() for t in ax.get_yticklabels()] == ["VAESim", "GMVAE", "ours alone", "pixels"]
    dots = {float(x) for c in ax.collections if isinstance(c, PathCollection) for x, _ in c.get_offsets()}
    assert dots == {.8, .81, .7, .71, .75, .76}
