"`medstrat stratify` and `medstrat assign`, typed: one line for a mistake, one folder for an answer; killed, stopped or started twice."
import filecmp
import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from conftest import ENV

from medstrat.runs.executing import LOADED_FIRST
from medstrat.runs.stratify import write_example

COMMAND = [sys.executable, "-c", "from medstrat.cli import main; main()"]
TABLES = "assignments.csv", "files.csv", "associations.csv", "artefacts.csv", "characteristics.csv", "duplicates.csv"
SMALL = ["--model", "vae+kmeans", "--clusters", "3", "--size", "32", "--n-jobs", "1", *(w for p in ("epochs=3", "channels=[4,8]", "latent_dim=4", "accelerator=cpu", "precision=32-true") for w in ("-p", p))]
posix = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


def start(*words, cwd, **kw): return subprocess.Popen([*COMMAND, *map(str, words)], cwd=cwd, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **kw)


def run(*words, cwd):
    process = start(*words, cwd=cwd)
    out, err = process.communicate()
    return process.returncode, out, err


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A cohort in a folder with a space and an umlaut, and the answer of an undisturbed command"
    where = tmp_path_factory.mktemp("die Kohorte für uns")
    write_example(where)
    words = ["stratify", "images", "--table", "table.csv", *SMALL, "--cache-dir", "cache"]
    code, out, err = run(*words, "--out", "whole", cwd=where)
    assert code == 0, err[-3000:]
    return where, words, out


def test_the_answer(place):
    where, words, out = place
    assert {*TABLES, "report.html", "record.json", "model.safetensors", "history.csv", "stratify.ipynb"} == {p.name for p in (where / "whole").iterdir()}
    assert "60 images in 3 subgroups (given)" in out and "report.html" in out and not list(where.glob("*unfinished*")) and not list(where.glob("*.partial"))
    cells = json.loads((where / "whole" / "stratify.ipynb").read_text())["cells"]
    outputs = [o for c in cells if c["cell_type"] == "code" for o in c["outputs"]]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 4 and not any(o["output_type"] == "error" for o in outputs)
    assert "missing" not in json.dumps(outputs)


def test_the_same_question_is_there_and_another_is_refused(place):
    where, words, _ = place
    before = {p.name: p.stat().st_mtime_ns for p in (where / "whole").iterdir()}
    code, out, _ = run(*words, "--out", "whole", cwd=where)
    assert code == 0 and "is there already" in out and "60 images" in out
    code, out, err = run(*words, "--seed", "1", "--out", "whole", cwd=where)
    assert code == 1 and "seed (there: 0, asked: 1)" in err and err.startswith("medstrat: ") and not out
    assert before == {p.name: p.stat().st_mtime_ns for p in (where / "whole").iterdir()}


@pytest.mark.parametrize("words, says", [
    (["--model", "vaed"], "Did you mean 'VaDE'"), (["--model", "transfer"], "learns from labels"), (["--clusters", "one"], "clusters='one'"),
    (["-p", "latent_dimm=4"], "Did you mean 'latent_dim'"), (["-p", "size=4"], "write --size"), (["-p", "out=4"], "write --out"), (["-p", "clusters=4"], "write --clusters"),
    (["--levels", "depht"], "levels"), (["--reading", "aspekt=pad"], "Did you mean 'aspect'"), (["--reading", "aspect"], "name=value"),
    (["--seed", "-1"], "seed"), (["--pseudonymise", "--key-file", "report/key.csv"], "is handed on"),
], ids=lambda w: " ".join(w) if isinstance(w, list) else None)
def test_errors_are_one_line(words, says, refused):
    refused(["stratify", "images", *words], says)


def test_an_error_inside_the_notebook_leaves_no_half_folder(place):
    where, words, _ = place
    code, out, err = run("stratify", "nowhere", *SMALL, "--out", "not/yet/there/none", cwd=where)   # the notebook so far needs a place
    last = err.splitlines()[-1]
    assert code == 1 and last.startswith("medstrat: ") and "nowhere" in last and "Traceback" not in err and not out
    assert [p.name for p in (where / "not/yet/there").iterdir()] == ["none.unfinished.ipynb"]


def test_a_warning_in_the_notebook_is_a_line_for_a_reader():
    code = LOADED_FIRST.replace("kernelapp.launch_new_instance()", "warnings.warn('one cluster is empty')")
    got = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True)
    assert got.stderr == "medstrat: one cluster is empty\n" and got.returncode == 0


def wait_for(path, process):
    while not path() and process.poll() is None: time.sleep(.05)


@posix
@pytest.mark.parametrize("how, status", [("kill", -signal.SIGKILL), ("term", 143), ("ctrl-c", 130)])
def test_stopped_in_the_training_the_next_start_goes_on(place, how, status):
    where, words, _ = place
    name = f"stopped-{how}"
    words = [*words, "-p", "epochs=12", "--out", name]
    checkpoint = lambda: list((where / f"{name}.partial").glob(".work/fit.part-*/checkpoints/last.ckpt"))
    process = start(*words, cwd=where)
    wait_for(checkpoint, process)
    if how == "term": process.send_signal(signal.SIGTERM)    # to the command alone, as a batch system does
    else: os.killpg(process.pid, signal.SIGKILL if how == "kill" else signal.SIGINT)
    out, err = process.communicate()
    if process.returncode == 0: pytest.skip("it was finished before the signal came")
    assert process.returncode == status and "Traceback" not in err, err[-3000:]
    assert not (where / name).exists()
    if how == "ctrl-c": assert "goes on" in err or "go on" in err
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:      # a killed command's kernel sees that its parent has gone
        code, _, err = run(*words, cwd=where)
        if "somebody else is working" not in err: break
    assert code == 0, err[-3000:]
    if not (where / "twelve").exists(): assert run(*words[:-1], "twelve", cwd=where)[0] == 0
    assert all(filecmp.cmp(where / "twelve" / table, where / name / table, shallow=False) for table in TABLES)


@posix
def test_two_at_once_the_second_is_told(place):
    where, words, _ = place
    words = [*words, "-p", "epochs=12", "--out", "twice"]
    process = start(*words, cwd=where)
    wait_for(lambda: (where / "twice.partial" / ".work" / "journal.json").exists(), process)
    code, _, err = run(*words, cwd=where)
    assert code == 1 and "somebody else is working" in err and len(err.splitlines()) == 1 or process.poll() is not None
    assert process.wait() == 0 and (where / "twice" / "stratify.ipynb").exists()
    process.communicate()


def test_new_patients(place):
    where, _, _ = place
    words = ["assign", "whole/model.safetensors", "images", "--table", "table.csv", "--cache-dir", "cache", "--out", "assigned"]
    code, out, err = run(*words, cwd=where)
    assert code == 0, err[-3000:]
    assert "unlike anything seen" in out and "p = 1" in out and len(pd.read_csv(where / "assigned" / "assignments.csv")) == 60
    assert run(*words, cwd=where)[:2] == (0, out)
    code, out, err = run("assign", "whole/assignments.csv", "images", "--out", "other", cwd=where)
    assert code == 1 and "is not a model saved by medstrat" in err and len(err.splitlines()) == 1 and not (where / "other").exists()
