"""Models saved by earlier versions load and give the embeddings they gave then.

`tests/models` has one model of each format and kind, with what it made of five images in a JSON file beside it. When the format changes,
`python tests/test_formats.py` writes those of the new one; the old ones stay as they are.
"""
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from medstrat.training.registry import get_method
from medstrat.training.saving import FORMAT, READABLE, as_now, load_model, read_header, read_tensors

folder = Path(__file__).parent / "models"
KINDS = ("VAESim", "contrastive AE")   # a parameter, and a buffer, had another name in earlier formats


def digits(n): return (load_digits().images[:n] * 15.9).astype(np.uint8)


def file(kind, version): return folder / f"{kind.lower().replace(' ', '-')}-format{version}.safetensors"


def write():
    small = dict(n_clusters=3, epochs=2, decoder_epochs=1, batch_size=20, network="mlp", hidden=(12,), latent_dim=2, projection_dim=4, random_state=0, accelerator="cpu",
                 precision="32-true", verbose=False)
    for kind in KINDS:
        cls, path = get_method(kind), file(kind, FORMAT)
        model = cls(**{k: v for k, v in small.items() if k in cls.__dataclass_fields__}).fit(digits(80))
        model.save(path)
        path.with_suffix(".json").write_text(json.dumps(said(model)) + "\n")


def said(model):
    "What a model says of five images and of itself, in numbers that do not depend on the machine's last bits"
    x = digits(5)
    found = dict(transform=model.transform(x), predict_proba=model.predict_proba(x), reconstruct=model.reconstruct(x).mean((1, 2, 3)), prototypes=model.prototypes().mean((1, 2, 3)))
    return {k: np.round(v, 5).tolist() for k, v in found.items()}


@pytest.mark.parametrize("version", READABLE)
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_each_format_loads(kind, version):
    path = file(kind, version)
    assert read_tensors(path)[0]["format"] == version
    model, then = load_model(path), json.loads(path.with_suffix(".json").read_text())
    assert said(model).keys() == then.keys()
    for name, now in said(model).items(): np.testing.assert_allclose(now, then[name], atol=1e-4, rtol=1e-4, err_msg=name)


def test_a_loaded_model_is_saved_in_the_present_format(tmp_path):
    old = load_model(file("VAESim", READABLE[0]))
    old.save(tmp_path / "m")
    assert read_header(tmp_path / "m")["format"] == FORMAT and said(load_model(tmp_path / "m")) == said(old)
    assert "condition_on" not in old.provenance_ and set(old.provenance_) <= set(type(old).__dataclass_fields__)


def test_the_classes_of_an_earlier_transfer():
    "They were told as a condition, and K was a parameter"
    header = dict(format=2, method="transfer", settings=dict(n_clusters=2, tune="head"), covariates=[dict(name="label", categories=["healthy", "ill"])], provenance=dict(n_clusters="the labels"))
    tensors = {"net.head.bias": 0, "net.bank.Q": 0, "labels_": 0}
    now, kept = as_now(header, tensors)
    assert now["classes"] == ["healthy", "ill"] and now["covariates"] is None and now["settings"] == dict(tune="head") and set(kept) == {"net.head.bias"}
    assert header["settings"]["n_clusters"] == 2 and "labels_" in tensors     # the file's content is not touched


if __name__ == "__main__": write()
