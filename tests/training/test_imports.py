"Importing is light: what a method needs when it is fitted is not imported before, and what only trainings by gradient need not at all by others."
import subprocess
import sys

HEAVY = "pytorch_lightning lightning_fabric matplotlib seaborn kornia torchvision timm openTSNE umap sklearn.cluster sklearn.mixture kneed papermill dask IPython nbformat typer PIL nibabel pydicom".split()


def loaded(code):
    "Which of the heavy modules a fresh process has imported after `code`"
    report = f"import sys; print(*[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_the_methods_loads_little(): assert loaded("from medstrat.training.registry import list_methods; list_methods()") == set()


def test_kmeans_on_pixels_needs_no_lightning():
    found = loaded("""
import numpy as np
from medstrat.methods.baselines import PixelKMeans
X = np.random.default_rng(0).integers(0, 256, (40, 16, 16), dtype=np.uint8)
assert set(PixelKMeans(n_clusters=2, verbose=False).fit(X).predict(X)) == {0, 1}
""")
    assert not {"pytorch_lightning", "lightning_fabric", "matplotlib", "torchvision"} & found


def test_a_training_does():
    assert "pytorch_lightning" in loaded("""
import numpy as np
from medstrat.methods.baselines import AEKMeans
AEKMeans(n_clusters=2, epochs=1, verbose=False, accelerator="cpu").fit(np.zeros((40, 16, 16), np.uint8))
""")
