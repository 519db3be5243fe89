"Devices: what PyTorch reports is obeyed, what is not there is refused, precision follows the processor. Several for one model: what stops all, and that nobody's program is run twice."
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from conftest import ENV, history, images, same_weights, tiny

from medstrat.training import fitting
from medstrat.training.devices import bfloat16_is_fast, pick_device, pick_precision
from medstrat.training.phases import NonFiniteLoss


@pytest.mark.parametrize("asked", ["auto", "gpu", "cuda", "mps"])
def test_an_accelerator_is_taken_unless_the_cpu_is_asked_for(asked, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("meta"))
    assert pick_device(asked).type == "meta" and pick_device("cpu").type == "cpu"


def test_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    assert pick_device().type == pick_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="accelerator='mps', but PyTorch finds none here. Use 'auto' or 'cpu'"): pick_device("mps")


@pytest.mark.parametrize("flags, fast", [(dict(amx_bf16=True), True), (dict(avx512_bf16=True, amx_bf16=False), True), (dict(avx2=True), False), ({}, False)])
def test_precision_follows_the_processor(flags, fast, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    cpu = torch.device("cpu")
    assert bfloat16_is_fast(cpu) is fast and pick_precision("auto", cpu) == ("bf16-mixed" if fast else "32-true")
    assert pick_precision("16-mixed", cpu) == "16-mixed"
    assert not bfloat16_is_fast(torch.device("mps")) and pick_precision("auto", torch.device("mps")) == "32-true"


# ---- several devices for one model

mlp = dict(network="mlp", devices=2)


def in_second(after, do):
    "A callback: the second process does something after so many steps"
    class Second(pl.Callback):
        def on_train_batch_start(self, trainer, module, *args):
            if module.ranks.rank == 1 and module.step == after: do(module)
    return dict(trainer_options=dict(callbacks=[Second()]))


def test_what_cannot_be_shared(untrained):
    X = images(60)
    for changes, says in [(dict(batch_size=3), "batch_size ≥ 4"), (dict(trainer_options=dict(strategy="ddp")), "give devices alone"), (dict(devices=40, batch_size=80), "only 60 images to share")]:
        with pytest.raises(ValueError, match=says): tiny(**mlp | changes).fit(X)
    with pytest.raises(ValueError, match="only 3 images to share"): tiny(**mlp).fit(X, validation=images(3))


def test_lightning_may_not_start_the_program_again():
    for options in (dict(devices=2), dict(devices=2, strategy="ddp_spawn")):
        with pytest.raises(ValueError, match="start this program once more.*give devices=2"): tiny(network="mlp", trainer_options=options).fit(images())


def test_what_does_not_train_starts_no_processes(monkeypatch, X):
    monkeypatch.setattr(fitting, "in_processes", lambda *args: pytest.fail("started"))
    assert same_weights(tiny("PCA + k-means", devices=2).fit(X), tiny("PCA + k-means").fit(X))


def test_a_nan_in_one_process(X):
    def spoil(module): next(module.net.parameters()).data.fill_(torch.nan)
    a = tiny(**mlp, epochs=3, **in_second(4, spoil))
    with pytest.raises(NonFiniteLoss, match="epoch 2"): a.fit(X)
    assert len(a.history_) == 1 and np.isfinite(a.transform(X)).all()


def test_ctrl_c_ends_all_processes(X, tmp_path):
    def press(module): os.kill(module.ranks.parent, signal.SIGINT)
    a = tiny(**mlp, epochs=2000, checkpoint_dir=tmp_path, **in_second(7, press))
    with pytest.warns(UserWarning, match="interrupted in phase 'train'.*last.ckpt"): a.fit(X)
    assert a.interrupted_ and 2 < len(a.history_) < 2000 and (tmp_path / "last.ckpt").exists()


def test_resuming_on_two_devices(X, tmp_path):
    class StopAfterOne(pl.Callback):
        def on_train_epoch_end(self, trainer, module): trainer.should_stop = True
    more = dict(mlp, epochs=3, tol=0.0, update_interval=2)
    half = tiny("DEC", **more, checkpoint_dir=tmp_path, trainer_options=dict(callbacks=[StopAfterOne()])).fit(X)
    whole, resumed = tiny("DEC", **more).fit(X, validation=X[:9]), None
    assert "val_loss" in whole.history_ and half.checkpoint_ == str(tmp_path / "last.ckpt")
    resumed = tiny("DEC", **more, trainer_options=dict()).fit(X, resume=half.checkpoint_)
    assert len(half.history_) < len(resumed.history_) and resumed.interrupted_ is False
    again = tiny("DEC", **more).fit(X, resume=half.checkpoint_)
    assert same_weights(again, resumed) and history(again).equals(history(resumed))


def test_a_process_that_is_killed(X):
    def die(module): os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RuntimeError, match="one of 2 processes that trained together was killed"): tiny(**mlp, **in_second(2, die)).fit(X)


def test_a_program_without_a_guard_runs_once(tmp_path):
    (tmp_path / "program.py").write_text("""
print("begins")
import numpy as np
from torch import nn
from medstrat.methods.vaesim import VAESim
class Mine(nn.Sequential):
    def __init__(self): super().__init__(nn.Flatten(), nn.Linear(256, 16), nn.ReLU())
X = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 1), dtype=np.uint8)
a = VAESim(n_clusters=3, epochs=1, batch_size=20, latent_dim=4, network="mlp", hidden=(16,), encoder=Mine(), devices=2, verbose=False, random_state=0, accelerator="cpu").fit(X)
print("ends", len(a.history_), type(a.module_.encoder.body).__name__)
""")
    done = subprocess.run([sys.executable, "program.py"], capture_output=True, text=True, env=ENV, cwd=tmp_path)
    assert done.stdout.split("\n")[:2] == ["begins", "ends 1 Mine"], done.stdout + done.stderr
