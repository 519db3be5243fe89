"Inference: portions, contexts and precision; device and precision are those of the estimator as it is now."

import numpy as np
import pytest
import torch
from conftest import images, tiny

from medstrat.training.inference import Engine, assign, embed, encode, in_batches, over_images, stack
from medstrat.training.method import Network, build
from medstrat.training.parameters import Settings, parameters
from medstrat.training.saving import read_header


def test_what_belongs_to_the_machine_is_not_frozen(tmp_path):
    model = tiny(epochs=3).fit(images())
    expected = model.predict_proba(images())
    model.accelerator, model.settings_ = "mps", model.settings_.but(accelerator="mps")     # as fitted elsewhere
    if not torch.accelerator.is_available():
        with pytest.raises(ValueError, match="accelerator='mps'.*'auto' or 'cpu'"): model.predict(images())
    assert np.array_equal(model.set_params(accelerator="cpu").predict_proba(images()), expected)
    assert model.settings_.accelerator == "mps"
    model.save(tmp_path / "m.safetensors")
    again = type(model).load(tmp_path / "m.safetensors")
    assert again.accelerator == "auto" and np.array_equal(again.set_params(accelerator="cpu").predict_proba(images()), expected)
    assert not set(parameters(type(model), "machine")) & set(read_header(tmp_path / "m.safetensors")["settings"])


class Bright(Network):
    dim = 1
    def embed(self, x): return x.mean((1, 2, 3))[:, None]
    def encode(self, x): return (z := self.embed(x)), torch.cat([1 - z, z], 1)


def settled(**more): return Settings(**dict(accelerator="cpu", precision="32-true", batch_size=7, channels_last=True, verbose=False, random_state=0) | more)


def test_rows_beside_stay_in_step():
    net, x, beside = build(Bright, settled(), (64, 64, 1), 2), np.zeros((150, 64, 64, 1), np.uint8), np.arange(150)
    parts = list(over_images(net, x, lambda x, b: torch.stack([b, torch.full_like(b, len(x))], 1), Engine.of(settled()), beside))
    assert [len(p) for p in parts] == [64, 64, 22] and np.array_equal(stack(parts)[:, 0], beside)
    parts = list(over_images(net, x, lambda x, b: b, Engine.of(settled(batch_size=100)), beside))
    assert [len(p) for p in parts] == [100, 50]         # a larger batch is asked for


def test_half_precision_where_it_was_settled():
    net, x = build(Bright, settled(), (4, 4, 1), 2), np.zeros((3, 4, 4, 1), np.uint8)
    for precision, half in (("bf16-mixed", True), ("32-true", False)):
        seen, = in_batches(net, x, lambda x: torch.tensor(torch.is_autocast_enabled("cpu")), Engine.of(settled(precision=precision)))
        assert seen.item() is half


def test_one_pass_gives_what_two_give():
    net, x = build(Bright, settled(), (4, 4, 1), 2), np.random.default_rng(0).integers(0, 256, (300, 4, 4, 1), dtype=np.uint8)
    z, labels = encode(net, x, Engine.of(settled()))
    assert z.dtype == np.float32 and np.array_equal(z, embed(net, x, Engine.of(settled()))) and np.array_equal(labels, assign(net, x, Engine.of(settled())))
