"Every entry of a folder is in one of two lists, and nothing outside the folder is touched."
import os
import socket
import tempfile
import time
from pathlib import Path
from unicodedata import normalize

import pytest

from medstrat.data.cohort.listing import Found, classes_of, list_files, printable


def write(root, *names):
    for n in names:
        (root / n).parent.mkdir(parents=True, exist_ok=True)
        (root / n).write_bytes(n.encode())


def names(folder): return [f.name for f in list_files(folder)[0]]


def why(folder): return {row.file: (row.kind, row.reason) for row in list_files(folder)[1].itertuples()}


def test_a_file_is_found_with_its_place_size_and_stamp(tmp_path):
    write(tmp_path, "b/c/d.png", "a.png")
    found, passed = list_files(str(tmp_path))
    assert [(f.name, f.path, f.size) for f in found] == [("a.png", tmp_path / "a.png", 5), ("b/c/d.png", tmp_path / "b/c/d.png", 9)]
    assert list(passed) == ["file", "status", "kind", "reason"] and passed.empty
    s = os.stat(tmp_path / "a.png")
    assert found[0] == Found(tmp_path / "a.png", "a.png", 5, (s.st_mtime_ns, s.st_ctime_ns, s.st_ino))
    (tmp_path / "a.png").write_bytes(b"other")
    assert list_files(tmp_path)[0][0].stamp != found[0].stamp


def test_the_order_is_that_of_the_names(tmp_path):
    write(tmp_path, "b.png", "a/z.png", "B.png", "a.png", "10.png", "9.png", "ä.png")
    assert names(tmp_path) == sorted(["b.png", "a/z.png", "B.png", "a.png", "10.png", "9.png", "ä.png"])


def test_no_such_folder(tmp_path):
    write(tmp_path, "a.png")
    with pytest.raises(FileNotFoundError, match="There is no folder"): list_files(tmp_path / "b")
    with pytest.raises(NotADirectoryError, match="is a file"): list_files(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    assert list_files(tmp_path / "empty")[0] == []


def test_a_folder_given_through_a_link_or_dots_is_the_folder(tmp_path):
    write(tmp_path, "x/cohort/a.png", "x/other.png")
    (tmp_path / "link").symlink_to(tmp_path / "x" / "cohort")
    for given in (tmp_path / "link", tmp_path / "x" / "cohort" / ".." / "cohort"): assert [(f.name, f.path) for f in list_files(given)[0]] == [("a.png", tmp_path / "x/cohort/a.png")]


def test_links_that_lead_out(tmp_path):
    write(tmp_path, "in/a.png", "out/secret.png", "in2/near.png")
    root = tmp_path / "in"
    (root / "file.png").symlink_to(tmp_path / "out/secret.png")
    (root / "folder").symlink_to(tmp_path / "out")
    (root / "up").symlink_to("..")
    (root / "near").symlink_to(tmp_path / "in2")     # its path begins as the folder's does
    (root / "chain").symlink_to("folder/secret.png")
    (root / "gone").symlink_to(tmp_path / "nowhere")
    (root / "etc").symlink_to("/etc/passwd")
    assert names(root) == ["a.png"]
    assert {k: v[0] for k, v in why(root).items()} == dict.fromkeys(["chain", "etc", "file.png", "folder", "gone", "near", "up"], "outside")


def test_links_within_are_followed_once(tmp_path):
    write(tmp_path, "b/x.png", ".store/1", ".store/deep/2", "c/y.png")
    (tmp_path / "a").symlink_to("b")                 # sorts before what it leads to
    (tmp_path / "again.png").symlink_to("b/x.png")
    (tmp_path / "c" / "cycle").symlink_to("..")
    (tmp_path / "one.png").symlink_to(".store/1")    # hidden, so only the link reaches it
    (tmp_path / "two.png").symlink_to(".store/1")
    (tmp_path / "deep").symlink_to(".store/deep")    # below the next, and reached before it
    (tmp_path / "whole").symlink_to(".store")
    (tmp_path / "loop1").symlink_to("loop2")
    (tmp_path / "loop2").symlink_to("loop1")
    assert names(tmp_path) == ["b/x.png", "c/y.png", "deep/2", "one.png"]
    reasons = why(tmp_path)
    assert {k: v[0] for k, v in reasons.items()} == {"a": "again", "again.png": "again", "c/cycle": "again", "two.png": "again", "whole/1": "again", "whole/deep": "again", ".*": "hidden",
                                                     "loop1": "damaged", "loop2": "damaged"}
    assert "b/x.png" in reasons["again.png"][1]
    assert {f.name: f.path for f in list_files(tmp_path)[0]}["one.png"] == tmp_path / ".store/1"


def test_two_names_of_one_file_on_the_disk_are_two_files(tmp_path):
    write(tmp_path, "a.png")
    os.link(tmp_path / "a.png", tmp_path / "b.png")
    assert names(tmp_path) == ["a.png", "b.png"]


def test_hidden_entries_are_counted_in_one_row(tmp_path):
    write(tmp_path, "a.png", ".DS_Store", "s/._a.png", ".git/config", ".git/more")
    assert names(tmp_path) == ["a.png"]
    assert why(tmp_path) == {".*": ("hidden", "3 hidden, such as .DS_Store; names that begin with a dot are passed over")}


def test_what_is_no_file_is_never_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.chdir(tmp_path)   # a socket's address is short
    with socket.socket(socket.AF_UNIX) as s:
        s.bind("s")
        os.mkfifo(tmp_path / ".pipe")
        (tmp_path / "to_pipe.png").symlink_to(".pipe")
        assert names(tmp_path) == []
        assert {k: v[0] for k, v in why(tmp_path).items()} == {"pipe.png": "no image", "s": "no image", "to_pipe.png": "no image", ".*": "hidden"}


def as_nobody(work):
    "The lines that `work` returns, done by a process without rights"
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            if os.getuid() == 0: os.setgroups([]), os.setgid(65534), os.setuid(65534)
            said = "\n".join(work())
        except BaseException as e: said = repr(e)
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    with os.fdopen(read) as f: return f.read().split("\n")


def test_what_may_not_be_read_is_refused():
    with tempfile.TemporaryDirectory() as tmp:
        root = Path(tmp)
        write(root, "a.png", "closed/b.png", "open/c.png")
        for n, mode in (("", 0o755), ("closed", 0), ("open", 0o755), ("open/c.png", 0)): (root / n).chmod(mode)
        said = as_nobody(lambda: names(root) + [f"{k} {v[0]}: {v[1]}" for k, v in why(root).items()])
        (root / "closed").chmod(0o700)
    assert said == ["a.png", "closed/ refused: a folder that cannot be opened: Permission denied", "open/c.png refused: you have no permission to read it"]


def test_names_that_cannot_be_shown(tmp_path):
    raw = [b"M\xf6ller.png", b"a\nb.png", b"\x1b[2J.png", b"gnp.\xe2\x80\xae exe", "é.png".encode()]
    for n in raw:
        with open(os.path.join(os.fsencode(tmp_path), n), "wb"): pass
    found, _ = list_files(tmp_path)
    assert sorted(f.name for f in found) == sorted([r"M\xf6ller.png", r"a\nb.png".replace("n", "x0a", 1), r"\x1b[2J.png", r"gnp.\u202e exe", "é.png"])
    assert all(f.path.exists() for f in found) and all(f.name.isprintable() and f.name.encode() for f in found)
    assert printable("\ud800") == r"\ud800"   # as Windows may hold


def test_two_names_that_print_alike_are_not_mixed_up(tmp_path):
    for n in (b"\xff.png", rb"\xff.png"):
        with open(os.path.join(os.fsencode(tmp_path), n), "wb"): pass
    assert names(tmp_path) == [r"\xff.png"] and why(tmp_path)[r"\xff.png"][0] == "refused"


def test_composed_and_decomposed_umlauts_are_two_names(tmp_path):
    write(tmp_path, normalize("NFC", "ä.png"), normalize("NFD", "ä.png"))
    assert len(names(tmp_path)) == 2
    assert classes_of([normalize("NFC", "ä/1"), normalize("NFD", "ä/2"), "b/3"]) == ["ä", "ä", "b"]


def test_a_deep_tree(tmp_path):
    deep = tmp_path
    for _ in range(300): deep = deep / "d"
    deep.mkdir(parents=True)
    (deep / "a.png").touch()
    assert names(tmp_path) == ["d/" * 300 + "a.png"]


def test_many_files_are_listed_fast(tmp_path):
    for i in range(100):
        (tmp_path / f"{i:03}").mkdir()
        for j in range(100): open(tmp_path / f"{i:03}" / f"{j}.png", "wb").close()
    start = time.process_time()
    found, _ = list_files(tmp_path)
    assert len(found) == 10_000 and time.process_time() - start < 2


@pytest.mark.parametrize("given, expected", [
    (["a/1", "b/2"], ["a", "b"]), (["a/x/1", "a/y/2"], None), (["a/1", "2"], None), (["1", "2"], None), ([], None), (["a/1", "b/c/2", "b/3"], ["a", "b", "b"])])
def test_classes(given, expected): assert classes_of(given) == expected
