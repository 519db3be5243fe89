"""The command in a process of its own: whose kernel, whose backend, and what signals do."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import images
from test_runs import ENV, SMALL, stripes  # noqa: F401

COMMAND = [sys.executable, "-c", "from medstrat.cli import main; main()", "run"]


def run(*words, env=(), **kw): return subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, env=ENV | dict(env), **kw)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """One run in a hostile environment: another environment's kernel comes first, the backend is that of a server, Slurm's variables are set;
    and the table has one column only, the patient, who in the test part has two images each"""
    folder = tmp_path_factory.mktemp("foreign")
    kernel = folder / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(json.dumps(dict(argv=["false", "{connection_file}"], display_name="another", language="python")))
    slurm = dict(SLURM_JOB_ID="7", SLURM_JOB_NAME="cohort", SLURM_NTASKS="4", SLURM_PROCID="1", SLURM_LOCALID="1", SLURM_NODEID="0", SLURM_NNODES="1", SLURM_NODELIST="n1")
    patient = np.r_[np.arange(40), 40 + np.arange(80) // 2]
    np.savez(folder / "cohort.npz", train_images=images(120)[..., 0], train_labels=np.arange(120) % 2, train_patient=patient,
             test_images=images(40, seed=1)[..., 0], test_labels=np.arange(40) % 2, test_patient=500 + np.arange(40) // 2)
    got = run("pixels+kmeans", "--dataset", folder / "cohort.npz", "--seed", 2, "--out", "runs", "-p", "n_clusters=3", cwd=folder, env=dict(JUPYTER_PATH=str(folder / "jupyter"), MPLBACKEND="agg") | slurm)
    return got, folder / "runs"


def test_a_run_in_a_hostile_environment(foreign):
    got, out = foreign
    record, = out.glob("*/run.json")
    assert got.returncode == 0, got.stderr[-2000:]
    read = json.loads(record.read_text())
    assert (read["metrics"]["n_scored"], read["seed"]) == (40, 2) and [p.name for p in out.iterdir()] == [record.parent.name]
    assert "majority rate 0.500" in got.stdout and str(record.parent) in got.stdout and len(got.stdout.splitlines()) <= 3
    assert not got.stderr.strip(), "the kernel is the running Python; nothing is said that a user did not ask for"
    outputs = [o for c in json.loads(record.with_name("report.ipynb").read_text())["cells"] if c["cell_type"] == "code" for o in c["outputs"]]
    pictures = sum("image/png" in o.get("data", {}) for o in outputs)
    assert pictures == len(list(record.parent.glob("*.png"))) >= 5, "pictures do not depend on the backend"


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_sigterm_ends_the_command_with_143(stripes, tmp_path):  # noqa: F811
    more = {**SMALL, "epochs": 100000, "checkpoint_dir": str(tmp_path / "checkpoints")}
    words = [w for k, v in more.items() for w in ("-p", f"{k}={json.dumps(v)}")]
    process = subprocess.Popen([*COMMAND, "--dataset", stripes, "--out", "mine", *words], cwd=tmp_path, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        while not (tmp_path / "checkpoints" / "last.ckpt").exists() and process.poll() is None: time.sleep(0.2)
        process.send_signal(signal.SIGTERM)       # to the command alone, as a batch system does
        _, err = process.communicate()
    finally:
        if process.poll() is None: os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 143 and "Traceback" not in err, err[-2000:]
    assert (tmp_path / "checkpoints" / "last.ckpt").exists() and not list(Path(tmp_path / "mine").rglob("run.json"))
    with pytest.raises(ProcessLookupError): os.killpg(process.pid, 0)      # the kernel has gone as well
