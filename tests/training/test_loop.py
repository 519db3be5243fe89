"The loop: histories, rates, early stopping, precisions, two Ctrl-C, losses that explode, the trainer's options."
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import images, same_weights, tiny
from pytorch_lightning.plugins.environments import LightningEnvironment
from sklearn.base import clone
from torch import nn

from medstrat.training.batches import ImageBatches
from medstrat.training.loop import PhaseModule, make_trainer, run_phase
from medstrat.training.phases import NonFiniteLoss, Phase


def noise(n=30): return np.random.default_rng(1).integers(0, 256, (n, 16, 16), dtype=np.uint8)   # as validation images: learning stripes makes them worse sooner or later


def test_history(X):
    a = tiny("VAESim", epochs=3).fit(X, validation=images(20, seed=1))
    h = a.history_
    assert len(h) == a.n_iter_ == 3 and list(h.epoch) == [1, 2, 3] and {"phase", "loss", "reconstruction", "kl", "val_loss", "val_reconstruction", "lr", "seconds"} <= set(h)
    np.testing.assert_allclose(h.loss, h.reconstruction + a.settings_.beta * h.kl, rtol=1e-4)
    assert "val_loss" not in tiny("VAESim").fit(X).history_
    assert a.interrupted_ is False


def test_history_is_the_mean_over_images(X):
    "With a frozen network (lr → 0) and no noise, the epoch's loss is the loss of all images, however they are cut"
    def loss(batch_size): return tiny("AE + k-means", norm="none", lr=1e-30, epochs=1, batch_size=batch_size).fit(X[:50]).history_.loss[0]
    assert loss(7) == pytest.approx(loss(50), rel=1e-4)


def test_training_learns(X):
    h = tiny("AE + k-means", epochs=15, lr=1e-2).fit(X).history_.loss
    assert h.iloc[-1] < 0.6 * h.iloc[0]


def test_learning_rates(X):
    "At an epoch's end; a drop comes after so many epochs"
    rates = {schedule: tiny(lr=1e-3, lr_schedule=schedule, lr_drop_every=2, epochs=10).fit(X).history_.lr for schedule in ("constant", "cosine", "step")}
    np.testing.assert_allclose(rates["constant"], 1e-3)
    assert (rates["cosine"].diff().dropna() < 0).all() and rates["cosine"].iloc[-1] < 5e-5
    np.testing.assert_allclose(rates["step"], 1e-3 * 0.2 ** (np.arange(1, 11) // 2))


def test_early_stopping_keeps_the_best(X):
    a = tiny("AE + k-means", lr=0.02, lr_schedule="constant", epochs=40, patience=2).fit(X, validation=noise())
    best = int(a.history_.val_loss.argmin())
    assert len(a.history_) < 40 and len(a.history_) == best + 1 + 2 and a.interrupted_ is False
    assert same_weights(a, clone(a).set_params(epochs=best + 1, patience=None).fit(X))
    last = clone(a).set_params(epochs=6, patience=None)
    assert same_weights(clone(last).fit(X, validation=noise()), last.fit(X))     # without patience, the last ones


def test_precisions(X):
    exact = tiny(precision="32-true").fit(X)
    half = tiny(precision="bf16-mixed").fit(X)
    assert not same_weights(exact, half) and all(p.dtype == torch.float32 for p in half.module_.parameters())
    assert half.transform(X).dtype == half.predict_proba(X).dtype == half.prototypes().dtype == np.float32
    np.testing.assert_allclose(half.history_.loss, exact.history_.loss, rtol=0.05)
    assert (tiny(precision="auto").fit(X).labels_ >= 0).all()


@pytest.mark.parametrize("precision", ["fp8", "64-true", "bf16-true", "16-true"])
def test_other_precisions_work_or_are_refused(precision, X):
    try: a = tiny(precision=precision, epochs=1).fit(X)
    except ValueError as e: assert "precision" in str(e).lower() or precision in str(e)
    else: assert a.transform(X).dtype == np.float32


def test_bad_accelerator(X):
    with pytest.raises(Exception, match="quantum"): tiny(accelerator="quantum").fit(X)


@pytest.mark.parametrize("network", ["conv", "mlp"])
def test_memory_layout_does_not_matter(network, X):
    a, b = (tiny(network=network, channels_last=c).fit(X) for c in (True, False))
    np.testing.assert_allclose(a.transform(X), b.transform(X), atol=2e-2, rtol=1e-2)
    np.testing.assert_allclose(a.history_.loss, b.history_.loss, rtol=1e-3)
    assert network == "mlp" or a.module_.encoder.body[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_two_ctrl_c_raise_keyboard_interrupt(tmp_path):
    "The second Ctrl-C means it: the program ends as others do, by KeyboardInterrupt"
    code = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import pytorch_lightning as pl
from conftest import images, tiny
class Twice(pl.Callback):
    def on_train_batch_end(self, *a):
        for _ in range(2): signal.raise_signal(signal.SIGINT)   # to this thread: of two that wait for another thread, one would be lost
try: tiny(epochs=50, trainer_options=dict(callbacks=[Twice()])).fit(images())
except KeyboardInterrupt: print("KeyboardInterrupt")
except BaseException as e: print(repr(e))
"""
    done = subprocess.run([sys.executable, "-c", code, os.path.dirname(os.path.dirname(__file__))], capture_output=True, text=True)
    assert done.stdout.split() == ["KeyboardInterrupt"], done.stdout + done.stderr[-2000:]


class Poison(nn.Module):
    "A decoder whose output becomes NaN (or infinite) after some batches"
    def __init__(self, after, value):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.after, self.value = nn.Linear(4, 256), after, value
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, z):
        if self.training: self.seen += 1
        return self.linear(z).unflatten(1, (1, 16, 16)) * (self.value if self.training and self.seen > self.after else 1)


@pytest.mark.parametrize("after, epochs_done", [(0, 0), (4, 1), (6, 2)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite(value, after, epochs_done, X):
    own = Poison(after, value)
    a = tiny("VAE + k-means", decoder=own, epochs=4, likelihood="bernoulli")
    with pytest.raises(NonFiniteLoss, match=rf"'reconstruction'.*(nan|inf).*phase 'train', epoch {epochs_done + 1}, step {after + 1}"): a.fit(X)
    assert isinstance(NonFiniteLoss(), FloatingPointError) and a.interrupted_ is True and len(a.history_) == a.n_iter_ == epochs_done
    assert all(v.isfinite().all() for v in a.module_.state_dict().values())
    assert np.isfinite(a.transform(X)).all() and (a.predict(X) == a.labels_).all()
    clean = tiny("VAE + k-means", decoder=Poison(10**6, value), epochs=4, likelihood="bernoulli")
    rows = clean.fit(X).history_
    if epochs_done: pd.testing.assert_series_equal(a.history_.loss, rows.loss[:epochs_done])     # the epochs before were not touched


def test_the_term_that_failed_is_named(X):
    with pytest.raises(NonFiniteLoss, match="'kl'"): tiny("VAE + k-means", prior_std=1e-30).fit(X)


def test_weights_that_explode_in_the_last_step_are_noticed(X):
    "They are not `good`, though the loss before that step was finite"
    a = tiny("AE + k-means", lr=1e30, batch_size=60, epochs=1)
    with pytest.raises(NonFiniteLoss, match="learning rate"): a.fit(X)
    assert all(v.isfinite().all() for v in a.module_.state_dict().values()) and np.isfinite(a.transform(X)).all()


def test_progress_bar_can_be_silenced(X, capfd):
    tiny(epochs=1).fit(X)
    assert capfd.readouterr() == ("", "")
    tiny(epochs=1, verbose=True).fit(X)
    err = capfd.readouterr().err
    assert "train" in err and "loss" in err


def test_trainer_options_reach_the_trainer(X):
    import pytorch_lightning as pl
    class Spy(pl.Callback):
        def on_train_start(self, trainer, module): self.value = trainer.gradient_clip_val
    spy = Spy()
    options = dict(gradient_clip_val=0.25, callbacks=[spy])
    tiny(epochs=1, trainer_options=options).fit(X)
    assert spy.value == 0.25 and options["callbacks"] == [spy]
    with pytest.raises(TypeError, match="gradient_clip"): tiny(epochs=1, trainer_options=dict(gradient_clip=1)).fit(X)


# ---- one phase

class Brightness(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 1)

    def loss(self, batch, at):
        error = self.layer(batch.x.flatten(1)).squeeze(1) - batch.x.mean((1, 2, 3))
        return dict(loss=error.square().mean(), error=error.abs().mean())


def small(): return np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)


def test_what_a_loss_sees():
    seen = []
    module = PhaseModule(Brightness(), Phase("look", 2, lambda batch, at: seen.append((batch, at)), memory="a memory"), seed=0, steps=8)
    module.loss(ImageBatches(small(), labels=np.arange(64), covariates=np.ones((64, 2), np.float32)).__getitems__([5, 3]))
    (batch, at), = seen
    assert batch.x.shape == (2, 1, 8, 8) and batch.told.covariates.tolist() == [[1, 1], [1, 1]] and batch.told.assignments is None
    assert (at.epoch, at.epochs, at.step, at.steps, at.progress, at.memory) == (0, 2, 0, 8, 0, "a memory")


def test_a_phase_without_a_loss_is_refused():
    with pytest.raises(TypeError, match="the phase 'nothing' has no loss"): run_phase(Brightness(), Phase("nothing", 1), ImageBatches(small()), rows=[], seed=0, batch_size=16, accelerator="cpu")


def test_the_callers_random_numbers_are_left_alone():
    net = Brightness()
    torch.manual_seed(3); a = torch.rand(1)
    torch.manual_seed(3); run_phase(net, Phase("fit", 1, net.loss), ImageBatches(small()), rows=[], seed=0, batch_size=16, accelerator="cpu")
    assert torch.rand(1) == a


def test_what_was_frozen_can_learn_again_after_a_nan():
    net = Brightness()
    def broken(batch, at): return dict(loss=net.loss(batch, at)["loss"] * torch.nan)
    net.other = nn.Linear(2, 2)
    with pytest.raises(NonFiniteLoss): run_phase(net, Phase("fit", 1, broken, learns=("layer",)), ImageBatches(small()), rows=[], seed=0, batch_size=16, accelerator="cpu")
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("options", [dict(devices=1), dict(devices="1"), dict(devices=1, plugins=LightningEnvironment())])
def test_a_trainer_stands_alone(options, monkeypatch):
    monkeypatch.setenv("PL_TRAINER_MAX_EPOCHS", "7")
    trainer = make_trainer(options, accelerator="cpu", logger=False, max_epochs=3, enable_checkpointing=False)
    assert trainer.max_epochs == 3 and trainer.world_size == 1


def test_a_trainer_takes_the_users_strategy():
    trainer = make_trainer(dict(strategy="ddp"), accelerator="cpu", devices=1, logger=False)
    assert type(trainer.strategy).__name__ == "DDPStrategy"
