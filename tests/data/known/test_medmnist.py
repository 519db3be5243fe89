"MedMNIST: found, downloaded, compared with the published file; nothing is left behind by what fails."
import hashlib
import warnings

import numpy as np
import pytest
from conftest import arrays, grey

from medstrat.data.images import ImageSet
from medstrat.data.known.medmnist import medmnist_info
from medstrat.data.sources import find_source, load_dataset


pytestmark = pytest.mark.usefixtures("alone")


def test_several_labels_an_image(save, tmp_path):
    n = {"train": 20, "val": 5, "test": 5}
    many = {f"{p}_{k}": v for p, m in n.items() for k, v in {"images": grey(m, 28), "labels": np.random.RandomState(0).randint(0, 2, (m, 14))}.items()}
    save("chestmnist", **many)
    with pytest.warns(UserWarning, match="not the official file"): s = load_dataset("ChestMNIST", data_dir=tmp_path)
    assert s.train.target is None and list(s.train.table)[:2] == ["atelectasis", "cardiomegaly"]
    with pytest.raises(ValueError, match="no single label column.*atelectasis.*target="): _ = s.test.labels
    one = ImageSet(s.train.images, s.train.table, target="edema")
    assert set(one.labels) <= {0, 1}


def test_a_file_that_is_not_official_is_used_with_one_notice(save, tmp_path):
    save("pneumoniamnist", **arrays(28, train=20, val=5, test=5))
    with pytest.warns(UserWarning, match="pneumoniamnist.npz is not the official file") as caught:
        s, again = load_dataset("pneumoniamnist", data_dir=tmp_path), load_dataset("pneumoniamnist", data_dir=tmp_path)
    assert len(caught) == 1 and len(s.notices) == len(again.notices) == 1
    assert s.train.classes == {0: "normal", 1: "pneumonia"} and str(tmp_path) not in s.notices[0]
    save("pneumoniamnist_64", **arrays(28, train=20, val=5, test=5))
    with pytest.raises(ValueError, match="holds images of 28 pixels"): load_dataset("pneumoniamnist", size=64, data_dir=tmp_path)


def test_no_network_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("MEDSTRAT_DATA", str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError) as e: load_dataset("breastmnist", size=128)
    for part in ("breastmnist_128.npz is not there", "downloading it failed", str(tmp_path / "absent"), str(tmp_path / "cache"),
                 "https://zenodo.org/records/10519652/files/breastmnist_128.npz", "MEDSTRAT_DATA"): assert part in str(e.value)
    with pytest.raises(FileNotFoundError, match="download=False was given"): load_dataset("mnist", download=False)
    assert not list(tmp_path.rglob("*.npz*"))


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match="none of the folders can be written to"): load_dataset("breastmnist", data_dir=tmp_path / "file" / "sub")


def test_medmnist_download(save, serve, tmp_path, monkeypatch, capfd):
    path = save("source", **arrays(64, train=20, val=5, test=5))
    info = {**medmnist_info()["breastmnist"], "url_64": serve(tmp_path) + "source.npz", "MD5_64": hashlib.md5(path.read_bytes()).hexdigest()}
    monkeypatch.setitem(medmnist_info(), "breastmnist", info)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        s = load_dataset("breastmnist", size=64, data_dir=tmp_path / "new")
    assert s.name == "breastmnist_64" and s.notices == () and "100%" in capfd.readouterr().err
    path.unlink()  # the second time it is there
    assert len(load_dataset("breastmnist_64", data_dir=tmp_path / "new").train) == 20
    info["MD5"], info["url"] = "0" * 32, info["url_64"]
    save("source", **arrays(28, train=20))
    with pytest.raises(FileNotFoundError, match="downloading it failed .*does not match"): load_dataset("breastmnist", data_dir=tmp_path / "new")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["breastmnist_64.npz"]


def test_names_and_sizes(tmp_path):
    for text, size, want in (("Pneumonia_MNIST", 64, 64), ("pneumoniamnist_128", 28, 128), ("pneumoniamnist_128", 128, 128), ("pneumoniamnist.npz", 28, 28)):
        place = find_source(text, size, tmp_path)
        assert (place.name, place.size, place.path) == ("pneumoniamnist", want, None)
    for text, size, says in (("pneumoniamnist_64", 128, "names images of 64 pixels, but size=128"), ("breastmnist", 32, r"MedMNIST has \(28, 64, 128, 224\). For other sizes: image_size=32"),
                             ("organmnist3d", 28, "volumes are not supported")):
        with pytest.raises(ValueError, match=says): find_source(text, size, tmp_path)


@pytest.mark.filterwarnings("ignore:.* is not the official file")
def test_a_file_of_an_official_name_has_its_classes_wherever_it_lies(save):
    s = load_dataset(save("PneumoniaMNIST", **arrays(9, train=20, test=4)))   # by path, no size is promised
    assert s.name == "PneumoniaMNIST" and s.train.classes == {0: "normal", 1: "pneumonia"} and "not the official file" in s.notices[0]
    with pytest.raises(ValueError, match="size=64 chooses a file of MedMNIST"): load_dataset(s.source, size=64)
