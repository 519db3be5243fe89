"""The public face: what `from medstrat import …` offers, to people, to editors and to type checkers."""
import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import medstrat

root = Path(__file__).parent.parent
FACE = sorted(a.asname for n in ast.parse((root / "medstrat" / "__init__.pyi").read_text()).body if isinstance(n, ast.ImportFrom) for a in n.names)


def test_the_face_is_small_and_whole():
    assert sorted(dir(medstrat)) == FACE and len(FACE) <= 45
    for name in ("VAESim", "load_dataset", "evaluate", "load_model", "ImageSet"): assert name in FACE
    with pytest.raises(AttributeError, match="VAESimm"): _ = medstrat.VAESimm
    with pytest.raises(ImportError, match="VAESimm"): exec("from medstrat import VAESimm")


@pytest.mark.parametrize("name", FACE)
def test_each_name_is_documented(name):
    thing = getattr(medstrat, name)
    assert thing.__module__.startswith("medstrat.") and thing.__name__ == name
    assert inspect.getdoc(thing) and not inspect.getdoc(thing).startswith(f"{name}("), f"{name} has no docstring of its own"
    assert re.search(rf"\b{name}\b", (root / "README.md").read_text()), f"the README does not name {name}"


def test_editors_complete_without_running_anything():
    import jedi
    at = lambda code: {c.name for c in jedi.Script(code, project=jedi.Project(root)).complete()}
    assert set(FACE) <= at("import medstrat\nmedstrat.")
    assert {"fit", "predict", "transform", "sample", "save"} <= at("from medstrat import VAESim\nVAESim().")
    assert {"table", "images", "labels"} <= at("from medstrat import ImageSet\nImageSet().")


def test_types_are_checked(tmp_path):
    "The whole package, with few exceptions; and a program that uses it"
    said = subprocess.run([sys.executable, "-m", "mypy", "--cache-dir", tmp_path / "mypy"], cwd=root, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout[-3000:]
    ignores = [line for p in (root / "medstrat").rglob("*.py") for line in p.read_text().splitlines() if re.search(r"#\s*type:\s*ignore", line)]
    assert len(ignores) <= 20 and all("ignore[" in line for line in ignores)
    assert "exclude" not in (root / "pyproject.toml").read_text().partition("[tool.mypy]")[2]
    program = tmp_path / "program.py"
    program.write_text("from medstrat import VAESim, load_dataset\nreveal_type(VAESim(n_clusters=3).fit(load_dataset('digits').train))\nVAESim(latent_dim='16')\n")
    said = subprocess.run([sys.executable, "-m", "mypy", "--cache-dir", tmp_path / "mypy", program], cwd=root, capture_output=True, text=True, env=os.environ | dict(MYPYPATH=str(root))).stdout
    assert 'Revealed type is "medstrat.methods.vaesim.VAESim"' in said and 'Argument "latent_dim" to "VAESim" has incompatible type "str"' in said, said


def test_type_information_is_shipped():
    assert (root / "medstrat" / "py.typed").exists()
    assert re.search(r"package_data=.*py\.typed.*\*\.pyi", (root / "setup.py").read_text())


def test_runs_have_a_face_of_their_own():
    import medstrat.runs
    names = [a.asname for n in ast.parse((root / "medstrat" / "runs" / "__init__.pyi").read_text()).body if isinstance(n, ast.ImportFrom) for a in n.names]
    assert sorted(dir(medstrat.runs)) == sorted(names) and {"start_run", "finish", "read_runs", "compare"} <= set(names)
    for name in names: assert inspect.getdoc(getattr(medstrat.runs, name))
