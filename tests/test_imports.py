"Importing is lazy: what is not used is not loaded."
from conftest import python

HEAVY = "pytorch_lightning lightning_fabric matplotlib seaborn kornia torchvision timm openTSNE umap sklearn.cluster sklearn.mixture kneed papermill dask IPython nbformat typer PIL nibabel pydicom".split()


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


def test_importing_the_methods_loads_little():
    assert loaded("from medstrat.training.registry import list_methods; list_methods()", *HEAVY) == []


def test_kmeans_on_pixels_needs_no_lightning():
    found = loaded("""
import numpy as np
from medstrat import PixelKMeans
X = np.random.default_rng(0).integers(0, 256, (40, 16, 16), dtype=np.uint8)
assert set(PixelKMeans(n_clusters=2, verbose=False).fit(X).predict(X)) == {0, 1}
""", *HEAVY)
    assert not {"pytorch_lightning", "lightning_fabric", "matplotlib", "torchvision"} & set(found)


def test_a_training_does():
    assert loaded("""
import numpy as np
from medstrat import AEKMeans
AEKMeans(n_clusters=2, epochs=1, verbose=False, accelerator="cpu").fit(np.zeros((40, 16, 16), np.uint8))
""", "pytorch_lightning")
