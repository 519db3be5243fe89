"Whole runs on collections in folders."
import json

import pytest

from medstrat.runs.records import finish, start_run


pytestmark = pytest.mark.usefixtures("alone")


@pytest.mark.parametrize("kind", ["brats", "refuge"])
def test_a_run(kind, brats, refuge, tmp_path):
    folder = {"brats": brats[0], "refuge": refuge}[kind]
    run = start_run("pixels + k-means", dataset=str(folder), out=tmp_path / "runs", n_clusters=2, image_size=16)
    record = json.loads((finish(run) / "run.json").read_text())
    assert record["dataset"] == kind and record["images"] == {"brats": {"train": 32, "test": 8}, "refuge": {"train": 9, "test": 3}}[kind]
    assert "published with" in record["notices"][0] and 0 <= record["metrics"]["stat_accuracy"] <= 1
    if kind == "refuge": assert record["metrics"]["stat_accuracy"] == 1   # bright and dark photographs: not to be missed


def test_a_run_on_her2(her2, tmp_path):
    run = start_run("pixels + k-means", dataset=str(her2[0]), out=tmp_path / "runs", n_clusters=3, image_size=16)
    record = json.loads((finish(run) / "run.json").read_text())
    assert record["dataset"] == "her2" and sum(record["images"].values()) == 36 and record["images"]["test"] % 3 == 0
    assert record["metrics"]["stat_accuracy"] == 1   # dark, gray and bright patches: not to be missed
