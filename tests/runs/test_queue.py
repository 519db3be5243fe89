"Studies that are run, killed, shared and retried: every cell once, and the table of an undisturbed study."
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from conftest import ENV
from typer.testing import CliRunner

from medstrat import cli
from medstrat.runs.executing import KeptKernel
from medstrat.runs.queue import How, _suspect, in_words, run_cell, run_study, threads_for
from medstrat.runs.requests import partial
from medstrat.runs.studies import failure, lock_of, make_study, state_of
from medstrat.runs.tables import tidy

posix = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


def asked(stripes): return dict(dataset=stripes, parameters=dict(n_clusters=3, verbose=False), blocks=[
    dict(model="pixels_kmeans", seed="0-2"), dict(model="ae_kmeans", seed="0-1", parameters=dict(channels=[4, 8], epochs=1, latent_dim=4))])


def start(study, out):
    code = f"from medstrat.runs.queue import run_study; run_study({study!r}, n_jobs=1, out={str(out)!r}, figures=False)"
    return subprocess.Popen([sys.executable, "-c", code], env=ENV, stderr=subprocess.PIPE, text=True)


def finished(out): return {p.parent.name: p.stat().st_mtime_ns for p in Path(out).glob("*/run.json")}
def what_counts(table): return table.drop(columns=table.filter(regex="^(seconds_|made)").columns)


@posix
def test_killed_then_finished_by_two_at_once_it_is_the_undisturbed_study(stripes, tmp_path):
    study, out = asked(stripes), tmp_path / "killed"
    process = start(study, out)
    while not finished(out) and process.poll() is None: time.sleep(.1)
    kernel, = psutil.Process(process.pid).children()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = finished(out)
    kernel.wait(30)                             # it ends with the study
    both = [start(study, out) for _ in range(2)]
    said = [p.communicate()[1] for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    made = [line.split()[1] for text in said for line in text.splitlines() if ": finished (" in line and "finished (0 s)" not in line]
    table = run_study(study, n_jobs=1, out=tmp_path / "whole", figures=False)
    assert set(table.state) == {"finished"} and sorted(finished(out)) == sorted(table.run)
    assert sorted([*before, *made]) == sorted([*before, *dict.fromkeys(made)]) and {k: finished(out)[k] for k in before} == before, "once"
    pd.testing.assert_frame_equal(what_counts(tidy(out)), what_counts(tidy(tmp_path / "whole")), check_exact=True)
    assert not list(out.glob("*.partial")) and not list((out / ".locks").iterdir())


def test_a_failing_cell_is_noted_left_alone_and_tried_again(stripes, tmp_path, monkeypatch):
    bad, out = tmp_path / "bad.npz", tmp_path / "out"
    bad.write_bytes(b"this is no zip file")
    study = make_study(dict(model="pixels_kmeans", dataset=[str(bad), stripes], parameters=dict(n_clusters=3)), "s")
    wrong, right = (c.name for c in study.cells)
    states = lambda: run_study(study, n_jobs=1, out=out, figures=False).state.tolist()
    assert states() == ["failed", "finished"]
    note = failure(out, wrong).read_text()
    assert note.startswith("ValueError: ") and "bad.npz" in note.splitlines()[0] and "Traceback" in note and "start_run(**given)" in note
    assert {p.name for p in out.iterdir()} == {".cache", ".locks", right, f"{wrong}.failed.txt", f"{wrong}.failed.ipynb"}
    with monkeypatch.context() as m:
        m.setattr(KeptKernel, "execute", lambda *a, **k: pytest.fail("run again"))
        assert states() == ["failed", "finished"]
    shutil.copy(stripes, bad)
    assert run_study(study, n_jobs=1, out=out, figures=False, retry=True).state.tolist() == ["finished"] * 2
    assert {p.name for p in out.iterdir()} == {".cache", ".locks", right, wrong}
    assert json.loads((out / wrong / "run.json").read_text())["metrics"] == json.loads((out / right / "run.json").read_text())["metrics"]


def test_a_cell_is_left_to_whom_holds_its_lock_and_taken_from_the_dead(tmp_path, monkeypatch):
    "What a dead process has left goes; only the holder of the lock gives a run its name"
    how, ran = How(str(tmp_path), str(tmp_path)), []
    (tmp_path / ".locks").mkdir()
    def execute(self, words, folder):
        ran.append(folder)
        folder.mkdir()
        (folder / "run.json").write_text("{}")
    monkeypatch.setattr(KeptKernel, "execute", execute)
    left = partial(tmp_path / "x") / "dead" / "x.partial"
    left.mkdir(parents=True)
    with lock_of(tmp_path, "x"): assert run_cell("x", {}, how)[:2] == ("x", "elsewhere") and left.exists() and not ran
    assert run_cell("x", {}, how)[1] == "finished" and not partial(tmp_path / "x").exists() and (tmp_path / "x" / "run.json").exists()
    assert run_cell("x", {}, how)[1] == "finished" and len(ran) == 1 and ran[0] != left.parent / "x"


def test_a_cell_that_ends_its_process_three_times_is_given_up(tmp_path):
    from collections import Counter
    study, crashes = make_study(dict(model="pixels_kmeans", seed="0-1")), Counter()
    guilty, other = study.cells
    partial(tmp_path / guilty.name).mkdir()
    for _ in range(2): _suspect(study.cells, tmp_path, crashes)
    assert state_of(tmp_path, guilty.name) == "missing"
    _suspect(study.cells, tmp_path, crashes)
    assert state_of(tmp_path, guilty.name) == "failed" and state_of(tmp_path, other.name) == "missing" and "3 times" in failure(tmp_path, guilty.name).read_text()


def test_threads_and_words():
    assert [threads_for(n, 8) for n in (1, 2, 3, 8, 9)] == [8, 4, 2, 1, 1]
    assert [in_words(s) for s in (float("nan"), 89.4, 90, 3600, 7200)] == ["unknown", "89 s", "2 min", "60 min", "2.0 h"]


def test_dry_run_and_grid(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    got = CliRunner().invoke(cli.app, ["grid", "--models", "pixels_kmeans,PCA + k-means", "--seeds", "0-1,7", "-p", "n_clusters=4", "--dry-run", "--jobs", "2"])
    assert got.exit_code == 0, got.output
    assert got.output.count("missing ") == 6 and "pca-k-means-digits-best-seed7-n_clusters=4" in got.output and "6 of 6 cells are not finished; unknown with 2 at once" in got.output
    got = CliRunner().invoke(cli.app, ["study", "run", "digits", "--dry-run"])
    assert got.exit_code == 0 and got.output.count("missing ") == 9 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("words, says", [
    (["study", "run", "digitz"], "Did you mean 'digits'"), (["study", "table", "digits"], "no finished runs"), (["grid", "--models", "vaesimm"], "Did you mean 'VAESim'"),
    (["grid", "--models", "vaesim", "-p", "latent_dimm=3"], "Did you mean 'latent_dim'"), (["study", "table", "nowhere"], "there is no study 'nowhere'"),
], ids=lambda w: " ".join(w) if isinstance(w, list) else None)
def test_errors_are_one_line(words, says, refused): refused(words, says)


def test_a_study_typed(stripes, tmp_path, monkeypatch):
    import yaml
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(dict(model="pixels_kmeans", dataset=stripes, seed="0-1", parameters=dict(n_clusters=3), compare=dict(scores=["nmi"]))))
    invoke = CliRunner().invoke
    got = invoke(cli.app, ["study", "run", "mine.yaml", "--jobs", "1", "--no-figures"])
    assert got.exit_code == 0 and "2 of 2 cells are finished" in got.output, got.output
    assert "nmi" in invoke(cli.app, ["study", "table", "mine.yaml"]).output and r"\pm" in invoke(cli.app, ["study", "table", "mine.yaml", "--format", "latex"]).output
    rows = invoke(cli.app, ["study", "table", "mine.yaml", "--rows"]).output.splitlines()
    assert rows[0].startswith("run,made,commit,protocol") and len([r for r in rows if r.startswith("pixels-k-means")]) == 2
    assert "pixels + k-means" in invoke(cli.app, ["table", "runs"]).output
