"""The site without Quarto: what nbdev makes of each notebook before Quarto sees it. Nothing a reader needs may get lost on the way."""
import json
import os
import re

import nbformat
import pytest
import yaml

from conftest import apart
from test_docs import names, root

EXPORTED = re.compile(r"^#\|\s*exports?\b", re.M)


def _process(name, target):
    os.chdir(root)
    os.environ["IN_TEST"] = "1"
    from nbdev.processors import FilterDefaults
    from nbdev.serve_drv import exec_nb
    exec_nb(root / "nbs" / name, target, FilterDefaults)


def process(name, folder):
    "The notebook as `nbdev_docs` hands it to Quarto; in a process of its own, as exported cells register their classes a second time"
    target = folder / "page.ipynb"
    status, said = apart(_process, name, target, log=folder / "log")
    assert status == 0, f"{name}: {said[-3000:]}"
    return json.loads(target.read_text())["cells"]


def text(cell): return "".join(cell.get("source") or [])


def words(markdown):
    "A text's words, without markup: nbdev turns `names` into links"
    return re.findall(r"\w+", re.sub(r"\]\([^)]*\)", "", markdown))


def without_code(markdown): return re.sub(r"```.*?```", "", markdown, flags=re.S)


@pytest.fixture(scope="module", params=names)
def page(request, tmp_path_factory):
    source = nbformat.read(root / "nbs" / request.param, 4).cells
    return source, process(request.param, tmp_path_factory.mktemp("page"))


def test_page(page):
    "One test a page, so that it is processed once"
    source, cells = page
    title_and_subtitle_survive(source, cells)
    prose_survives(source, cells)
    exported_names_are_documented(source, cells)
    no_markup_is_left(cells)
    pictures_fit(cells)


def title_and_subtitle_survive(source, cells):
    first = next(c.source for c in source if c.cell_type == "markdown")
    title, subtitle = re.search(r"^# (.+)$", first, re.M), re.search(r"^> (.+)$", first, re.M)
    assert cells[0]["cell_type"] == "raw", "the page has no front matter"
    front = yaml.safe_load(text(cells[0]).strip().strip("-"))
    assert words(title[1]) == words(front["title"])
    if subtitle: assert words(subtitle[1]) == words(front["description"])
    assert words(first) == words(title[0]) + (words(subtitle[0]) if subtitle else []), "nbdev drops all of the first cell but title and subtitle: put the rest into the next cell"


def prose_survives(source, cells):
    there = " ".join(words("\n".join(text(c) for c in cells if c["cell_type"] == "markdown")))
    prose = [c.source for c in source if c.cell_type == "markdown"][1:]
    assert prose, "a page needs an introduction"
    for markdown in prose: assert " ".join(words(markdown)) in there, f"lost: {markdown[:200]}"


def exported_names_are_documented(source, cells):
    shown = set(re.findall(r"^show_doc\((?:\w+\.)*(\w+)", "\n".join(text(c) for c in cells if c["cell_type"] == "code"), re.M))
    for cell in source:
        if cell.cell_type != "code" or not EXPORTED.search(cell.source): continue
        for name in re.findall(r"^(?:def|class) ([a-z]\w*|[A-Z]\w*)", cell.source, re.M):
            assert name in shown or "@patch" in cell.source, f"{name} is exported and not documented"
    for cell in cells:
        if text(cell).find("show_doc(") >= 0: assert cell["outputs"], f"not executed: {text(cell)}"


def no_markup_is_left(cells):
    for cell in cells:
        if cell["cell_type"] == "markdown":
            prose = without_code(text(cell))
            assert not re.search(r"^#\|", prose, re.M), f"a directive is left in the text: {prose[:200]}"
            nested = re.search(r".*\[\[`[^`]*`\]\([^)]*\)\]\(.*", prose)
            assert not nested, f"nbdev makes a link of the name inside a link; no backticks there: {nested[0][:200]}"
        for output in cell.get("outputs", []):
            shown = "".join(output.get("data", {}).get("text/markdown", []))
            for code in re.findall(r"```.*?```", shown, re.S):
                linked = re.search(r".*\]\(.*", code)
                assert not linked, f"a link inside code is shown as it is written; no backticks in comments of parameters: {linked[0][:200]}"


def pictures_fit(cells):
    for output in (o for cell in cells for o in cell.get("outputs", [])):
        assert not output.get("metadata", {}).get("image/png"), "a picture of a given width is cut where the page is narrower"
