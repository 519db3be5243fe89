"""The book's order and its look: what a reader who goes through the chapters in turn may count on."""
import ast
import re
import runpy
import statistics
from pathlib import Path

import nbformat
import pytest

root = Path(__file__).parent.parent
book = runpy.run_path(str(root / ".ci" / "book"))
chapters = book["notebooks"]()
names = [p.as_posix() for p in chapters]
cells = {name: nbformat.read(root / "nbs" / name, 4).cells for name in names}
FREE = ("index.ipynb", "tour.ipynb")    # they come before the first chapter, and use all of them


def kind(cell):
    "What a reader sees of a code cell: `demo` and `exports` whole, of `export` a signature, of `hide` nothing"
    return next((k for k in ("export", "exports", "hide") if re.search(rf"^#\|\s*{k}\s*$", cell.source, re.M)), "demo")


def code(name): return [c for c in cells[name] if c.cell_type == "code" and "#| default_exp" not in c.source]


def parsed(source):
    "A cell's syntax tree, without commands to the shell"
    return ast.parse("\n".join(re.sub(r"\S.*", "pass", line) if line.lstrip().startswith(("!", "%")) else line for line in source.split("\n")))


def lines(cell): return [line for line in cell.source.split("\n") if line.strip() and not line.startswith("#|")]


def only_imports(cell): return all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in parsed(cell.source).body)


def module(name):
    found = (re.search(r"#\| default_exp (\S+)", c.source) for c in cells[name] if c.cell_type == "code")
    return next((f"medstrat.{m[1]}" for m in found if m), None)


MODULES = {module(name): i for i, name in enumerate(names) if module(name)}
FACE = {a.asname: n.module for n in ast.parse((root / "medstrat" / "__init__.pyi").read_text()).body if isinstance(n, ast.ImportFrom) for a in n.names}


def imported(tree):
    "(module, name) of all that is imported from the package; a name of the public face counts as its module's"
    for n in ast.walk(tree):
        if isinstance(n, ast.Import): yield from ((a.name, "") for a in n.names if a.name.startswith("medstrat."))
        if isinstance(n, ast.ImportFrom) and n.module == "medstrat":
            yield from ((f"medstrat.{FACE.get(a.name, a.name)}", a.name) for a in n.names if a.name != "__version__")
        elif isinstance(n, ast.ImportFrom) and (n.module or "").startswith("medstrat."):
            for a in n.names: yield (f"{n.module}.{a.name}", "") if f"{n.module}.{a.name}" in MODULES else (n.module, a.name)


def test_the_book_is_what_its_list_says():
    "Sidebar, table of chapters and README: run .ci/book"
    assert book["quarto_text"]() == (root / "_quarto.yml").read_text()
    assert [c.source for c in book["index_notebook"]().cells] == [c.source for c in cells["index.ipynb"]]
    assert book["readme"]() == (root / "README.md").read_text()


def test_numbers_count_from_0_and_stand_once_in_a_folder():
    for folder in {p for name in chapters for p in name.parents}:
        entries = [p.name for p in (root / "nbs" / folder).iterdir() if re.match(r"\d", p.name) and (p.suffix == ".ipynb" or any(p.rglob("*.ipynb")))]
        assert sorted(int(e.split("_")[0]) for e in entries) == list(range(len(entries))), f"{folder}: {sorted(entries)}"


@pytest.mark.parametrize("name", [n for n in names if n not in FREE])
def test_nothing_needs_what_comes_later(name):
    for cell in code(name):
        for source, what in imported(parsed(cell.source)):
            if (root / source.replace(".", "/")).is_dir(): continue    # a package, whose modules are looked up at run time
            assert source in MODULES, f"{source}.{what} is no module of a chapter"
            assert MODULES[source] <= names.index(name), f"{name} imports {what} from {source}, which comes later"


@pytest.mark.parametrize("name", [n for n in names if n not in FREE])
def test_a_page_can_be_read_and_copied(name):
    for cell in code(name):
        shown = kind(cell)
        too_long = [line for line in lines(cell) if len(line) > (100 if shown in ("demo", "exports") else 120)]
        assert not too_long, f"a page shows about 100 characters: {too_long[0]}"
        assert shown != "hide" or "nbdev" in cell.source or not only_imports(cell), f"hidden imports; a reader who copies cells needs them: {cell.source}"


@pytest.mark.parametrize("name", [n for n in names if module(n)])
def test_cells_are_short(name):
    for cell in code(name):
        if kind(cell) not in ("export", "exports"): continue
        most = 80 if re.search(r"^class ", cell.source, re.M) else 40    # a method on one page is one class
        assert len(lines(cell)) <= most, f"{len(lines(cell))} lines: {lines(cell)[0]}"
        assert not re.search(r"^from \S+ import \*", cell.source, re.M), "star import"


def test_exported_cells_are_short_in_the_median():
    sizes = [len(lines(c)) for name in names for c in code(name) if kind(c) in ("export", "exports") and not only_imports(c)]
    assert statistics.median(sizes) <= 10


CHECK = re.compile(r"\s*(test_\w+\(|assert |with expect_fail|(?:for|with) .*: ?(?:test_\w+\(|assert ))")


@pytest.mark.parametrize("name", names)
def test_checks_stay_short_and_prose_long(name):
    "Walls of checks belong into tests/"
    for cell in code(name):
        checks = [line for line in lines(cell) if CHECK.match(line)]
        assert kind(cell) == "hide" or len(checks) <= 4, f"{len(checks)} checks in a cell: {checks[0]}"
    words = sum(len(re.findall(r"\w+", c.source)) for c in cells[name] if c.cell_type == "markdown")
    seen = [c for c in code(name) if kind(c) != "hide"]
    assert words >= 30 * len(seen), f"{words} words for {len(seen)} code cells"
    assert len(cells[name]) <= 70


def test_every_module_is_in_the_index():
    "nbdev leaves out notebooks with `auto` in their path; the site would not link their names"
    index = runpy.run_path(str(root / "medstrat" / "_modidx.py"))["d"]["syms"]
    assert set(index) == set(MODULES) and not [m for m, symbols in index.items() if not symbols]


def test_no_error_is_stored():
    for name in names: assert not any(o.output_type == "error" for c in code(name) for o in c.outputs), name


def test_no_private_name_crosses_a_module():
    for path in (root / "medstrat").rglob("*.py"):
        if path.name == "_modidx.py": continue
        for n in ast.walk(ast.parse(path.read_text())):
            private = [a.name for a in n.names if re.match(r"_[^_]", a.name)] if isinstance(n, ast.ImportFrom) else []
            assert not (private and (n.level or (n.module or "").startswith("medstrat"))), f"{path}: {private}"


def test_public_names_are_documented():
    for path in (root / "medstrat").rglob("*.py"):
        public = [n for n in ast.parse(path.read_text()).body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith("_")]
        lack = [n.name for n in public if not ast.get_docstring(n)]
        assert not lack, f"{path}: {lack}"


def test_tests_mirror_the_package():
    "tests/parts/test_mixture.py has the tests of medstrat/parts/mixture.py; a name that is taken is led by its folder's: test_cohort_tables.py"
    for path in (root / "tests").rglob("test_*.py"):
        if path.parent == root / "tests": continue
        folder, name = root / "medstrat" / path.parent.relative_to(root / "tests"), path.stem.removeprefix("test_")
        assert (folder / f"{name}.py").exists() or (folder / f"{name.removeprefix(f'{folder.name}_')}.py").exists(), f"{path.relative_to(root)} has the tests of no module"
