"MNIST: downloaded from mirrors of which the first is broken, and the real one."
import gzip
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import arrays, grey

from medstrat.data.sources import find_source, load_dataset


pytestmark = pytest.mark.usefixtures("alone")


def test_mnist_download(serve, tmp_path, monkeypatch):
    MNIST = pytest.importorskip("torchvision").datasets.MNIST
    def idx(a): return bytes([0, 0, 8, a.ndim]) + np.array(a.shape, ">i4").tobytes() + a.tobytes()
    data = {"train-images": grey(30, 28), "train-labels": (np.arange(30) % 10).astype(np.uint8), "t10k-images": grey(10, 28), "t10k-labels": np.arange(10, dtype=np.uint8)}
    resources = []
    for key, a in data.items():
        raw = gzip.compress(idx(a))
        (tmp_path / f"{key}.gz").write_bytes(raw)
        resources.append((f"{key}.gz", hashlib.md5(raw).hexdigest()))
    monkeypatch.setattr(MNIST, "mirrors", [serve(tmp_path) + "nothing/here/", serve(tmp_path)])  # the first mirror is broken
    monkeypatch.setattr(MNIST, "resources", resources)
    with pytest.warns(UserWarning, match="not the official MNIST"): s = load_dataset("mnist", data_dir=tmp_path / "new")
    assert np.array_equal(s.train.images[..., 0], data["train-images"]) and np.array_equal(s.test.labels, data["t10k-labels"]) and s.val is None
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["mnist.npz"]
    (tmp_path / "t10k-labels.gz").unlink()
    with pytest.raises(FileNotFoundError, match="mnist.npz is not there, and downloading it failed"): load_dataset("mnist", data_dir=tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


REAL = os.environ.get("MEDSTRAT_DATA")


@pytest.mark.skipif(not REAL or not (Path(REAL) / "mnist.npz").is_file(), reason="needs mnist.npz in MEDSTRAT_DATA")
def test_the_real_mnist():
    s = load_dataset("mnist", data_dir=REAL)
    assert [len(s.train), len(s.test)] == [60000, 10000] and s.val is None
    assert np.bincount(s.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.filterwarnings("ignore:.* is not the official MNIST")
def test_a_file_of_that_name_is_compared_wherever_it_lies(save, tmp_path):
    path = save("MNIST", **arrays(28, train=20, test=10))
    by_path, by_name = load_dataset(path), load_dataset("mnist", data_dir=tmp_path)
    assert (by_path.name, by_name.name) == ("MNIST", "mnist") and by_path.source == by_name.source
    assert all("MNIST.npz is not the official MNIST" in s.notices[0] for s in (by_path, by_name))
    other = load_dataset(save("digits28", **arrays(28, train=20, test=10)))
    assert other.notices == () and type(find_source(path).source).__name__ == "Mnist"
