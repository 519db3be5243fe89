"What the tests share: tiny images, tiny networks, and a way to stop a training in the middle."
import atexit
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

# One thread a process, for this one and all that it starts (notebooks' kernels, commands), and as many processes as cores (pytest-xdist): threads of
# numerical libraries wait by spinning, and two processes with two threads each on two cores hardly get on. Before anything imports those libraries.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"): os.environ[_name] = "1"

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from medstrat.data import folders  # noqa: E402
from medstrat.data.images import ImageSet  # noqa: E402
from medstrat.training.registry import get_method, list_methods  # noqa: E402

hypothesis.settings.register_profile("repeatable", derandomize=True)   # the same examples in every run
hypothesis.settings.load_profile("repeatable")

ALL = [m.name for m in list_methods()]
# those that can be fitted to images alone, with networks of any size: CDVaDE needs a condition, "transfer" labels, "features + k-means" a file of weights
METHODS = [m for m in ALL if m not in ("CDVaDE", "transfer", "features + k-means")]
DEEP = [m for m in METHODS if m not in ("pixels + k-means", "PCA + k-means")]   # those which train by gradient
PRETRAINED = [m for m in METHODS if "pretrain_epochs" in get_method(m).__dataclass_fields__]    # those which begin with an autoencoder's training


_context = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")
if os.name != "nt": _context.set_forkserver_preload(["torch", "pytorch_lightning", "medstrat.runs.records", "medstrat.parts.figures", "sklearn.cluster", "sklearn.mixture", "nbdev.test", "nbdev.serve_drv", "nbformat", "IPython", "conftest"])


def _apart(log, work, args):
    with open(log, "w") as f:
        for fd in (1, 2): os.dup2(f.fileno(), fd)
    sys.stdout, sys.stderr = (open(fd, "w", closefd=False) for fd in (1, 2))
    work(*args)


def apart(work, *args, log):
    "`work(*args)` in a fresh process that need not import PyTorch once more; returns the exit status, and what was written to the file `log`"
    process = _context.Process(target=_apart, args=(str(log), work, args))
    process.start()
    process.join()
    return process.exitcode, Path(log).read_text()


def images(n=60, side=16, seed=0, channels=1, width=None):
    "Two kinds of stripes with noise, (n, side, width, channels) uint8: something to cluster"
    rng = np.random.default_rng(seed)
    h, w = side, width or side
    kind = np.arange(n) % 2
    rows, cols = np.indices((h, w))
    stripes = np.where(kind[:, None, None], rows // 2 % 2, cols // 2 % 2) * 150
    x = stripes[..., None] + rng.integers(0, 100, (n, h, w, channels))
    return x.astype(np.uint8)


def cohort(n=60, seed=0, **more):
    "The stripes with a table: enough for every method, also for those that learn from labels or are told a condition"
    return ImageSet(images(n, seed=seed, **more), dict(kind=np.arange(n) % 2, tone=np.where(np.arange(n) % 3, "dark", "bright")), target="kind")


@functools.cache
def backbone_file():
    "A file with weights of a tiny backbone, one of timm's own test models"
    import timm
    import torch
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "tiny.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model(BACKBONE)
        with torch.no_grad():
            for _ in range(20): net(torch.rand(8, 3, 32, 32) * 2 - 1)   # statistics that fit the weights
    torch.save(net.state_dict(), path)
    atexit.register(folder.cleanup)
    return path


BACKBONE = "test_efficientnet"
# what makes a method small; each takes the parameters that it has. A function is called when its parameter is there
SMALL = dict(n_clusters=3, image_size=16, epochs=2, pretrain_epochs=2, layer_epochs=1, batch_size=20, channels=(4, 8), hidden=(16,), latent_dim=4, w_dim=2, prior_hidden=8,
             decoder_epochs=2, projection_dim=8, backbone=BACKBONE, weights=backbone_file, input_size=32, random_state=0, accelerator="cpu", precision="32-true", verbose=False)
NEEDS = {"CDVaDE": dict(condition="tone")}   # beside that, to be fitted to a `cohort`: a column of its table


def known(method, values):
    "Those of `values` that are parameters of the method"
    return {k: v for k, v in values.items() if k in get_method(method).__dataclass_fields__}


def tiny(method="VAESim", **changes):
    "An unfitted estimator that trains in a fraction of a second"
    small = {k: v() if callable(v) else v for k, v in known(method, SMALL).items()}
    return get_method(method)(**small | changes)


def ready(method, **changes):
    "Like `tiny`, with all that it takes to be fitted to a `cohort`"
    return tiny(method, **NEEDS.get(method, {}) | changes)


class Lazy(dict):
    "Values that are made when they are first asked for"
    def __init__(self, make): self.make = make
    def __missing__(self, key): return self.setdefault(key, self.make(key))


def interrupt(after):
    "A callback that presses Ctrl-C after so many batches"
    import pytorch_lightning as pl  # here, because the processes that import this file do not all need it
    class Interrupt(pl.Callback):
        seen = 0
        def on_train_batch_end(self, *args):
            self.seen += 1
            if self.seen == after: os.kill(os.getpid(), signal.SIGINT)
    return Interrupt()


def same_weights(a, b):
    "Are all parameters and buffers bit for bit the same?"
    a, b = a.module_.state_dict(), b.module_.state_dict()
    return a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)


@pytest.fixture
def X(): return images()


@pytest.fixture
def alone(monkeypatch, tmp_path):
    "No data folder and no cache but those of the test; notices are said again"
    monkeypatch.delenv("MEDSTRAT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folders._said.clear()


@pytest.fixture(scope="session")
def fitted():
    "One fitted estimator of each method; tests must not change them"
    return Lazy(lambda method: ready(method).fit(cohort()))


# ---- runs

ENV = dict(os.environ, PYTHONPATH=os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]))   # of another process
SMALL_RUN = dict(n_clusters=3, image_size=16, epochs=1, batch_size=20, channels=[4, 8], latent_dim=4, verbose=False)


def python(*code, **kw):
    return subprocess.run([sys.executable, "-c", *code], capture_output=True, text=True, env=ENV, **kw)


def save_stripes(path, labels=lambda n: np.arange(n) % 2):
    "A small set in an .npz file: two kinds of stripes, in three splits"
    np.savez(path, **{f"{s}_{k}": v for i, (s, n) in enumerate(dict(train=60, val=20, test=30).items())
                      for k, v in dict(images=images(n, seed=i)[..., 0], labels=labels(n)[:, None]).items()})
    return str(path)


@pytest.fixture(scope="session")
def stripes(tmp_path_factory): return save_stripes(tmp_path_factory.mktemp("data") / "stripes.npz")


@pytest.fixture(scope="session")
def done(stripes, tmp_path_factory):
    "Two finished runs of one method and one of another; tests must not change them"
    from medstrat.runs.records import finish, start_run
    out = tmp_path_factory.mktemp("runs")
    small = {k: v for k, v in SMALL_RUN.items() if k not in ("channels", "epochs", "batch_size")}
    for seed in (0, 1): finish(start_run("VAEsim", stripes, seed, out=out, **SMALL_RUN))
    finish(start_run("pca_kmeans", stripes, 0, out=out, **small))
    return out


def cohort_file(path, labels=None, test_labels=None, n=60, m=24, **columns):
    "Stripes in two parts, with any labels and columns, in an .npz file"
    X, labels = images(n + m, seed=5)[..., 0], {} if labels is None else {"train_labels": labels, "test_labels": test_labels}
    np.savez(path, train_images=X[:n], test_images=X[n:], **labels, **{f"{s}_{k}": v[r] for k, v in columns.items() for s, r in (("train", slice(n)), ("test", slice(n, None)))})
    return str(path)


def quick_run(path, out, **words):
    "The folder of a run that takes no training"
    from medstrat.runs.records import finish, start_run
    return finish(start_run("pixels+kmeans", path, out=out, n_clusters=3, verbose=False, **words))
