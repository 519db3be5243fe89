"Inference: device and precision are those of the estimator as it is now."

import numpy as np
import pytest
import torch
from conftest import images, tiny

from medstrat.training.parameters import parameters
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
