"Tables: one row a run, seeds averaged, unlike things apart, strays left out."
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import cohort_file, quick_run

from medstrat.runs.tables import compare, read_runs


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
    folder = Path(__file__).parents[2] / "results" / "comparison"
    runs = read_runs(folder, settings=("n_clusters", "latent_dim"))
    assert len(runs) == len(read_runs(folder)) and runs.n_clusters.ge(1).all()
