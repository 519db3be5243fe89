"""The chapters on adding a method and a source, followed to the letter in a copy of the project."""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import left_out

root = Path(__file__).parent.parent
bin = Path(sys.executable).parent


def cells_of(chapter):
    "The cells that a chapter lists, as a notebook"
    prose = "\n\n".join(c.source for c in nbformat.read(root / "nbs" / "12_extend" / chapter, 4).cells if c.cell_type == "markdown")
    listed = re.findall(r"^```(python|markdown)\n(.*?)\n```$", prose, re.M | re.S)
    make = dict(python=nbformat.v4.new_code_cell, markdown=nbformat.v4.new_markdown_cell)
    nb = nbformat.v4.new_notebook(metadata=dict(kernelspec=dict(display_name="python3", language="python", name="python3")))
    nb.cells = [make[kind](source) for kind, source in listed]
    place = re.search(r"`nbs/(\S+\.ipynb)`", prose)[1]
    return place, nb


@pytest.fixture
def copy(tmp_path):
    "The project without its history, as its own package"
    shutil.copytree(root, tmp_path / "copy", symlinks=True, ignore=left_out)
    return tmp_path / "copy"


def do(copy, *command):
    path = os.pathsep.join([str(copy), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([str(c) for c in command], cwd=copy, capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=path))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def follow(chapter, copy):
    "Write the notebook, export it, and tell what has changed beside it and what is generated"
    place, nb = cells_of(chapter)
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file() and not p.is_symlink()}
    nbformat.write(nb, copy / "nbs" / place)
    do(copy, bin / "nbdev_export")
    do(copy, bin / "nbdev_clean")
    do(copy, sys.executable, ".ci/book")
    module = re.search(r"default_exp (\S+)", nb.cells[0].source)[1].replace(".", "/")
    changed = {str(p.relative_to(copy)) for p in copy.rglob("*") if p.is_file() and not p.is_symlink() and p.read_bytes() != before.get(p) and "__pycache__" not in p.parts}
    made = {f"nbs/{place}", f"medstrat/{module}.py", "medstrat/_modidx.py", "_quarto.yml", "README.md", "nbs/index.ipynb"}
    assert changed <= made, f"more than one notebook was touched: {changed - made}"
    do(copy, bin / "nbdev_test", "--path", copy / "nbs" / place, "--n_workers", "0")
    return place


def check(copy, *words):
    "The copy's own tests pass"
    said = do(copy, sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", *words)
    assert re.search(r"\d\d+ passed", said) and "failed" not in said, said[-2000:]


def test_a_method_of_ones_own(copy):
    follow("00_method.ipynb", copy)
    assert "VAE + spherical k-means" in do(copy, sys.executable, "-c", "from medstrat.cli import main; main()", "models")
    check(copy, "tests/test_contract.py", "-k", "spherical")
    check(copy, "tests/test_book.py", "tests/test_face.py", "tests/training/test_registry.py", "-k", "not types_are_checked")


def test_a_source_of_ones_own(copy):
    follow("01_source.ipynb", copy)
    assert "crosses" in do(copy, sys.executable, "-c", "from medstrat.cli import main; main()", "datasets")
    said = do(copy, sys.executable, "-c", "from medstrat import load_dataset; s = load_dataset('CROSSES'); print(len(s.train), len(s.test), s.notices)")
    assert said.startswith("48 12") and "crosses are drawn" in said
    check(copy, "tests/test_book.py", "tests/data/test_sources.py")
