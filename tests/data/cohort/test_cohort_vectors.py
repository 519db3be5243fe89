"Vectors from files: what is read, whose they are, and what is refused with the reason."
import numpy as np
import pandas as pd
import pytest

from medstrat.data.cohort.vectors import give_vectors, read_vectors, rows_of_images
from medstrat.data.images import ImageSet
from medstrat.data.sources import load_dataset

V = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
NAMES = ["a/001.png", "a/002.png", "a/003.png", "b/001.png", "b/002.png", "b/010.png"]
TABLE = pd.DataFrame(V, columns=[f"f{i}" for i in range(4)])


def images(names=NAMES): return ImageSet(np.zeros((len(names), 4, 4), np.uint8), dict(file=names))


def write(path, ids=None):
    table = TABLE if ids is None else TABLE.assign(image=ids)
    if path.suffix == ".npy": np.save(path, V)
    elif path.suffix == ".npz": np.savez(path, x=V, **({} if ids is None else dict(ids=np.asarray(ids))))
    elif path.suffix == ".csv": table.to_csv(path, index=False)
    else: table.to_parquet(path)
    return path


@pytest.mark.parametrize("ending", ["npz", "csv", "parquet"])
@pytest.mark.parametrize("ids", [None, NAMES])
def test_what_is_read(ending, ids, tmp_path):
    if ending == "parquet": pytest.importorskip("pyarrow")
    found, x = read_vectors(write(tmp_path / f"v.{ending}", ids))
    assert x.dtype == np.float32 and (found is None if ids is None else list(found) == ids)
    np.testing.assert_allclose(x, V, rtol=1e-6)


def test_numbers_of_any_precision_and_ids_of_any_kind(tmp_path):
    for dtype in (np.float16, np.float64):
        np.save(tmp_path / "v.npy", V.astype(dtype))
        np.testing.assert_allclose(read_vectors(tmp_path / "v.npy")[1], V, rtol=1e-2)
    np.savez(tmp_path / "v.npz", x=V, ids=np.array(NAMES, dtype="S"))
    assert (give_vectors(dict(all=images()), tmp_path / "v.npz")[0]["all"].vectors == V).all()
    TABLE.assign(image=["001", "002", "003", "101", "102", "110"]).to_csv(tmp_path / "v.csv", index=False, sep=";")
    ids, _ = read_vectors(tmp_path / "v.csv", "image")       # 001 is no 1
    assert list(ids)[:2] == ["001", "002"]
    TABLE.set_axis(NAMES).to_parquet(tmp_path / "v.parquet")       # pandas' index
    assert list(read_vectors(tmp_path / "v.parquet")[0]) == NAMES


@pytest.mark.parametrize("write_it, key, says", [
    (lambda p: p.with_suffix(".npy"), None, "v.npy'?: there is no such file. Needed is a file with vectors, .npy, .npz, .parquet or .csv"),
    (lambda p: (p.with_suffix(".pt").write_bytes(b"x"), p.with_suffix(".pt"))[1], None, "has the ending '.pt'; needed is"),
    (lambda p: (np.save(p.with_suffix(".npy"), np.array([{}], object)), p.with_suffix(".npy"))[1], None, "cannot be read: Object arrays cannot be loaded"),
    (lambda p: (np.save(p.with_suffix(".npy"), V[0]), p.with_suffix(".npy"))[1], None, "Vectors of shape 4 and type float32 were given. Needed: floats N×d"),
    (lambda p: (np.save(p.with_suffix(".npy"), np.where(V == V[2, 1], np.nan, V)), p.with_suffix(".npy"))[1], None, "Vector 2 holds NaN or an infinite value .column 1"),
    (lambda p: (np.savez(p.with_suffix(".npz"), a=V, b=V), p.with_suffix(".npz"))[1], None, r"it holds a \(6, 4\), b \(6, 4\); needed are one array N×d, and at most one of N ids"),
    (lambda p: (np.savez(p.with_suffix(".npz"), a=V, ids=NAMES[:4]), p.with_suffix(".npz"))[1], None, "has 4 ids for 6 vectors; each needs one"),
    (lambda p: write(p.with_suffix(".npy")), "image", "key='image' names a column, but v.npy has none"),
    (lambda p: write(p.with_suffix(".csv"), NAMES), "imgae", "it has no column 'imgae'. Did you mean 'image'"),
    (lambda p: (TABLE.assign(a="x", b="y").to_csv(p.with_suffix(".csv"), index=False), p.with_suffix(".csv"))[1], None, "the columns 'a', 'b' hold no numbers"),
    (lambda p: (TABLE.to_csv(p.with_suffix(".csv")), p.with_suffix(".csv"))[1], None, "a column without a heading, often of row numbers"),
    (lambda p: (p.with_suffix(".csv").write_text("a,b\n1,\n2,3\n"), p.with_suffix(".csv"))[1], None, "Vector 0 holds NaN")])
def test_what_is_refused(write_it, key, says, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=says): read_vectors(write_it(tmp_path / "v"), key)


@pytest.mark.parametrize("form", [str, lambda n: n.removesuffix(".png"), lambda n: f"/data/{n}", lambda n: n.replace("/", "\\")])
def test_rows_find_their_images_in_any_order(form, tmp_path):
    order = [4, 2, 0, 5, 1, 3]
    rows, said = rows_of_images([NAMES[i] for i in order], [form(n) for n in NAMES])
    assert rows.tolist() == order and "6 of 6 files have a row" in said[0]


def test_rows_that_are_left_over_and_rows_that_lack():
    rows, said = rows_of_images(NAMES[:4], NAMES)
    assert rows.tolist() == [0, 1, 2, 3] and any("2 rows without a file" in s for s in said)
    with pytest.raises(ValueError, match=r"1 of 6 images have no vector of their own, such as b/010.png.*Each image needs one"): rows_of_images(NAMES, NAMES[:5])
    with pytest.raises(ValueError, match=r"1 of 6 images have no vector of their own, such as a/001.png.*1 files that fit no single row"): rows_of_images(NAMES, [*NAMES, "a/001.png"])
    with pytest.raises(ValueError, match="No file is named in the table"): rows_of_images(NAMES, [f"other {i}" for i in range(6)])
    with pytest.raises(ValueError, match="7 images come from 6 files, so that ids cannot tell them apart. Give the vectors without ids"): rows_of_images([*NAMES, NAMES[0]], NAMES)


def test_by_order_only_with_as_many_rows(tmp_path):
    path = write(tmp_path / "v.npy")
    sets, said = give_vectors(dict(train=images(NAMES[:4]), val=None, test=images(NAMES[4:])), path)
    assert (sets["train"].vectors == V[:4]).all() and sets["val"] is None and (sets["test"].vectors == V[4:]).all() and said == ["Vectors of 4 numbers from v.npy."]
    with pytest.raises(ValueError, match="has 6 vectors for 5 images. Give one for each, in their order, or ids with the names"): give_vectors(dict(all=images(NAMES[:5])), path)
    nameless = ImageSet(np.zeros((6, 4, 4), np.uint8))
    with pytest.raises(ValueError, match="has ids, but these images have no names .no column 'file'."): give_vectors(dict(all=nameless), write(tmp_path / "v.npz", NAMES))


def test_a_named_set_and_a_folder(tmp_path, alone):
    "Rows stay with their images where a test split is set aside, and where the label is another column"
    from PIL import Image
    n = 1797
    np.save(tmp_path / "v.npy", np.arange(2 * n, dtype=np.float32).reshape(n, 2))
    plain, s = load_dataset("digits"), load_dataset("digits", vectors=tmp_path / "v.npy", carve_val=True)
    assert s.checksum != plain.checksum and "Vectors of 2 numbers from v.npy." in s.notices and len(s.val.vectors) == len(s.val)
    rows = np.concatenate([p.vectors[:, 0] for p in (s.train, s.val, s.test)])
    assert sorted(rows) == list(range(0, 2 * n, 2))
    folder = tmp_path / "scans"
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 256, (20, 20), np.uint8)).save(folder / name)
    s = load_dataset(folder, vectors=write(tmp_path / "v.csv", NAMES), key="image", reading=dict(size=16))
    of = dict(zip(NAMES, V, strict=True))
    for part in (s.train, s.test): np.testing.assert_allclose(part.vectors, [of[f] for f in part.table.file], rtol=1e-6)


def test_ids_that_do_not_fit_are_told_with_their_file_and_the_way_out(tmp_path):
    twice = write(tmp_path / "twice.npz", [*NAMES[:1], *NAMES[:1], *NAMES[2:]])
    with pytest.raises(ValueError, match=r"ids in .*twice.npz do not fit the images.*'a/001.png' has several rows"): give_vectors(dict(all=images()), twice)
    other = write(tmp_path / "other.npz", list("uvwxyz"))
    with pytest.raises(ValueError, match=r"ids in .*other.npz do not fit.*Or give the vectors without ids"): give_vectors(dict(all=images()), other)
    with pytest.raises(ValueError, match=r"Did you mean 'image'\? Needed are"): read_vectors(write(tmp_path / "v.csv", NAMES), "imgae")
    np.save(tmp_path / "one.npy", V[:, :1])
    assert give_vectors(dict(all=images()), tmp_path / "one.npy")[1] == ["Vectors of 1 number from one.npy."]
