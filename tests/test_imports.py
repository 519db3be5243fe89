"Importing is lazy: what is not used is not loaded."
import medstrat
import pytest
from conftest import python

from medstrat.methods.vaesim import VAESim


def loaded(code, *names):
    got = python(f"import sys\n{code}\nprint(*[m for m in {names!r} if m in sys.modules])")
    assert got.returncode == 0, got.stderr[-2000:]
    return got.stdout.splitlines()[-1].split()


def test_import_is_light():
    assert loaded("import medstrat; dir(medstrat); medstrat.__version__", "torch", "pytorch_lightning", "numpy", "pandas", "sklearn") == []


def test_help_is_light():
    for words in (["--help"], ["run", "--help"]):
        code = f"sys.argv = ['medstrat', *{words!r}]\nfrom medstrat.cli import main\ntry: main()\nexcept SystemExit: pass"
        assert loaded(code, "torch", "pytorch_lightning", "sklearn", "pandas", "papermill", "matplotlib") == []


def test_importing_a_method_is_light():
    code = "from medstrat import VAESim; VAESim(lr=1); from medstrat.training.registry import list_methods; list_methods()"
    assert loaded(code, "pytorch_lightning", "lightning", "medmnist", "matplotlib.pyplot", "openTSNE", "papermill", "kneed", "timm", "huggingface_hub") == []


def test_names_of_the_package():
    assert medstrat.VAESim is VAESim and "VAESim" in dir(medstrat) and "load_dataset" in dir(medstrat)
    for name in dir(medstrat): assert getattr(medstrat, name) is not None, name
    with pytest.raises(AttributeError, match="no attribute 'VAESimm'"): _ = medstrat.VAESimm
    with pytest.raises(ImportError): exec("from medstrat import VAESimm")
    assert not hasattr(medstrat, "_labels")
