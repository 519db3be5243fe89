"""Maps that let go of what was read."""
import gc
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from medstrat.data.cohort.maps import Pictures


def mapped(path):
    "Bytes of a mapped file that count as this process's memory"
    text = Path("/proc/self/smaps").read_text()
    return sum(int(line.split()[1]) * 1024 for block in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", text) if str(path) in block.splitlines()[0]
               for line in block.splitlines() if line.startswith("Rss:"))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="no /proc/self/smaps here to read the memory of a process from")
def test_pictures_let_go_of_what_was_read(tmp_path):
    path = tmp_path / "pictures.raw"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 2**26, np.uint8).tobytes())
    shape, some = (2**14, 64, 64, 1), np.random.default_rng(1).permutation(2**14)
    plain, ours = np.memmap(path, np.uint8, "r", shape=shape), Pictures(path, np.uint8, "r", shape=shape)
    for x in (plain, ours):
        for i in range(0, 2**14, 256): x[i:i + 256].sum()
        for i in range(0, 2**14, 256): x[some[i:i + 256]].sum()
    assert (ours[some[:9]] == plain[some[:9]]).all() and (ours[5:9][1:] == plain[6:9]).all() and ours.mean() == plain.mean()
    del plain
    gc.collect()
    for i in range(0, 2**14, 256): ours[i:i + 256].sum()
    assert mapped(path) < 2**24     # of 2**26
    ours[some[:4000]]               # from here and there, in one piece
    assert mapped(path) < 2**24


@pytest.mark.parametrize("rows", [[3, 0, -1], np.arange(6) % 2 == 0, np.array([], int), np.array([5, 5])])
def test_rows_from_here_and_there_are_those_of_an_array(tmp_path, rows):
    path, x = tmp_path / "x", np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
    path.write_bytes(x.tobytes())
    ours = Pictures(path, np.uint8, "r", shape=x.shape)
    some = slice(2, 6)
    assert (ours[rows] == x[rows]).all() and (ours[some][[1, 0]] == x[some][[1, 0]]).all() and (ours[::2][[1, 0]] == x[::2][[1, 0]]).all()
    with pytest.raises(IndexError): ours[[6]]
    path.unlink()
    assert (ours[rows] == x[rows]).all()


def test_what_is_made_of_pictures_is_a_plain_array(tmp_path):
    (tmp_path / "x").write_bytes(bytes(range(96)))
    x = Pictures(tmp_path / "x", np.uint8, "r", shape=(2, 4, 4, 3))
    for made in (x[[1, 0]], x / 255, x[x > 3], x.mean(0), np.array(x)): assert type(made) is np.ndarray
    assert type(x[1:]) is Pictures and x[1:].base is not None and x.max() == 95 and type(x.max()) is np.uint8
    assert (pickle.loads(pickle.dumps(x)) == x).all()
