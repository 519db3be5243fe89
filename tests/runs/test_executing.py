"Kernels that are kept: the same bits, replaced after a failure and after some number; signals only where they can be caught."
import json
import threading

import pytest
from conftest import SMALL_RUN, same_weights

from medstrat.runs import executing
from medstrat.runs.executing import KeptKernel, RunFailed, unfinished
from medstrat.runs.records import start_run
from medstrat.training.saving import load_model

ONE = dict(OMP_NUM_THREADS="1")


def metrics(folder): return json.loads((folder / "run.json").read_text())["metrics"]


def test_a_kept_kernel_gives_the_bits_of_a_fresh_one_and_is_replaced(stripes, tmp_path):
    "A training between two of another method; the third has a fresh kernel, as the first two have used up theirs"
    kept, kernels = KeptKernel(env=ONE), []
    kept.most = 2
    for i, model in enumerate(["vaesim", "dec", "dec"]):
        small = {k: v for k, v in SMALL_RUN.items() if k != "image_size"} | (dict(pretrain_epochs=1) if model == "dec" else {})
        words = small | dict(model=model, dataset=stripes, folder=str(tmp_path / f"r{i}"), figures=False)
        kept.execute(words, tmp_path / f"r{i}")
        kernels.append(kept.manager)
    assert metrics(tmp_path / "r1") == metrics(tmp_path / "r2") != metrics(tmp_path / "r0")
    assert same_weights(*(load_model(tmp_path / name / "model.safetensors") for name in ("r1", "r2")))
    assert kernels[0] is kernels[1] is not kernels[2] and not kernels[0].is_alive()
    assert (tmp_path / "r0" / "report.ipynb").exists() and not list((tmp_path / "r0").glob("*.png"))
    with pytest.raises(RunFailed, match="Did you mean 'latent_dim'") as e: kept.execute(dict(latent_dimm=3, dataset=stripes, out=str(tmp_path)), tmp_path / "wrong")
    assert kept.manager is None and not kernels[2].is_alive() and e.value.so_far == unfinished(tmp_path / "wrong") and "ValueError" in e.value.traceback


def test_a_kernel_that_dies_is_a_failure(tmp_path):
    kept = KeptKernel(env=ONE)
    def kill():
        while kept.manager is None or not unfinished(tmp_path / "x").exists(): threading.Event().wait(.2)
        kept.manager.provisioner.process.kill()
    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(RunFailed, match="has ended in the middle"): kept.execute(dict(model="vaesim", epochs=100000, out=str(tmp_path), verbose=False), tmp_path / "x")
    assert kept.manager is None


def test_a_kernel_elsewhere_than_in_the_main_thread(monkeypatch):
    "Python lets the main thread alone decide what a signal does"
    started = []
    monkeypatch.setattr(executing, "_start", lambda manager: started.append(manager))
    monkeypatch.setattr(executing, "_manager", lambda: type("Manager", (), dict(shutdown_kernel=lambda self, now: None))())
    def work():
        with executing.kernel(): started.append("in")
    thread = threading.Thread(target=work)
    thread.start(), thread.join()
    assert started[1] == "in"


def test_without_figures_none_are_drawn(stripes, tmp_path):
    run = start_run("pixels+kmeans", stripes, out=tmp_path, n_clusters=3, verbose=False, figures=False)
    assert run.figure("data", lambda: pytest.fail("drawn")) is None and run.missing == {} and "figures" not in run.request.words()
