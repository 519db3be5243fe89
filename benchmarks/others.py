"""What a user would take instead: ClustPy's methods, features of ImageNet with k-means, N2D. Used by speed.py."""
import os
import subprocess
import sysconfig
import venv
from importlib.metadata import version
from pathlib import Path

from limits import now
from sklearn.metrics import normalized_mutual_info_score
from sklearn.mixture import GaussianMixture

from medstrat.data.sources import load_dataset
from medstrat.methods.autoencoders import Autoencoder
from medstrat.training.registry import get_method

PEERS = {"clustpy": "clustpy.deep", "umap-learn": "umap"}   # package: its module
ANSWERS = ("features + k-means", "N2D", "AE + k-means", "IDEC", "VaDE")


def peers(folder):
    "A Python that sees the packages of this one, with ClustPy and UMAP: (its path, {package: why it is not there})."
    python, missing = Path(folder) / ("Scripts/python.exe" if os.name == "nt" else "bin/python"), {}
    call = lambda *words: subprocess.run([python, *words], capture_output=True, text=True)
    last = lambda error: (str(error or "").strip() or "no reason was given").splitlines()[-1]
    if not python.exists():
        try: venv.create(folder, with_pip=True)
        except (OSError, subprocess.CalledProcessError) as e: return python, dict.fromkeys(PEERS, f"no Python could be made: {last(e)}")
        where = call("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
        (Path(where) / "beside.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    for package, module in PEERS.items():
        if not call("-c", f"import {module}").returncode: continue
        for words in (("-m", "pip", "install", "-q", package), ("-c", f"import {module}")):
            if (got := call(*words)).returncode: missing.setdefault(package, f"cannot be installed: {last(got.stderr)}")
    return python, missing


def having(cls, **wanted): return cls(**{k: v for k, v in wanted.items() if k in cls.__dataclass_fields__})


def clustpy(job, images):
    import clustpy.deep as deep
    x, first, seconds = images.reshape(len(images), -1).astype("float32") / 255, -(-len(images) // job["batch"]), []
    module, loss = (deep.vade._VaDE_Module, "vade_loss") if job["case"] == "VaDE" else (deep.dec._DEC_Module, "_loss")
    own, start = getattr(module, loss), dict(n_init=1) | (dict(covariance_type="diag") if job["case"] == "VaDE" else {})
    setattr(module, loss, lambda *args, **more: (seconds.append(now()), own(*args, **more))[1])
    getattr(deep, job["case"])(job["k"], batch_size=job["batch"], pretrain_epochs=1, clustering_epochs=job["epochs"], random_state=0,
                               initial_clustering_params=start).fit(x)
    share = (len(seconds) - 1 - first) / first    # epochs between the first and the last loss of those that count
    return len(x) * share / (seconds[-1] - seconds[first]), f"ClustPy {version('clustpy')}, fp32"


def n2d(images, k, **more):
    "An autoencoder, UMAP of its embedding, a mixture. Source: McConville et al. 2021."
    from umap import UMAP
    Z = Autoencoder(network="mlp", hidden=(500, 500, 2000), latent_dim=10, **more).fit(images).transform(images)
    Z = UMAP(n_components=k, n_neighbors=20, min_dist=0.0, random_state=0).fit_transform(Z)
    return GaussianMixture(k, random_state=0).fit_predict(Z)


def answer(job, images):
    part = load_dataset(job["data"]).train
    images, labels, start = part.images[:job["n"]], part.labels[:job["n"]], now()
    more = dict(random_state=0, verbose=False, precision=job["precision"]) | (dict(epochs=1, batch_size=32) if job["small"] else {})
    if job["case"] == "N2D": found = n2d(images, job["k"], **more)
    else: found = having(get_method(job["case"]), n_clusters=job["k"], **more, **(dict(pretrain_epochs=1) if job["small"] else {})).fit(images).labels_
    return now() - start, f"{job['data']}, {len(images):,} images: NMI {normalized_mutual_info_score(labels, found):.3f}"
