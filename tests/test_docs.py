"""The book as a whole: notebooks and package agree, the sidebar is complete, links resolve, everything converts."""
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from conftest import left_out

from medstrat.training.registry import list_methods

root = Path(__file__).parent.parent
notebooks = sorted(p for p in (root / "nbs").rglob("*.ipynb") if not any(part.startswith((".", "_")) for part in p.relative_to(root).parts))
names = [p.relative_to(root / "nbs").as_posix() for p in notebooks]
bin = Path(sys.executable).parent


def sidebar():
    def walk(items):
        for item in items:
            if isinstance(item, str): yield item
            else: yield from walk(item["contents"])
    return list(walk(quarto()["website"]["sidebar"]["contents"]))


def quarto(): return yaml.safe_load((root / "nbs" / "_quarto.yml").read_text())    # the file that nbdev and Quarto read; a link to the one at the top


def test_one_quarto_file():
    assert (root / "nbs" / "_quarto.yml").resolve() == root / "_quarto.yml"
    assert "nbdev.yml" in quarto()["metadata-files"]    # without it Quarto does not know the output folder, and `nbdev_docs` finds no site


def test_sidebar_lists_every_notebook_once(): assert sorted(sidebar()) == names


def test_export_and_clean_change_nothing(tmp_path):
    copy = tmp_path / "repo"
    shutil.copytree(root, copy, symlinks=True, ignore=left_out)
    for command in ("nbdev_export", "nbdev_clean"): subprocess.run([bin / command], cwd=copy, check=True, capture_output=True)
    for folder, pattern in (("medstrat", "*.py"), ("nbs", "*.ipynb")):
        before = {p.relative_to(root): p.read_text() for p in (root / folder).rglob(pattern) if ".ipynb_checkpoints" not in p.parts}
        after = {p.relative_to(copy): p.read_text() for p in (copy / folder).rglob(pattern)}
        assert sorted(before) == sorted(after)
        changed = [str(p) for p in before if before[p] != after[p]]
        assert not changed, f"run nbdev_export and nbdev_clean: {changed}"


def test_readme_images_and_links_exist():
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", (root / "README.md").read_text()): assert (root / target).exists(), target


@pytest.mark.parametrize("name", names)
def test_links_resolve(name):
    path = root / "nbs" / name
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type != "markdown": continue
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", cell.source): assert (path.parent / target).exists(), f"{name}: {target}"


def output_text(output): return "\n".join("".join(t) for t in [output.get("text", []), *(output.get("data", {}).get(f"text/{kind}", []) for kind in ("plain", "html", "markdown"))])


@pytest.mark.parametrize("name", names)
def test_no_warnings_are_stored(name):
    "A reader takes them for something that matters"
    for i, cell in enumerate(nbformat.read(root / "nbs" / name, 4).cells):
        for output in cell.get("outputs", []): assert output.get("name") != "stderr", f"cell {i} stores what was written to stderr: {output['text'][:200]}"


def test_nothing_speaks_of_one_machine():
    "No absolute paths of a developer's machine in what is committed."
    pattern = re.compile(r"(?<![\w.])/(work|root|home|opt|tmp|Users)/\w")
    for path in [*notebooks, *(root / "medstrat").rglob("*.py"), *(p for p in (root / "studies").rglob("*") if p.suffix in (".csv", ".yaml")), root / "README.md"]:
        text = path.read_text()
        if path.suffix == ".ipynb":
            cells = json.loads(text)["cells"]
            text = "\n".join(part for c in cells for part in ["".join(c["source"]), *map(output_text, c.get("outputs", []))])
        found = pattern.search(text)
        assert not found, f"{path.relative_to(root)}: {text[max(found.start() - 40, 0):found.end() + 40]}"


def test_classes_are_whole():
    "What is overridden, or called inside the package, stands in the body of its class, where editors and readers find it"
    for path in (root / "medstrat").rglob("*.py"):
        text = path.read_text()
        assert not re.search(r"^@patch|super\(\w|_orig_", text, re.M), path
    for cls in list_methods(): assert not [name for owner in cls.__mro__ if owner.__module__.startswith("medstrat") for name in vars(owner) if name.startswith("_orig_")]


def test_a_batch_passes_few_files(): assert runpy.run_path(str(root / "benchmarks" / "one_batch.py"))["main"]([]) is False


def test_the_benchmark_measures_everything(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    assert runpy.run_path(str(root / "benchmarks" / "speed.py"))["main"](["--small", "--out", str(tmp_path)]) == 0
    found = pd.read_csv(tmp_path / "speed.csv")
    assert (tmp_path / "growth.png").exists() and set(found.part) == {"speed", "growth", "answers"}
    assert set(found[found.value.isna()].note) == {"skipped: --peers none"}    # ClustPy and UMAP, and nothing else
