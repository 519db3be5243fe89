"The store: what is decoded is decoded once, whatever happens in between, and is what `decode` gives under the cohort's rules."
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medstrat.data.cohort import store, workers
from medstrat.data.cohort.decoding import decode
from medstrat.data.cohort.listing import list_files
from medstrat.data.cohort.rules import Rules, Skipped
from medstrat.data.cohort.store import Unreadable, cohorts_folder, forget, read_all, store_folder
from medstrat.data.sources import forget_notices

S16 = Rules(size=16)


def picture(path, seed=0, shape=(20, 24), kind=np.uint8, high=None):
    high = np.iinfo(kind).max if high is None else high
    Image.fromarray(np.random.default_rng(seed).integers(0, high, shape, endpoint=True).astype(kind)).save(path)


def fill(folder, n=12, **kw):
    folder.mkdir(exist_ok=True)
    for i in range(n): picture(folder / f"p{i:03}.png", i, **kw)
    return folder


def read(folder, rules=S16, **kw):
    kw = dict(cache_dir=folder.parent / "cache", n_jobs=1, progress=False) | kw
    return read_all(folder, list_files(folder)[0], rules, **kw)


def expected(folder, rules):
    "Every picture, decoded one by one"
    return np.concatenate([decode(f.path, rules).pictures for f in list_files(folder)[0]])


@pytest.fixture
def folder(tmp_path): return fill(tmp_path / "coh ört")


@pytest.fixture
def decoded(monkeypatch):
    "The names of the files that are decoded, in order"
    seen = []
    def spy(path, rules):
        seen.append(Path(path).name)
        return decode(path, rules)
    monkeypatch.setattr(workers, "decode", spy)
    return seen


@pytest.fixture
def mixed(folder):
    "Gray, deep, coloured, and gray stored as colour"
    for i in (1, 5): picture(folder / f"p{i:03}.png", i, kind=np.uint16, high=1000 * (i + 1))
    picture(folder / "p003.png", 3, shape=(20, 24, 3))
    same = np.random.default_rng(9).integers(0, 256, (30, 20, 1), np.uint8)
    Image.fromarray(np.repeat(same, 3, 2)).save(folder / "p004.png")
    return folder


def test_the_store_is_what_decode_gives(mixed):
    s = read(mixed)
    assert s.images.shape == (12, 16, 16, 1) and s.images.dtype == np.uint8 and isinstance(s.images, np.memmap)
    assert (s.rules.colour, s.rules.levels) == ("gray", "range") and 5500 < s.rules.high <= 6000
    assert np.array_equal(s.images, expected(mixed, s.rules))
    assert s.records.file.to_list() == sorted(s.records.file) and s.records["first"].to_list() == list(range(12))
    assert s.records.how[3] and s.records.how[4], "what was converted is noted"


def test_processes_give_the_same(mixed, monkeypatch):
    one = read(mixed)
    monkeypatch.setattr(workers, "FEW", 0)
    two = read(mixed, n_jobs=2, cache_dir=mixed.parent / "other")
    assert np.array_equal(one.images, two.images) and one.records.equals(two.records) and one.rules == two.rules


def test_colour_where_most_are(folder):
    for i in range(10): picture(folder / f"p{i:03}.png", i, shape=(20, 24, 3))
    s = read(folder)
    assert s.images.shape == (12, 16, 16, 3) and np.array_equal(s.images, expected(folder, s.rules)) and s.records.how[11]
    gray = read(folder, S16.but(colour="gray"))
    assert gray.images.shape[-1] == 1 and gray.where != s.where and np.array_equal(gray.images, expected(folder, gray.rules))


# ---- reading again

def test_what_has_not_changed_is_not_read(mixed, decoded, monkeypatch):
    first = read(mixed)
    decoded.clear()
    monkeypatch.setattr(workers, "_file_sum", lambda path: pytest.fail("not even its content is looked at"))
    again = read(mixed)
    assert decoded == [] and np.array_equal(first.images, again.images) and first.records.equals(again.records)


def test_a_touched_file_is_known_by_its_content(folder, decoded):
    first = read(folder)
    pictures = [p.stat() for p in first.where.glob("*.raw")]
    decoded.clear()
    os.utime(folder / "p003.png", ns=(1, 1))
    again = read(folder)
    assert decoded == [] and np.array_equal(first.images, again.images)
    assert [p.stat() for p in first.where.glob("*.raw")] == pictures, "nothing is copied where the order is the same"
    read(folder)
    assert decoded == []


def test_a_changed_a_new_and_a_lost_file(folder, decoded):
    first = read(folder)
    old = np.array(first.images)
    decoded.clear()
    picture(folder / "p002.png", 99)
    picture(folder / "p005b.png", 98)
    (folder / "p009.png").unlink()
    s = read(folder)
    assert decoded == ["p002.png", "p005b.png"] and s.records.file.to_list() == [p.name for p in sorted(folder.iterdir())]
    assert np.array_equal(s.images, expected(folder, s.rules)) and np.array_equal(first.images, old), "who has the old pictures keeps them"
    assert len(list(s.where.glob("*.raw"))) == len(list(s.where.glob("*.jsonl"))) == 1


def test_same_size_and_time_but_another_file(folder, decoded):
    read(folder)
    path = folder / "p000.png"
    stat = path.stat()
    Image.fromarray(np.random.default_rng(50).integers(0, 256, (20, 24), np.uint8)).save(folder / "new.bin", "PNG")
    content = (folder / "new.bin").read_bytes()
    (folder / "new.bin").unlink()
    path.write_bytes(content[:stat.st_size])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    decoded.clear()
    read(folder, max_failed=1)
    assert "p000.png" in decoded, "the time of the last change of its entry tells"


def test_a_wider_range_is_another_picture_of_deep_files_only(mixed, decoded):
    read(mixed)
    decoded.clear()
    picture(mixed / "p011.png", 3, kind=np.uint16, high=40_000)
    s = read(mixed)
    assert sorted(set(decoded)) == ["p001.png", "p003.png", "p005.png", "p011.png"] and np.array_equal(s.images, expected(mixed, s.rules))


def test_the_majority_changes(folder, decoded):
    read(folder)
    for i in range(8): picture(folder / f"p{i:03}.png", i, shape=(20, 24, 3))
    s = read(folder)
    assert s.images.shape[-1] == 3 and np.array_equal(s.images, expected(folder, s.rules))
    for i in range(5): picture(folder / f"p{i:03}.png", i)
    s = read(folder)
    assert s.images.shape[-1] == 1 and np.array_equal(s.images, expected(folder, s.rules))


def test_what_lacked_a_decoder_is_tried_again(folder, monkeypatch, decoded):
    def lacking(path, rules):
        if path.name == "p003.png": raise Skipped("unsupported", "needs pip install something")
        return decode(path, rules)
    with monkeypatch.context() as m:
        m.setattr(workers, "decode", lacking)
        s = read(folder)
    assert s.records.kind[3] == "unsupported" and len(s.images) == 11 and s.records["first"].to_list() == [0, 1, 2, -1, *range(3, 11)]
    decoded.clear()
    s = read(folder)
    assert decoded == ["p003.png"] and len(s.images) == 12 and np.array_equal(s.images, expected(folder, s.rules))


# ---- killed

class Killed(BaseException): pass


@pytest.mark.parametrize("seed", range(24))
def test_a_killed_reading_goes_on(mixed, tmp_path, monkeypatch, decoded, seed):
    "It stops after any number of batches, in the middle of any write; nothing that was finished is lost, the result is the same"
    rng, real, left = np.random.default_rng(seed), store._Journal.append, int(np.random.default_rng(seed).integers(0, 17))
    whole = read(mixed, cache_dir=tmp_path / "whole")
    total = len(decoded)
    decoded.clear()
    def append(self, *args):
        nonlocal left
        if left == 0: raise Killed
        left -= 1
        real(self, *args)
    with monkeypatch.context() as m:
        m.setattr(store._Journal, "append", append)
        try: read(mixed)
        except Killed: pass
    where = store_folder(mixed, S16, tmp_path / "cache")
    torn = seed % 3
    if torn and (where / "journal.jsonl").exists():
        path = where / "journal.jsonl" if torn == 1 else next(where.glob("gray-*"), where / "journal.jsonl")
        os.truncate(path, int(rng.integers(0, path.stat().st_size + 1)))
    else:
        for p in where.glob("*.raw"): p.open("ab").write(b"half a picture") if (where / "journal.jsonl").exists() else None
    done = len(decoded)
    s = read(mixed)
    assert np.array_equal(s.images, whole.images) and s.records.equals(whole.records) and s.rules == whole.rules
    if not torn: assert len(decoded) <= total + 1, f"{done} were decoded before"
    assert {p.name.partition("-")[0] for p in s.where.iterdir()} <= {"lock", "meta.json", "records", "gray", "pictures"}


SCRIPT = """
import sys
from medstrat.data.cohort.listing import list_files
from medstrat.data.cohort.rules import Rules, Skipped
from medstrat.data.cohort.store import read_all
folder, cache = sys.argv[1:]
s = read_all(folder, list_files(folder)[0], Rules(size=16), cache, n_jobs=2)
print(len(s.images), "done")
"""


def test_a_script_without_a_main_guard_and_a_real_kill(tmp_path):
    folder = fill(tmp_path / "many", 300)
    (tmp_path / "script.py").write_text(SCRIPT)
    args = [sys.executable, str(tmp_path / "script.py"), str(folder), str(tmp_path / "cache")]
    root = str(Path(store.__file__).parents[3])
    env = os.environ | dict(PYTHONPATH=root)
    killed = subprocess.Popen(args, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    journal = store_folder(folder, S16, tmp_path / "cache") / "journal.jsonl"
    while killed.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 1): time.sleep(.005)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    out = subprocess.run(args, env=env, capture_output=True, text=True, check=True)
    assert out.stdout == "300 done\n"
    s = read(folder)
    assert np.array_equal(s.images, expected(folder, s.rules))


def test_a_decoder_that_takes_its_process_down(tmp_path, monkeypatch):
    folder, real = fill(tmp_path / "many", 150), workers.read_batch
    def crashing(tasks, rules):
        if any(f.name == "p100.png" for _, f, _ in tasks): os._exit(11)
        return real(tasks, rules)
    monkeypatch.setattr(workers, "read_batch", crashing)
    monkeypatch.setattr(workers, "FEW", 0)
    s = read(folder, n_jobs=2)
    assert s.records.file[s.records.kind.notna()].to_list() == ["p100.png"] and "ended the process" in s.records.reason[100]
    assert len(s.images) == 149 and np.array_equal(s.images[100], decode(folder / "p101.png", s.rules).pictures[0])


@pytest.mark.parametrize("harm", ["records", "pictures", "meta"])
def test_a_damaged_store_is_read_anew(folder, decoded, harm):
    s = read(folder)
    records, pictures, meta = next(s.where.glob("records-*")), next(s.where.glob("*.raw")), s.where / "meta.json"
    if harm == "records": records.write_bytes(records.read_bytes().replace(b"PNG", b"JPG", 1))
    if harm == "meta": meta.write_text("{")
    if harm == "pictures":
        pictures.rename(s.where / "away")
        pictures.write_bytes((s.where / "away").read_bytes()[:100])
    again = read(folder)
    assert np.array_equal(again.images, s.images) and len(decoded) == 24


# ---- the disk

def test_a_full_disk(folder, monkeypatch):
    room = 3000
    class Small:
        def __init__(self, f): self.f = f
        def __enter__(self): return self
        def __exit__(self, *a): self.f.close()
        def __getattr__(self, name): return getattr(self.f, name)
        def write(self, data):
            nonlocal room
            self.f.write(data[:max(room, 0)])
            room -= len(data)
            if room < 0: raise OSError(errno.ENOSPC, "No space left on device")
    def small(path, mode="r", **kw):
        f = open(path, mode, **kw)
        return f if "r" in mode else Small(f)
    with monkeypatch.context() as m:
        m.setattr(store, "open", small, raising=False)
        with pytest.raises(OSError, match="The disk is full.*12 files.*cache.*cache_dir=") as e: read(folder)
        assert e.value.errno == errno.ENOSPC
    s = read(folder)
    assert np.array_equal(s.images, expected(folder, s.rules))


@pytest.mark.skipif(os.name == "nt", reason="other rights")
def test_only_its_owner_may_look_and_no_name_is_in_it(folder):
    picture(folder / "Müller_Erika.png", 77)
    (folder / "Meier_Hans.png").write_bytes((folder / "p000.png").read_bytes()[:200])
    before = os.umask(0)
    try: s = read(folder)
    finally: os.umask(before)
    assert s.where.stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in s.where.iterdir()} == {0o600}
    content = b"".join(p.read_bytes() for p in s.where.iterdir()) + "".join(p.name for p in s.where.iterdir()).encode()
    for name in ("Müller".encode(), json.dumps("Müller")[1:-1].encode(), b"Erika", b"Meier", b"p000", b"coh "): assert name not in content


def test_where_it_lies_and_forgetting(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux": assert cohorts_folder() == tmp_path / "xdg" / "medstrat" / "cohorts"
    one, two = (read(folder, r, cache_dir=None) for r in (S16, Rules(size=8)))
    other = read(fill(tmp_path / "other", 3), cache_dir=None)
    assert len({one.where, two.where, other.where}) == 3
    assert forget(folder) == sorted([one.where, two.where]) and not one.where.exists() and other.where.exists()
    assert forget(folder) == []


# ---- two at once

def test_the_second_waits_and_finds_it_done(folder, monkeypatch):
    forget_notices()
    begun, go, calls, out = threading.Event(), threading.Event(), [], {}
    def slow(path, rules):
        calls.append(path)
        begun.set()
        go.wait(30)
        return decode(path, rules)
    monkeypatch.setattr(workers, "decode", slow)
    said = []
    monkeypatch.setattr(store, "notice", lambda text: said.append(text) or go.set())
    threads = [threading.Thread(target=lambda i=i: out.update({i: read(folder)})) for i in range(2)]
    threads[0].start()
    assert begun.wait(30)
    threads[1].start()
    for t in threads: t.join()
    assert len(calls) == 12 and np.array_equal(out[0].images, out[1].images) and len(said) == 1 and "waits" in said[0]


# ---- failures

def test_one_bad_file_of_ten_does_not_end_it(folder):
    (folder / "p004.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    (folder / "note.txt").write_text("no image")
    s = read(folder)
    assert s.records.kind.dropna().to_list() == ["no image", "damaged"] and len(s.images) == 11
    assert np.array_equal(s.images[4], decode(folder / "p005.png", s.rules).pictures[0])


def test_too_many_bad_files_end_it_with_a_list(folder, decoded):
    for i in (2, 7): (folder / f"p{i:03}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    with pytest.raises(Unreadable, match="2 of the 12 image files seen could not be read; max_failed=0.05.*damaged.*p002.png.*max_failed") as e: read(folder)
    assert isinstance(e.value, ValueError) and len(e.value.files) == 12 and e.value.files.kind.notna().sum() == 2
    decoded.clear()
    s = read(folder, max_failed=.2)
    assert len(s.images) == 10 and decoded == [], "what was read before is not read again"


def test_a_large_cohort_stops_when_it_is_certain(tmp_path, decoded):
    folder = fill(tmp_path / "large", 10)
    for i in range(10, 600): (folder / f"p{i:03}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    with pytest.raises(Unreadable) as e: read(folder)
    assert 100 <= len(e.value.files) < 300 and len(decoded) < 300


def test_processes_stop_without_a_remark(tmp_path, monkeypatch):
    folder = fill(tmp_path / "large", 10)
    for i in range(10, 900): (folder / f"p{i:03}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    monkeypatch.setattr(workers, "FEW", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Unreadable) as e: read(folder, n_jobs=2)
    assert len(e.value.files) < 300


def test_nothing_to_read(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    with pytest.raises(ValueError, match="No file"): read(folder)
    (folder / "a.txt").write_text("text")
    with pytest.raises(Unreadable, match="None of 1 files gave a picture.*no image"): read(folder)


def test_an_error_that_nobody_foresaw_ends_one_file(folder, monkeypatch):
    def odd(path, rules):
        if path.name == "p001.png": raise KeyError(f"in {path}")
        return decode(path, rules)
    monkeypatch.setattr(workers, "decode", odd)
    s = read(folder)
    assert s.records.kind[1] == "damaged" and "KeyError" in s.records.reason[1] and "p001" not in s.records.reason[1]


def test_a_file_that_vanishes(folder):
    found = list_files(folder)[0]
    (folder / "p006.png").unlink()
    s = read_all(folder, found, S16, folder.parent / "cache")
    assert s.records.kind[6] in ("refused", "damaged") and len(s.images) == 11


def test_the_bar_is_off_where_nobody_looks(folder, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(folder, progress=None)
    assert capsys.readouterr().err == ""
