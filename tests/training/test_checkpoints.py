"Checkpoints: what is none is refused by name and runs no code; what differs is said with both values."
import json
import os
import pickle

import pytest
import torch
from conftest import images, tiny

from medstrat.data.hashing import seal
from medstrat.training.checkpoints import read_checkpoint, usable_folder, what_differs


@pytest.fixture
def checkpoint(X, tmp_path):
    tiny(checkpoint_dir=tmp_path / "c").fit(X)
    return tmp_path / "c" / "last.ckpt"


def test_resume_with_images_of_another_size_is_refused(checkpoint):
    with pytest.raises(ValueError, match="another training: size of an image.*image_size") as e: tiny(image_size=None).fit(images(side=12), resume=checkpoint)
    assert len(str(e.value)) < 600


def test_resume_from_what_is_no_checkpoint(X, checkpoint, tmp_path, fitted):
    with pytest.raises(FileNotFoundError): tiny().fit(X, resume=tmp_path / "nowhere.ckpt")
    torch.save(dict(a=1), tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match="not a checkpoint"): tiny().fit(X, resume=tmp_path / "foreign.ckpt")
    torch.save(torch.ones(2), tmp_path / "tensor.ckpt")
    with pytest.raises(ValueError, match="not a checkpoint"): tiny().fit(X, resume=tmp_path / "tensor.ckpt")
    whole = checkpoint.read_bytes()
    for name, content in dict(cut=whole[: len(whole) // 2], empty=b"", text=b"hello").items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="not a checkpoint"): tiny().fit(X, resume=tmp_path / name)
    fitted["VAESim"].save(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="not a checkpoint"): tiny().fit(X, resume=tmp_path / "model.safetensors")


def test_a_checkpoint_runs_no_code(X, checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path / "evil"),)
    torch.save(dict(state, evil=Evil()), checkpoint)
    with pytest.raises((ValueError, pickle.UnpicklingError)): tiny().fit(X, resume=checkpoint)
    assert not (tmp_path / "evil").exists()


def test_whole_files_with_something_else(tmp_path):
    path = tmp_path / "x.ckpt"
    with pytest.raises(FileNotFoundError, match="x.ckpt"): read_checkpoint(path)
    for content in (dict(w=torch.zeros(3)), dict(medstrat=3), [1, 2]):
        torch.save(content, path); seal(path)
        with pytest.raises(ValueError, match=r"not a checkpoint written by `fit` \(\w+Error\). Give the last.ckpt"): read_checkpoint(path)
    with pytest.raises(ValueError, match=r"not a checkpoint written by `fit` \(IsADirectoryError\)"): read_checkpoint(tmp_path)


def test_folders_that_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file", tmp_path / "file" / "below", 7.5):
        with pytest.raises(ValueError, match="cache_dir=.* cannot be used: nothing can be written there"): usable_folder(bad, "cache_dir")
    usable_folder(tmp_path / "a" / "b", "checkpoint_dir")
    assert list((tmp_path / "a").rglob("*")) == [tmp_path / "a" / "b"]      # made, and nothing left in it


def test_what_differs():
    saved = dict(method="VAE", n=60, labels=None, seed=0, settings=json.dumps(dict(epochs=1, lr=0.1)))
    assert what_differs(saved, saved) == [] == what_differs(dict(saved, phase="not asked"), saved)
    assert what_differs(saved, dict(saved, labels=7)) == ["labels (their check sum) (saved: None, given: 7)"]
    assert what_differs(saved, dict(saved, seed=1, settings=json.dumps(dict(lr=0.1, beta=2)))) == [
        "random_state (saved: 0, given: 1)", "beta (saved: 'not there', given: 2)", "epochs (saved: 1, given: 'not there')"]
    assert what_differs({}, saved)[0] == "method (saved: None, given: 'VAE')"      # by a version without fingerprints
