"Numbers that stay, say nothing, and have their key in a private file."
import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medstrat.data.cohort.pseudonyms import Pseudonyms


def test_the_same_numbers_in_every_run(tmp_path):
    values = [f"p{i:03}" for i in range(200)]
    a = Pseudonyms(tmp_path / "key.csv").apply(values[:150], "patient")
    b = Pseudonyms(tmp_path / "key.csv").apply(values[::-1], "patient")[::-1].reset_index(drop=True)
    assert (a == b[:150]).all() and sorted(a) == list(range(1, 151)) and sorted(b[150:]) == list(range(151, 201))
    assert (Pseudonyms(tmp_path / "key.csv").apply(values, "patient") == b).all()


def test_the_order_says_nothing():
    values = [f"p{i:03}" for i in range(300)]
    a, b = (Pseudonyms().apply(values, "x").to_numpy() for _ in range(2))
    for other in (np.arange(300), b): assert abs(np.corrcoef(a, other)[0, 1]) < .35   # six standard deviations


def test_kinds_have_numbers_of_their_own():
    p = Pseudonyms()
    assert sorted(p.apply(["a", "b"], "file")) == sorted(p.apply(["b", "c"], "patient")) == [1, 2] and list(p.numbers) == ["file", "patient"]


def test_one_name_in_several_types_and_gaps():
    p = Pseudonyms()
    given = pd.Series([12.0, np.nan, 7], index=[5, 6, 9], name="patient")
    n = p.apply(given, "patient")
    assert n.index.tolist() == [5, 6, 9] and n.name == "patient" and n.dtype == "Int64" and n.isna().tolist() == [False, True, False]
    assert p.apply(["12", "7", "07"], "patient").tolist() == [n[5], n[9], 3] and p.apply(pd.Series([7, 12]), "patient").tolist() == [n[9], n[5]]
    assert p.apply([None, None], "patient").isna().all() and len(p.apply([], "patient")) == 0


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8), unique=True, min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_any_name_comes_back_from_the_key(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("k") / "key.csv"
    first = Pseudonyms(path).apply(names, "=kind")
    assert Pseudonyms(path).numbers == {"=kind": dict(sorted(zip(names, first), key=lambda x: x[1]))}


def test_the_key_is_private_and_no_formula(tmp_path):
    old = os.umask(0)
    try: Pseudonyms(tmp_path / "key.csv").apply(["=cmd()", "NA", "007", " x"], "patient")
    finally: os.umask(old)
    assert (tmp_path / "key.csv").stat().st_mode & 0o777 == 0o600
    text = (tmp_path / "key.csv").read_text()
    assert "'=cmd()" in text and text.splitlines()[0] == "kind,name,number"
    assert set(Pseudonyms(tmp_path / "key.csv").numbers["patient"]) == {"=cmd()", "NA", "007", " x"}
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".lock") == ["key.csv"]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "kind,name,number\nx,a,1\nx,b,1\n", "kind,name,number\nx,a,1\nx,b,3\n", "kind,name,number\nx,a,1\nx,a,2\n", "kind,name,number\nx,a,one\n",
                                  "kind,name,number\nx,a\n", "kind,name,number\nx,a,0\n", "kind,name,number\nx,\xff,1\n"])
def test_a_key_that_is_not_sound_is_refused(tmp_path, text):
    (tmp_path / "key.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="is no key as it was written"): Pseudonyms(tmp_path / "key.csv")
    assert (tmp_path / "key.csv").read_bytes() == text.encode("latin-1")


def test_two_runs_at_once_lose_nothing(tmp_path):
    code = """if True:
        import sys
        from medstrat.data.cohort.pseudonyms import Pseudonyms
        p = Pseudonyms(sys.argv[1])
        print([p.apply([f'{sys.argv[2]}{i}', f'both{i}'], 'x').tolist() for i in range(25)])"""
    runs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "key.csv"), who], stdout=subprocess.PIPE, text=True) for who in "ab"]
    said = dict(zip("ab", (eval(r.communicate()[0]) for r in runs)))
    key = Pseudonyms(tmp_path / "key.csv").numbers["x"]
    assert len(key) == 75 and all(said[w] == [[key[f"{w}{i}"], key[f"both{i}"]] for i in range(25)] for w in "ab")


def test_scrubbing():
    p = Pseudonyms()
    f = p.apply(["a/Möller 1.png", "b/Möller 1.dcm", "x.nii.gz"], "file")
    n = p.apply([12, "p-7"], "patient")
    assert p.scrub("a/Möller 1.png: b/Möller 1.dcm, 'x.nii.gz' and x") == f"file {f[0]}: file {f[1]}, 'file {f[2]}' and file {f[2]}"
    assert p.scrub("12 120 p_12.png 112 (12)") == f"patient {n[0]} 120 p_patient {n[0]}.png 112 (patient {n[0]})"
    assert p.scrub("sp-7 p-7x p-7.") == f"sp-7 p-7x patient {n[1]}." and p.scrub("") == "" and Pseudonyms().scrub("as it was") == "as it was"
    assert p.scrub("Mo\u0308ller 1.png") == f"file {f[0]}"


def test_scrubbing_among_many_names_is_fast():
    p = Pseudonyms()
    n = p.apply([f"folder/scan_{i}.png" for i in range(100_000)], "file")
    start = time.process_time()
    for _ in range(1000): assert p.scrub("no scan_77777.png there") == f"no file {n[77777]} there"
    assert time.process_time() - start < 4
