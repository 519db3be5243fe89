"Tables as hospitals write them: read without loss, joined without a guess, written so that nothing in them runs."
import os
import subprocess
import sys
import time
import zipfile
from unicodedata import normalize

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medstrat.data.cohort import tables
from medstrat.data.cohort.tables import as_column, as_text, guarded, join, read_table, unguarded, write_csv
from medstrat.evaluation.association import associations


@pytest.fixture
def read(tmp_path):
    def read(content, encoding="utf-8", name="t.csv"):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return read_table(tmp_path / name)
    return read


# ---- text -----------------------------------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
def test_encodings(read, encoding):
    df, remarks = read("Größe;Straße\n1;Müllerstraße €\n", encoding)
    assert list(df) == ["Größe", "Straße"] and df.iloc[0].tolist() == [1, "Müllerstraße €"]
    assert [("cp1252" in r) for r in remarks] == ([True] if encoding == "cp1252" else [])


def test_utf_16_big_endian_with_its_mark(read): assert list(read("é,b\n1,2\n".encode("utf-16-be").join([b"\xfe\xff", b""]))[0]) == ["é", "b"]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_separators(read, separator, end):
    df, remarks = read(end.join([separator.join(r) for r in (["file", "note", "n"], ["a.png", '"x,y;z\t|"', "1"], ["b.png", "", "2"])]))
    assert list(df) == ["file", "note", "n"] and df["note"].tolist()[0] == "x,y;z\t|" and df["n"].tolist() == [1, 2] and not remarks


@pytest.mark.parametrize("text, columns, rows", [
    ("file\na.png\nb.png\n", ["file"], 2),
    ("name, first\nAnna\nBert\n", ["name, first"], 2),         # no row has as many fields
    ("x\n0,5\n0,7\n", ["x"], 2),
    ("id;x\n1;0,5\n2;0,7\n", ["id", "x"], 2),                  # both divide the rows, one the heading
    ("id;list\n1;a,b,c\n2;a,b,c\n", ["id", "list"], 2),
    ("sep=;\nid;x,y\n1;2\n", ["id", "x,y"], 1),
    ('a,b\n"1\n2",3\n', ["a", "b"], 1),
    ("a,b,c\n1\n1,2,3\n1,2,3\n", ["a", "b", "c"], 3),
    ("\n\n,,\na,b,c\n\n1,2,3\n,,\n", ["a", "b", "c"], 1),
    ("a;b;;\n1;2;;\n", ["a", "b"], 1),
])
def test_shapes_of_text(read, text, columns, rows):
    df, _ = read(text)
    assert list(df) == columns and len(df) == rows


def test_short_rows_end_in_gaps_and_long_ones_name_the_line(read):
    df, remarks = read("a,b,c\n1,2,3\n4,5\n6,7,8\n")
    assert df["c"].isna().tolist() == [False, True, False] and remarks == ["1 rows are shorter than the heading; what they lack was taken as empty."]
    with pytest.raises(ValueError, match="line 3 has 4 fields, but the heading has 3"): read("a,b,c\n1,2,3\n4,5,x,y\n1,2,3\n")
    assert read("a,b,c\n1,2,3,,\n4,5,6\n")[0]["c"].tolist() == [3, 6]


@pytest.mark.parametrize("content, said", [
    (b"", "it is empty"), (b"\n\n", "it is empty"), (b"a,b\n", "a heading and no rows"), (b"a,b\n,\n", "a heading and no rows"),
    (b'a,b\n1,"open\n2,3\n', "quotation mark left open"), (b"a,b\n1,\x00\n2,\x813\n", "no text"), (b"a\n1\x00\n", "bytes that no text has"),
    (b"\x81\x8d\x90", "no text in cp1252"), (b"\xff\xfea\n1", "no text in utf-16"), (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" * 9, "old (.xls)"), (b"\x1f\x8b\x08" * 9, "gzip"),
    (b"PK\x03\x04 no zip", "damaged"), (b"PAR1 no parquet", "cannot be read"), (b"a" * 200_000 + b",b\n1,2\n", "line 1"), (b"," * 20_000 + b"a\n" + b"," * 20_000 + b"1\n", "columns"),
])
def test_what_is_no_table(read, content, said):
    with pytest.raises(ValueError) as e: read(content)
    assert said in str(e.value) and "t.csv cannot be read: " in str(e.value)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError): read_table(tmp_path / "none.csv")
    with pytest.raises(IsADirectoryError): read_table(tmp_path)


def test_too_large_is_refused_before_it_is_read(read, monkeypatch, tmp_path):
    with open(tmp_path / "large.csv", "wb") as f: f.truncate(2**28 + 1)
    with pytest.raises(ValueError, match="268,435,457 bytes; 268,435,456 are allowed"): read_table(tmp_path / "large.csv")
    monkeypatch.setattr(tables, "MAX_CELLS", 10)
    with pytest.raises(ValueError, match="more than 10 cells"): read("a,b\n" + "1,2\n" * 5)
    for kind in ("xlsx", "parquet"):
        getattr(pd.DataFrame(dict(a=range(9), b=range(9))), f"to_{dict(xlsx='excel').get(kind, kind)}")(tmp_path / f"t.{kind}", index=False)
        with pytest.raises(ValueError, match="more than 10 cells"): read_table(tmp_path / f"t.{kind}")


# ---- columns --------------------------------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("texts, expected, dtype", [
    (["1", "2"], [1, 2], "int64"), (["-1", "+2", "0"], [-1, 2, 0], "int64"), (["1", "", "3"], [1, pd.NA, 3], "Int64"), (["1", "NA", "#N/A"], [1, pd.NA, pd.NA], "Int64"),
    (["1.5", "2"], [1.5, 2], "float64"), ([".5", "-1e-05", "1.5E3", "2."], [.5, -1e-5, 1500, 2], "float64"), (["0.50", "nan"], [.5, np.nan], "float64"),
    (["007", "12"], ["007", "12"], None), (["00", "1"], ["00", "1"], None), (["1234567890123456", "1"], ["1234567890123456", "1"], None), (["123456789012345"], [123456789012345], "int64"),
    (["12E3", "4"], ["12E3", "4"], None), (["1_000"], ["1_000"], None), (["٣"], ["٣"], None), (["inf"], ["inf"], None), (["True", "False"], ["True", "False"], None),
    (["None", "1"], ["None", "1"], None), (["1,5", "2"], ["1,5", "2"], None), (["a", ""], ["a", np.nan], None), (["1.2.3"], ["1.2.3"], None), (["."], ["."], None), (["1e5"], ["1e5"], None),
    (["01.02"], ["01.02"], None), (["-"], ["-"], None), (["12345678901234567890", "0.5"], ["12345678901234567890", "0.5"], None),
])
def test_numbers_and_what_only_looks_like_them(texts, expected, dtype):
    column = as_column(texts)
    pd.testing.assert_series_equal(column, pd.Series(expected, dtype=dtype))
    if dtype is None: assert not pd.api.types.is_numeric_dtype(column)


def test_decimal_commas(read):
    df, _ = read("id;x;y;z\n1;0,5;1.5;1,2,3\n2;-3;2;4\n")
    assert df["x"].tolist() == [.5, -3] and df["y"].tolist() == [1.5, 2] and df["z"].tolist() == ["1,2,3", "4"]
    assert as_column(["1,5", "2.5"], comma=True).tolist() == ["1,5", "2.5"]


def test_text_is_text_in_every_pandas(read):
    column = read("a,b\nx,1\n,2\n")[0]["a"]
    assert pd.api.types.is_string_dtype(column.dropna()) and column.isna().tolist() == [False, True] and column[0] == "x"
    df = read("file,patient\na.png,007\nb.png,\n")[0]
    assert as_text(df["patient"]) == ["007", None] and join(["a.png"], df).rows.tolist() == [0]


def test_names_of_columns(read):
    df, remarks = read("a,,a,a (2),a\n1,2,3,4,5\n")
    assert len(set(df)) == 5 and list(df)[:2] == ["a", "column 2"] and "a (2)" in df and df.iloc[0].tolist() == [1, 2, 3, 4, 5] and df["a (2)"].tolist() == [4]
    assert len(remarks) == 1 and "'column 2'" in remarks[0]


def test_a_column_with_gaps_is_associated_as_numbers(read):
    df, _ = read("age\n" + "\n".join(str(i) if i % 7 else "NA" for i in range(100)) + "\n")
    table = associations(np.arange(100) // 50, df, n_permutations=99)
    assert "age" in table.to_string() and len(table) == 1


# ---- Excel, Parquet -------------------------------------------------------------------------------------------------------------------------------------------------

def test_excel(tmp_path):
    import openpyxl
    book = openpyxl.Workbook()
    sheet = book.active
    for row in ([], ["file", "patient", "shown", "day", "x", "formula", "yes", "error"], ["a.png", 12.0, 7, pd.Timestamp("2020-01-02"), .5, "=1+1", True, "#N/A"], [None] * 8, ["b.png", None, 8, pd.Timestamp("2020-01-03 04:05"), 2]):
        sheet.append(row)
    for row in (3, 5): sheet.cell(row, 3).number_format = "000"
    book.create_sheet("more").append(["z"])
    book.save(tmp_path / "t.csv")   # the ending does not matter
    df, remarks = read_table(tmp_path / "t.csv")
    assert df["file"].tolist() == ["a.png", "b.png"] and df["patient"].dtype == "Int64" and as_text(df["patient"]) == ["12", None]
    assert df["shown"].tolist() == ["007", "008"] and df["day"].tolist() == ["2020-01-02", "2020-01-03 04:05:00"] and df["x"].tolist() == [.5, 2]
    assert df["formula"].isna().all() and df["yes"].tolist()[0] == "True" and df["error"].isna().all()
    assert remarks == ["The workbook has 2 sheets; the first was read, 'Sheet'."]


def test_a_workbook_that_would_fill_the_memory(tmp_path):
    pd.DataFrame(dict(a=[1])).to_excel(tmp_path / "t.xlsx", index=False)
    with zipfile.ZipFile(tmp_path / "t.xlsx", "a", zipfile.ZIP_DEFLATED) as z, z.open("xl/media", "w", force_zip64=True) as f:
        for _ in range(257): f.write(bytes(2**20))
    assert (tmp_path / "t.xlsx").stat().st_size < 2**20
    with pytest.raises(ValueError, match="unpacks to"): read_table(tmp_path / "t.xlsx")
    with zipfile.ZipFile(tmp_path / "t.ods", "w") as z: z.writestr("content.xml", "x")
    with pytest.raises(ValueError, match="no Excel workbook"): read_table(tmp_path / "t.ods")


def test_parquet(tmp_path):
    df = pd.DataFrame(dict(file=["a", "b", "c"], patient=[12, None, 14], old=["007", "8", None], x=[.5, 1, np.nan], kind=pd.Categorical(["u", "v", "u"])), index=[5, 6, 9])
    df.to_parquet(tmp_path / "t")
    back, remarks = read_table(tmp_path / "t")
    assert list(back) == list(df) and back["patient"].dtype == "Int64" and as_text(back["patient"]) == ["12", None, "14"] and back["old"].tolist()[:2] == ["007", "8"]
    assert back["x"].tolist()[:2] == [.5, 1] and back["kind"].tolist() == ["u", "v", "u"] and not remarks


@pytest.mark.parametrize("module, kind", [("openpyxl", "excel"), ("pyarrow", "parquet")])
def test_a_library_that_is_missing(tmp_path, module, kind):
    getattr(pd.DataFrame(dict(a=[1])), f"to_{kind}")(tmp_path / "t", index=False)
    code = f"import sys; sys.modules[{module!r}] = None\nfrom medstrat.data.cohort.tables import read_table\nread_table({str(tmp_path / 't')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert "ImportError" in done.stderr and f"needs {module}: pip install 'medstrat[tables]'. Or save the table as CSV." in done.stderr


@pytest.mark.parametrize("kind", ["csv", "xlsx", "parquet"])
def test_damaged_tables_give_one_kind_of_error(tmp_path, kind):
    df = pd.DataFrame(dict(file=[f"{i}ä.png" for i in range(50)], x=np.arange(50) / 7))
    getattr(df, f"to_{dict(xlsx='excel').get(kind, kind)}")(tmp_path / "good", index=False)
    good, rng, refused = (tmp_path / "good").read_bytes(), np.random.default_rng(0), 0
    for i in range(150):
        bad = bytearray(good[:rng.integers(1, len(good))] if i % 3 == 0 else good)
        if i % 3: bad[(at := rng.integers(0, len(bad))):at + i % 9 + 1] = rng.bytes(i % 9 + 1)
        (tmp_path / "bad").write_bytes(bad)
        try: read_table(tmp_path / "bad")
        except ValueError as e: refused += "cannot be read" in str(e)
    assert refused > 20


# ---- joining --------------------------------------------------------------------------------------------------------------------------------------------------------

FILES = ["normal/a.png", "normal/b.png", "ill/c.png"]


def rows(entries, files=FILES, **more): return join(files, pd.DataFrame(dict(age=[31, 32, 33, 34, 35][:len(entries)], id=entries)), **more).rows.tolist()


@pytest.mark.parametrize("entries", [
    ["ill/c.png", "normal/a.png", "normal/b.png"], ["c.png", "a.png", "b.png"], ["c", "a", "b"], ["ill/c", "normal/a", "normal/b"], ["x/ill/c.png", "x/normal/a.png", "y/normal/b.png"],
    [r"C:\x\ill\c.png", r"C:\x\normal\a.png", r"C:\x\normal\b.png"], ["./ill/c.png", "./normal/a.png", "./normal/b.png"], [" c.png", "a.png ", "b.png"], ["c.dcm", "a.dcm", "b.dcm"],
    ["C.PNG", "A.PNG", "B.PNG"], ["C", "A", "B"], ["ill//c.png", "/normal/a.png", "/normal/b.png"]])
def test_ways_to_write_a_name(entries): assert rows(entries) == [1, 2, 0]


def test_a_file_given_flat_and_entries_with_folders(): assert rows(["x/c.png", "y/a.png", "z/b.png"], ["a.png", "b.png", "c.png"]) == [1, 2, 0]


def test_umlauts_composed_or_not():
    files = [normalize("NFD", "Möller.png"), normalize("NFC", "Jäger.png")]
    assert rows([normalize("NFD", "Jäger"), normalize("NFC", "Möller")], files) == [1, 0]


def test_ids_as_numbers_and_with_leading_zeros():
    assert rows([3, 1, 2], ["1.png", "2.png", "3.png"]) == [1, 2, 0] and rows([3., 1., None], ["1.png", "2.png", "3.png"]) == [1, -1, 0]
    assert rows(["003", "001", "002"], ["001.png", "002.png", "003.png"]) == [1, 2, 0]
    with pytest.raises(ValueError, match="cannot be joined"): rows([3, 1, 2], ["001.png", "002.png", "003.png"])   # lost before it came here; not guessed


def test_folders_as_ids():
    files = ["p1/s1/1.png", "p1/s2/2.png", "p2/s1/1.png", "p3/1.png"]
    j = join(files, pd.DataFrame(dict(id=["p2", "p1"], sex=["M", "F"])))
    assert j.rows.tolist() == [1, 1, 0, -1] and j.lists == {"files without a row": ["p3/1.png"]} and "folders" in j.how
    assert join(files, pd.DataFrame(dict(study=["p2/s1", "p1/s2", "p1/s1"]))).rows.tolist() == [2, 1, 0, -1]
    j = join(files, pd.DataFrame(dict(id=["p1", "s1", "p2"])), key="id")   # two folders of one file, both in the table
    assert j.rows.tolist() == [-1, 0, -1, -1] and j.lists["files that fit no single row"] == ["p1/s1/1.png", "p2/s1/1.png"]


def test_one_base_name_in_two_folders_is_never_guessed():
    files = ["x/a.png", "y/a.png", "y/b.png", "y/c.png", "y/d.png"]
    j = join(files, pd.DataFrame(dict(f=["a.png", "b.png", "c.png", "d.png"])))
    assert j.rows.tolist() == [-1, -1, 1, 2, 3] and j.lists == {"files that fit no single row": ["x/a.png", "y/a.png"], "ids that fit no single row or file": ["a.png"]}
    assert join(files, pd.DataFrame(dict(f=["y/a.png", "b.png", "c.png", "d.png"]))).rows.tolist() == [-1, 0, 1, 2, 3]
    assert join(["a.png", "x/a.png"], pd.DataFrame(dict(f=["x/a.png", "a.png"]))).rows.tolist() == [1, 0]
    j = join(["a.png", "b.png", "c.png", "d.png"], pd.DataFrame(dict(f=["x/a.png", "y/a.png", "b.png", "c.png", "d.png"])))
    assert j.rows.tolist() == [-1, 2, 3, 4] and j.lists["files that fit no single row"] == ["a.png"]


def test_two_rows_for_one_file():
    table = pd.DataFrame(dict(f=["a", "a", "b", "b", "c", None, "z"], x=[1, 2, 3, 3, 4, 5, 6]))
    j = join(["a.png", "b.png", "c.png", "d.png"], table)
    assert j.rows.tolist() == [-1, 2, 4, -1] and j.lists == {
        "files without a row": ["d.png"], "files that fit no single row": ["a.png"], "ids that fit no single row or file": ["a"], "rows without a file": ["z"]}
    assert j.counts == {"files": 4, "rows": 7, "files with a row": 2, "rows with a file": 2, "files without a row": 1, "files that fit no single row": 1, "ids that fit no single row or file": 1,
                        "rows without a file": 1, "rows without an id": 1, "rows that repeat another": 1}
    assert len(j.remarks) == 7 and "1 rows that repeat another." in j.remarks


def test_two_files_of_one_stem_share_no_row(): assert rows(["a", "b"], ["a.png", "a.dcm", "b.png"], key="id") == [-1, -1, 1]


def test_folders_that_contradict_each_other():
    with pytest.raises(ValueError) as e: join(["siteA/1.png", "siteA/2.png"], pd.DataFrame(dict(file=["siteB/1.png", "siteB/2.png"])))
    assert "Files: 'siteA/1.png', 'siteA/2.png'. Table: file: 'siteB/1.png', 'siteB/2.png'" in str(e.value)


def test_row_numbers_are_a_trap():
    files = [f"{i}.png" for i in range(1, 6)]
    table = pd.DataFrame({"column 1": [1, 2, 3, 4, 5], "id": [5, 4, 3, 9, 1]})   # the id misses one file, the numbers none
    with pytest.raises(ValueError, match="'column 1' .5 files. and 'id' .4 files. both fit .* key='column 1'"): join(files, table)
    assert join(files, table, key="id").rows.tolist() == [4, -1, 2, 1, 0]
    assert join(files, table.assign(id=[1, 2, 3, 4, 5])).rows.tolist() == [0, 1, 2, 3, 4]   # no contradiction


def test_accidents_are_no_key():
    files = [f"scan_{i}.png" for i in range(50)] + ["31.png"]
    table = pd.DataFrame(dict(age=range(30, 50), id=[f"q{i}" for i in range(20)]))
    with pytest.raises(ValueError, match="'age' fits best: 1 files have one row"): join(files, table)
    assert join(files, table, key="age").rows.tolist() == [-1] * 50 + [1]


def test_a_label_is_no_key_although_one_of_its_values_is_rare():
    files = [f"normal/{i}.png" for i in range(20)] + ["rare/x.png"]
    with pytest.raises(ValueError, match="cannot be joined"): join(files, pd.DataFrame(dict(label=["normal"] * 20 + ["rare"], id=[f"q{i}" for i in range(21)])))


def test_case_only_where_nothing_else_fits():
    assert rows(["a.png", "A.png"], ["A.png", "a.png"]) == [1, 0]
    j = join(["A.png", "B.png"], pd.DataFrame(dict(f=["b.PNG", "a.PNG"])))
    assert j.rows.tolist() == [1, 0] and "case were not told apart" in j.how


def test_a_table_without_headings(read):
    df, _ = read("a.png\nb.png\nc.png\n")
    with pytest.raises(ValueError, match="'a.png' is a file. Give the table a row of headings"): join(FILES, df)


def test_a_column_that_is_not_there_or_does_not_fit():
    table = pd.DataFrame(dict(file=["a.png", "b.png"], Alter=[1, 2]))
    with pytest.raises(KeyError, match="Did you mean 'file'"): join(FILES, table, key="flie")
    with pytest.raises(ValueError, match="named in the table by 'Alter'"): join(FILES, table, key="Alter")
    with pytest.raises(ValueError, match="cannot be joined"): join([], table)
    with pytest.raises(ValueError, match="columns of one name: 'a'"): join(FILES, pd.DataFrame([[1, 2]], columns=["a", "a"]))


def test_the_written_cohort_and_a_shuffled_one_join_alike():
    rng = np.random.default_rng(0)
    names = [f"s{i % 3}/img{i:04}.png" for i in range(500)]
    order = rng.permutation(500)
    table = pd.DataFrame(dict(file=[names[i] for i in order], n=range(500), age=rng.integers(20, 90, 500)))
    for form in (str, lambda f: f.rpartition("/")[2], lambda f: f.rpartition("/")[2][:-4], lambda f: "/mnt/x/" + f):
        assert (join(names, table.assign(file=table["file"].map(form))).rows == np.argsort(order)).all()


def test_large_tables_join_fast():
    n = 100_000
    names, order = [f"p{i // 10}/i{i}.png" for i in range(n)], np.random.default_rng(0).permutation(n)
    table = pd.DataFrame(dict(file=[f"i{i}" for i in order], age=order % 80))
    start = time.process_time()
    assert (join(names, table).rows == np.argsort(order)).all() and time.process_time() - start < 10   # 1–2 s; every file with every row would be hours


# ---- writing --------------------------------------------------------------------------------------------------------------------------------------------------------

@given(st.text(alphabet="=+-@'\t\r\n ab＝", max_size=6))
@settings(max_examples=500, deadline=None)
def test_guarding_loses_nothing_and_leaves_no_formula(text):
    assert unguarded(guarded(text)) == text and guarded(text).lstrip(" ")[:1] not in tuple("=+-@＝\t\r\n")


def test_what_is_written(tmp_path):
    df = pd.DataFrame({"=cmd": ["=1+1", "+x", "-y", "@z", "\tt", "\rr", " =s", "a,b", 'q"q', "l\nl"], "n": [-1, 2, 3, 4, 5, 6, 7, 8, 9, 10], "f": [-.5, np.nan] * 5,
                       "o": [-1, "-1", None, 2.5, True, ["=1"], np.float32(-2), pd.NA, "'=1", ""], "c": pd.Categorical(["=a", "b"] * 5), "i": pd.array([1, None] * 5, dtype="Int64")})
    write_csv(df, tmp_path / "t.csv")
    raw = pd.read_csv(tmp_path / "t.csv", dtype=str, keep_default_na=False)
    assert list(raw) == ["'=cmd", "n", "f", "o", "c", "i"] and raw["'=cmd"].tolist() == ["'=1+1", "'+x", "'-y", "'@z", "'\tt", "'\rr", "' =s", "a,b", 'q"q', "l\nl"]
    assert raw["n"][0] == "-1" and raw["f"].tolist()[:2] == ["-0.5", ""] and raw["o"].tolist() == ["-1", "'-1", "", "2.5", "True", "['=1']", "-2.0", "", "''=1", ""]
    assert raw["c"].tolist()[:2] == ["'=a", "b"] and raw["i"].tolist()[:2] == ["1", ""]
    assert read_table(tmp_path / "t.csv")[0]["c"].tolist()[:2] == ["=a", "b"] and list(read_table(tmp_path / "t.csv")[0])[0] == "=cmd"


def test_round_trip(tmp_path):
    df = pd.DataFrame({"file": ["=a.png", "Größe/ü.png", "'=b.png"], "patient": ["007", "01", "12"], "n": [1, 2, 3], "x": [.1, 1e-300, -2 / 3], "gap": pd.array([1, None, 3], dtype="Int64"), "t": ["a", None, "c"]})
    write_csv(df, tmp_path / "t.csv")
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.csv")[0], df)


def test_whole_or_not_at_all(tmp_path):
    path = tmp_path / "t.csv"
    write_csv(pd.DataFrame(dict(a=[1])), path)
    class Bad:
        def __str__(self): raise OSError("disk full")
    with pytest.raises(OSError): write_csv(pd.DataFrame(dict(a=[Bad()])), path)
    assert path.read_text() == "a\n1\n"
    (tmp_path / "t.csv.part").symlink_to(tmp_path / "elsewhere")   # what lies in the way is not written through
    write_csv(pd.DataFrame(dict(a=["ä"])), path, private=True)
    assert path.read_bytes() == "a\r\nä\r\n".encode() and path.stat().st_mode & 0o777 == 0o600 and sorted(p.name for p in tmp_path.iterdir()) == ["t.csv"]
