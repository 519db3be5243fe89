"Whole runs on folders of image files: with a table and without, through every door."
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ENV
from PIL import Image

from medstrat.data.cohort.tables import write_csv
from medstrat.runs.records import finish, start_run
from medstrat.runs.requests import Request, run_name

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def scans(tmp_path):
    "Forty-eight files of two patients each, dark and bright by turns, one of them broken, and their table"
    folder, rows = tmp_path / "scans", []
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(48):
        x = rng.integers(0, 60, (20, 24)) + 180 * (i // 2 % 2)
        Image.fromarray(x.astype(np.uint8)).save(folder / f"s{i:02}.png")
        rows.append(dict(id=f"s{i:02}", patient=f"p{i // 2}", finding=("clear", "dense")[i // 2 % 2], note="=1+1" if i == 1 else "x"))
    (folder / "s00.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    write_csv(pd.DataFrame(rows), tmp_path / "cohort.csv")
    return folder


def test_a_run_with_a_table(scans, tmp_path):
    run = start_run("pixels + k-means", dataset=str(scans), table=str(tmp_path / "cohort.csv"), target="finding", reading="{size: 16, levels: range}", out=tmp_path / "runs", n_clusters=2)
    folder = finish(run)
    record = json.loads((folder / "run.json").read_text())
    assert record["dataset"] == "scans" and record["source"] == str(scans.resolve()) and sum(record["images"].values()) == 47 and record["metrics"]["stat_accuracy"] == 1
    assert record["reading"]["size"] == 16 and record["reading"]["levels"] == "depth" and record["parameters"]["table"].endswith("cohort.csv") and record["parameters"]["reading"] == {"size": 16, "levels": "range"}
    assert any("1 files could not be read" in n for n in record["notices"]) and any("without a test split" in n and "patient" in n for n in record["notices"])
    files = pd.read_csv(folder / "files.csv")
    assert len(files) == 48 and files.status.value_counts().to_dict() == {"read": 47, "skipped": 1}
    assigned = pd.read_csv(folder / "assignments.csv")
    assert set(assigned.file) == set(files.file[files.status == "read"]) and "'=1+1" in set(assigned.note), "no text acts as a formula"
    torn = assigned.groupby("patient").split.nunique()
    assert (torn == 1).all() and "file" not in {a["column"] for a in record["associations"]}


def test_a_run_without_labels(scans, tmp_path):
    run = start_run("VAESim", dataset=str(scans), out=tmp_path / "runs", n_clusters=2, epochs=1, channels=(4, 8), image_size=16, batch_size=20, verbose=False)
    record = json.loads((finish(run) / "run.json").read_text())
    assert "unscored" in record["metrics"] and record["missing"] == {} and (run.folder / "files.csv").exists()
    assert record["reading"]["size"] == 16, "read at the size that the method works with"


def test_names_of_folders_and_what_is_refused(scans, tmp_path):
    asked = Request("kmeans", str(scans), table=str(tmp_path / "cohort.csv"), reading=dict(levels="range"))
    assert run_name(asked, asked.estimator()) == "pixels-k-means-scans-best-seed0-reading=levelsrange-table=cohort.csv"
    for words, says in [(dict(reading="{level: range}"), "Did you mean 'levels'"), (dict(reading="range"), "must be a dictionary"), (dict(dataset="digits", table="x.csv"), "belongs to a folder")]:
        with pytest.raises(ValueError, match=says): start_run(**dict(dataset=str(scans), out=tmp_path / "runs") | words)
    with pytest.raises(FileNotFoundError): start_run("kmeans", dataset=str(scans), table="none.csv", out=tmp_path / "runs")
    assert not any((tmp_path / "runs").glob("*"))


def test_the_command(scans, tmp_path):
    words = ["run", "kmeans", "--dataset", "scans", "--table", "cohort.csv", "--reading", "{size: 16}", "--target", "finding", "--out", "runs", "-p", "n_clusters=2"]
    done = subprocess.run([sys.executable, "-c", "from medstrat.cli import main; main()", *words], cwd=tmp_path, env=os.environ | ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder, = (tmp_path / "runs").iterdir()
    assert {"files.csv", "run.json", "assignments.csv", "report.ipynb"} <= {p.name for p in folder.iterdir()} and "statistical 1.000" in done.stdout
    assert "1 image files could not be read" in (folder / "report.ipynb").read_text() + done.stderr
