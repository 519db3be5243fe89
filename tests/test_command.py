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
def foreign(stripes, tmp_path_factory):  # noqa: F811
    "One run in a hostile environment: another environment's kernel comes first, the backend is that of a server, Slurm's variables are set"
    folder = tmp_path_factory.mktemp("foreign")
    kernel = folder / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(json.dumps(dict(argv=["false", "{connection_file}"], display_name="another", language="python")))
    slurm = dict(SLURM_JOB_ID="7", SLURM_JOB_NAME="cohort", SLURM_NTASKS="4", SLURM_PROCID="1", SLURM_LOCALID="1", SLURM_NODEID="0", SLURM_NNODES="1", SLURM_NODELIST="n1")
    got = run("pixels+kmeans", "--dataset", stripes, "--out", folder / "runs", "-p", "n_clusters=3", env=dict(JUPYTER_PATH=str(folder / "jupyter"), MPLBACKEND="agg") | slurm)
    return got, folder / "runs"


def test_the_kernel_is_the_running_python(foreign):
    got, out = foreign
    assert got.returncode == 0 and len(list(out.glob("*/run.json"))) == 1, got.stderr[-2000:]
    assert not got.stderr.strip(), "nothing that a user did not ask for"


def test_the_report_has_its_pictures_whatever_the_backend(foreign):
    report, = foreign[1].glob("*/report.ipynb")
    outputs = [o for c in json.loads(report.read_text())["cells"] if c["cell_type"] == "code" for o in c["outputs"]]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == len(list(report.parent.glob("*.png"))) >= 5


def test_a_table_of_patients_only(tmp_path):
    path, patient = tmp_path / "cohort.npz", np.r_[np.arange(40), 40 + np.arange(80) // 2]
    np.savez(path, train_images=images(120)[..., 0], train_labels=np.arange(120) % 2, train_patient=patient, test_images=images(40, seed=1)[..., 0], test_labels=np.arange(40) % 2, test_patient=500 + np.arange(40) // 2)
    got = run("pixels+kmeans", "--dataset", path, "--out", tmp_path / "runs", "-p", "n_clusters=3")
    record, = (tmp_path / "runs").glob("*/run.json")
    assert got.returncode == 0 and json.loads(record.read_text())["metrics"]["n_scored"] == 40


def test_a_set_without_labels_has_a_report(tmp_path):
    path = tmp_path / "bare.npz"
    np.savez(path, train_images=images(60)[..., 0], test_images=images(30, seed=1)[..., 0])
    got = run("pixels+kmeans", "--dataset", path, "--out", tmp_path / "runs", "-p", "n_clusters=3")
    folder, = (tmp_path / "runs").iterdir()
    assert got.returncode == 0 and "no scores: no image of train and test has a label" in got.stdout, got.stderr[-2000:]
    assert json.loads((folder / "run.json").read_text())["missing"] == {} and (folder / "latent_space.png").exists()


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
