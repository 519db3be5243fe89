"Files and folders: found in order, described in errors, fetched whole or not at all."
from pathlib import Path

import pytest
from conftest import arrays

from medstrat.data.folders import contents, data_folders, existing_folder, fetch, find_or_fetch, npz_files, visible
from medstrat.data.hashing import file_md5

pytestmark = pytest.mark.usefixtures("alone")


def test_data_folders(tmp_path, monkeypatch):
    assert data_folders(tmp_path) == data_folders(str(tmp_path)) == [tmp_path] and data_folders("~/x") == [Path("~/x").expanduser()]
    assert data_folders() == [tmp_path / "cache" / "medstrat"]
    monkeypatch.setenv("MEDSTRAT_DATA", str(tmp_path / "shared"))
    assert data_folders() == [tmp_path / "shared", tmp_path / "cache" / "medstrat"]


def test_of_two_files_with_one_name_the_first_folder_wins(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSTRAT_DATA", str(tmp_path / "shared"))
    for folder, names in ((tmp_path / "shared", ["a.npz"]), (tmp_path / "cache" / "medstrat", ["A.npz", "b.npz"])):
        folder.mkdir(parents=True)
        for name in names: (folder / name).touch()
    assert npz_files() == {"a": tmp_path / "shared" / "a.npz", "b": tmp_path / "cache" / "medstrat" / "b.npz"}


def test_what_is_in_a_folder(tmp_path):
    (tmp_path / "mixed" / "b").mkdir(parents=True)
    for name in ("a.txt", ".DS_Store"): (tmp_path / "mixed" / name).touch()
    assert [p.name for p in visible(tmp_path / "mixed")] == ["a.txt", "b"]
    assert contents(tmp_path / "mixed").endswith("mixed holds: a.txt, b/.") and contents(tmp_path / "mixed", 1).endswith("holds: a.txt and 1 more.")
    assert contents(tmp_path / "mixed" / "b").endswith("b is empty.") and existing_folder(str(tmp_path)) == tmp_path
    with pytest.raises(FileNotFoundError, match="There is no folder"): existing_folder(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match="is a file; needed is the folder"): existing_folder(tmp_path / "mixed" / "a.txt")


def test_nothing_is_left_of_a_download_that_failed(save, serve, tmp_path):
    path, url = save("good", **arrays(train=20)), serve(tmp_path) + "good.npz"
    assert fetch(url, file_md5(path), "copy.npz", tmp_path / "down").read_bytes() == path.read_bytes()
    with pytest.raises(ValueError, match="does not match"): fetch(url, "0" * 32, "wrong.npz", tmp_path / "down")
    with pytest.raises(OSError): fetch("http://127.0.0.1:9/good.npz", "0" * 32, "nobody.npz", tmp_path / "down")
    assert [f.name for f in (tmp_path / "down").iterdir()] == ["copy.npz"]


def test_found_or_fetched_or_an_error_that_says_all(tmp_path, monkeypatch):
    address, asked = "https://example.org/a.npz", []
    def get(folder):
        asked.append(folder)
        raise OSError("no route")
    with pytest.raises(FileNotFoundError) as e: find_or_fetch("a.npz", get, address, tmp_path / "x", download=False)
    for part in ("a.npz is not there, and download=False was given", f"{tmp_path / 'x'} (no such folder)", f"download {address}", "MEDSTRAT_DATA"): assert part in str(e.value)
    assert not asked
    with pytest.raises(FileNotFoundError, match=r"downloading it failed \(OSError: no route\)"): find_or_fetch("a.npz", get, address, tmp_path / "x")
    assert asked == [tmp_path / "x"] and asked[0].is_dir()
    (tmp_path / "shared").touch()   # a file: nobody can write into it, so the cache takes the download
    monkeypatch.setenv("MEDSTRAT_DATA", str(tmp_path / "shared"))
    assert find_or_fetch("a.npz", lambda folder: folder / "a.npz", address) == tmp_path / "cache" / "medstrat" / "a.npz"
    (tmp_path / "x" / "A.npz").touch()
    assert find_or_fetch("a.npz", get, address, tmp_path / "x") == tmp_path / "x" / "A.npz"
