"A fit depends on its arguments alone: not on other threads, on the process's settings, on variables of a cluster, on log levels; signals are answered in order."
import logging
import os
import platform
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from conftest import images, same_weights, tiny

from medstrat.training.isolation import buffers_kept


@pytest.fixture(scope="module")
def alone():
    return {s: tiny(random_state=s, epochs=3).fit(images()) for s in (0, 1)}


def test_fits_in_threads_give_what_each_gives_alone(alone):
    together = {}
    threads = [threading.Thread(target=lambda s=s: together.update({s: tiny(random_state=s, epochs=3).fit(images())})) for s in alone]
    for t in threads: t.start()
    for t in threads: t.join()
    assert all(same_weights(together[s], alone[s]) for s in alone)


def test_predicting_goes_on_while_another_thread_trains(alone):
    import pytorch_lightning as pl
    expected, seen = alone[1].predict_proba(images()), []
    class Ask(pl.Callback):     # asks from a second thread in the middle of a training, and waits for the answer
        def on_train_batch_end(self, *args):
            if seen: return
            t = threading.Thread(target=lambda: seen.append(alone[1].predict_proba(images())))
            t.start(); t.join(60)
            assert not t.is_alive()
    assert same_weights(tiny(epochs=3, trainer_options=dict(callbacks=[Ask()])).fit(images()), alone[0])
    assert np.array_equal(seen[0], expected)


class Setting:
    "Sets something of the process, and puts it back"
    def __init__(self, enter, leave): self.enter, self.leave = enter, leave
    def __enter__(self): self.enter()
    def __exit__(self, *args): self.leave()


SETTINGS = dict(
    float64=lambda: Setting(lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_dtype(torch.float32)),
    device=lambda: Setting(lambda: torch.set_default_device("meta"), lambda: torch.set_default_device(None)),
    deterministic=lambda: Setting(lambda: torch.use_deterministic_algorithms(True), lambda: torch.use_deterministic_algorithms(False)),
    matmul=lambda: Setting(lambda: torch.set_float32_matmul_precision("medium"), lambda: torch.set_float32_matmul_precision("highest")),
    no_grad=torch.no_grad, inference_mode=torch.inference_mode, autocast=lambda: torch.autocast("cpu", torch.bfloat16),
    numpy_errors=lambda: np.errstate(all="raise"))


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_process(name, alone):
    with SETTINGS[name](): model = tiny(epochs=3).fit(images())
    assert same_weights(model, alone[0]) and np.array_equal(model.labels_, alone[0].labels_)


@pytest.mark.parametrize("name", ["float64", "autocast", "no_grad", "deterministic"])
def test_predicting_does_not_depend_on_them(name, alone):
    expected = alone[0].predict_proba(images())
    with SETTINGS[name](): assert np.array_equal(alone[0].predict_proba(images()), expected)


def test_settings_are_given_back():
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(ValueError): tiny(n_clusters=99).fit(images())
        assert torch.get_default_dtype() == torch.float64
    finally: torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("variables", [
    dict(SLURM_JOB_ID="7", SLURM_JOB_NAME="x", SLURM_NTASKS="8", SLURM_PROCID="3", SLURM_LOCALID="3", SLURM_NODEID="0", SLURM_NNODES="1", SLURM_NODELIST="a1"),
    dict(RANK="2", LOCAL_RANK="2", WORLD_SIZE="4", GROUP_RANK="0", LOCAL_WORLD_SIZE="4", TORCHELASTIC_RUN_ID="x", MASTER_ADDR="10.0.0.1", MASTER_PORT="1234"),
    dict(KUBERNETES_PORT="tcp://127.0.0.1", MASTER_ADDR="10.0.0.1", MASTER_PORT="1", WORLD_SIZE="4", RANK="1"),
    dict(LSB_JOBID="1", LSB_DJOB_RANKFILE="/nowhere", JSM_NAMESPACE_LOCAL_RANK="1", JSM_NAMESPACE_SIZE="4", JSM_NAMESPACE_RANK="1"),
    dict(PL_TRAINER_MAX_STEPS="1", PL_TRAINER_LIMIT_TRAIN_BATCHES="1", PL_TRAINER_PRECISION="64-true", PL_TRAINER_FAST_DEV_RUN="1")],
    ids=["Slurm", "torchrun", "Kubeflow", "LSF", "Lightning"])
def test_variables_of_a_cluster(variables, alone, monkeypatch, tmp_path):
    for k, v in variables.items(): monkeypatch.setenv(k, v)
    model = tiny(epochs=3, checkpoint_dir=tmp_path).fit(images())
    assert same_weights(model, alone[0]) and (tmp_path / "last.ckpt").exists()


def test_silence(caplog, capfd, tmp_path):
    logging.getLogger("pytorch_lightning").propagate = True     # Lightning's own handler writes to stderr, ours hears everything
    with caplog.at_level(logging.DEBUG): tiny(checkpoint_dir=tmp_path).fit(images())
    assert [r for r in caplog.records if r.name.partition(".")[0] in ("pytorch_lightning", "lightning_fabric", "fsspec")] == []
    assert capfd.readouterr() == ("", "")


SCRIPT = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from conftest import images, tiny
import pytorch_lightning as pl
class Kill(pl.Callback):
    seen = 0
    def on_train_batch_end(self, *args):
        self.seen += 1
        if self.seen == 8: os.kill(os.getpid(), signal.SIGTERM)
if sys.argv[3] == "handler": signal.signal(signal.SIGTERM, lambda *a: print("the caller was told", flush=True))
model = tiny(epochs=5, checkpoint_dir=sys.argv[2], trainer_options=dict(callbacks=[Kill()]))
model.fit(images())
print("after fit", model.interrupted_, len(model.labels_))
"""


def _sent(how, folder):
    return subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT, os.path.dirname(os.path.dirname(__file__)), str(folder), how], capture_output=True, text=True)


def test_sigterm_ends_the_process_and_leaves_the_last_whole_epoch(tmp_path):
    r = _sent("default", tmp_path)
    assert r.returncode == -signal.SIGTERM and r.stdout == "", r.stderr
    resumed = tiny(epochs=5).fit(images(), resume=tmp_path / "last.ckpt")      # 3 batches an epoch: the third was not finished
    assert len(resumed.history_) == 5 and same_weights(resumed, tiny(epochs=5).fit(images()))


def test_a_handler_of_the_callers_own_is_called(tmp_path):
    r = _sent("handler", tmp_path)
    assert r.returncode == 0 and r.stdout.splitlines() == ["the caller was told", "after fit True 60"], r.stderr


def test_what_is_not_ours_is_left_alone(X):
    def state(): return (torch.get_default_dtype(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(), torch.get_num_threads(),
                         torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision(), signal.getsignal(signal.SIGINT))
    before, floats = state(), (X / 255).astype(np.float32)
    tiny().fit(floats)
    assert state() == before and (floats == (X / 255).astype(np.float32)).all()


def test_fit_in_a_thread(X, fitted):
    "Only the main thread may set signal handlers"
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(1) as pool: assert same_weights(pool.submit(lambda: tiny().fit(X)).result(), fitted["VAESim"])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this C library has no such limits")
def test_buffers_are_kept_within_and_given_back_after():
    import resource
    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(8): np.ones(6_000_000)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    before = faults()
    with pytest.raises(KeyError), buffers_kept():
        assert faults() < before / 4
        raise KeyError
    assert faults() > before / 2


def test_elsewhere_nothing_is_asked_of_the_c_library(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", lambda *_: sys.exit("there is none"))
    with buffers_kept(): pass
