"""Parts of a page: what they print is text, and nothing else."""
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from medstrat.runs.page import as_text, evidence, prose, render, tabulated


def texts(html):
    found = []
    parser = HTMLParser()
    parser.handle_data = lambda d: found.append(d.strip()) if d.strip() else None
    parser.feed(html)
    return found


@pytest.mark.parametrize("value, text", [
    (np.float32(.5), "0.5"), (float("inf"), "inf"), (1e-12, "1e-12"), (-12345.6, "-12,346"), (np.int64(-12345), "-12,345"), (np.bool_(False), "no"),
    (pd.NaT, "–"), ([1, None], "[1, None]"), ("", ""), ("x" * 400, "x" * 299 + "…"), (pd.Timestamp("2020-01-02"), "2020-01-02 00:00:00")])
def test_values_as_text(value, text): assert as_text(value) == text


def test_tables_keep_their_index_where_it_has_names():
    df = pd.DataFrame({"a": [1, 2], ("b", "c"): ["x", None]})
    assert tabulated(df) == dict(head=["a", "b · c"], rows=[["1", "x"], ["2", "–"]], numbers=[True, False], named=0, more=0)
    two = df.set_index(pd.MultiIndex.from_tuples([("age", ""), ("sex", "F")], names=["", None]))
    assert tabulated(two)["rows"] == [["age", "", "1", "x"], ["sex", "F", "2", "–"]] and tabulated(two)["named"] == 2
    assert tabulated(df.iloc[:0])["rows"] == [] and tabulated(df, most=1)["more"] == 1


def test_equal_names_of_columns_and_rows_are_no_trouble():
    df = pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"], index=["r", "r"])
    assert tabulated(df)["rows"] == [["r", "1", "2"], ["r", "3", "4"]]
    assert [r["name"] for r in evidence(pd.DataFrame(dict(cramers_v=[.1, .2]), index=["r", "r"]))["rows"]] == ["r", "r"]


def test_evidence_of_any_form():
    assert evidence(pd.DataFrame(dict(remark=["left out"]), index=["a"]))["rows"] == [
        dict(name="a", bar=None, text="–", chance=None, cells=["left out"])]
    wild = evidence(pd.DataFrame(dict(cramers_v=[-.1, 1.2]), index=["a", "b"]))["rows"]
    assert [r["bar"] for r in wild] == [100, 0]


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", "{{ 1 + 1 }}", "{% raw %}", "' onclick='x", '" onclick="x', "&lt;", "\u202eabc"])
def test_all_that_is_printed_is_text(hostile):
    df = pd.DataFrame({hostile: [hostile]}, index=[hostile])
    template = """{% from "parts" import table, pairs, lacking %}{% from "evidence" import evidence %}{% from "pictures" import pictures %}
    {{ table(t, h) }}{{ pairs({h: h}) }}{{ lacking(h) }}{{ evidence(e, h) }}{{ pictures(p, h) }}{{ prose(h) }}"""
    p = dict(title=hostile, about=hostile, pictures=[dict(src="data:,", name=hostile, facts=[hostile])])
    html = render(dict(page=template), t=tabulated(df), h=hostile, p=p, e=evidence(pd.DataFrame(dict(remark=[hostile]), index=[hostile])))
    assert texts(html).count(hostile) == 13
    assert "<script" not in html and " onclick='" not in html and ' onclick="' not in html


def test_prose_has_paragraphs_and_code_and_nothing_else():
    assert prose(" a\nb \n\n\n`<c>` `d") == "<p>a\nb</p><p><code>&lt;c&gt;</code> `d</p>"
    assert prose("") == ""
