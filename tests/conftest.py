"What the tests share: tiny images, tiny networks, and a way to stop a training in the middle."
import atexit
import contextlib
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

from medstrat.data.sources import forget_notices  # noqa: E402
from medstrat.data.images import ImageSet  # noqa: E402
from medstrat.training.estimator import DeepClusterer  # noqa: E402
from medstrat.training.registry import get_method, list_methods  # noqa: E402

hypothesis.settings.register_profile("repeatable", derandomize=True)   # the same examples in every run
hypothesis.settings.load_profile("repeatable")

ALL = [m.name for m in list_methods()]
# those that can be fitted to images alone, with networks of any size: CDVaDE needs a condition, "transfer" labels, "features + k-means" a file of weights
METHODS = [m for m in ALL if m not in ("CDVaDE", "transfer", "features + k-means")]
DEEP = [m for m in METHODS if m not in ("pixels + k-means", "PCA + k-means")]   # those which train by gradient
PRETRAINED = [m for m in METHODS if "pretrain_epochs" in get_method(m).__dataclass_fields__]    # those which begin with an autoencoder's training


def pytest_configure(config):
    "Networks that train for an epoch or two look as if they had failed, and have"
    config.addinivalue_line("filterwarnings", "ignore::medstrat.training.signs.DoubtfulFit")


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


def left_out(folder, names):
    "What a copy of the project does not need"
    here = {"runs", "studies", "build", ".git", ".venv"} if Path(folder) == Path(__file__).parent.parent else set()    # medstrat/runs is a package
    return {n for n in names if n in here or n == "__pycache__" or n.endswith(".egg-info")}


def images(n=60, side=16, seed=0, channels=1, width=None):
    "Two kinds of stripes with noise, (n, side, width, channels) uint8: something to cluster"
    rng = np.random.default_rng(seed)
    h, w = side, width or side
    kind = np.arange(n) % 2
    rows, cols = np.indices((h, w))
    stripes = np.where(kind[:, None, None], rows // 2 % 2, cols // 2 % 2) * 150
    x = stripes[..., None] + rng.integers(0, 100, (n, h, w, channels))
    return x.astype(np.uint8)


def four_kinds(n=80):
    "Four kinds of images that any method should separate: (n,16,16,1) uint8 with one bright quarter, and which"
    y = np.arange(n) % 4
    x = np.random.default_rng(0).integers(0, 60, (n, 16, 16, 1))
    for i, k in enumerate(y): x[i, 8 * (k // 2):8 * (k // 2) + 8, 8 * (k % 2):8 * (k % 2) + 8] += 180
    return x.astype(np.uint8), y


def film(n=40, side=32, seed=0):
    "Two kinds of soft spots in gray: (n,side,side,1) uint8"
    rng, y, at = np.random.default_rng(seed), np.arange(n) % 2, np.indices((side, side)) / side
    near = lambda i: np.exp(-((at - np.array([.3, .3 + .4 * y[i]])[:, None, None])**2).sum(0) / .05)
    return np.stack([60 + 120 * near(i) + rng.normal(0, 8, (side, side)) for i in range(n)]).clip(0, 255).astype(np.uint8)[..., None]


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
             decoder_epochs=2, projection_dim=8, random_state=0, accelerator="cpu", precision="32-true", verbose=False)
BEHIND = dict(backbone=BACKBONE, weights=backbone_file, input_size=32)    # of those that always stand behind a backbone, and of the others where they are to
NEEDS = {"CDVaDE": dict(condition="tone")}   # beside that, to be fitted to a `cohort`: a column of its table


def known(method, values):
    "Those of `values` that are parameters of the method"
    return {k: v for k, v in values.items() if k in get_method(method).__dataclass_fields__}


def tiny(method="VAESim", **changes):
    "An unfitted estimator that trains in a fraction of a second"
    values = SMALL | (BEHIND if method in ("transfer", "features + k-means") else {})
    small = {k: v() if callable(v) else v for k, v in known(method, values).items()}
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


# ---- methods that begin with an autoencoder

FAMILY = ["DEC", "IDEC", "DVC", "DVC-2"]   # those which train themselves


def mlp(method="DEC", **changes):
    "The fastest of each of the family, which never stops early and starts from k-means"
    own = dict(beta=1.0) if method.startswith("DVC") else {}
    return tiny(method, **(dict(network="mlp", tol=0.0, init="k-means", n_init=2, augment="none") | own | changes))


def mixed(method="VaDE", **changes):
    "The fastest of those whose prior is a mixture: fully connected, few starts"
    few = dict(n_init=2, augment="none") if method != "GMVAE" else {}
    return tiny(method, **(dict(network="mlp", likelihood="bernoulli") | few | changes))


def history(a): return a.history_.drop(columns="seconds", errors="ignore")    # without an epoch there are none
def weights(a): return {k: v.clone() for k, v in a.module_.state_dict().items()}


def net_input(x):
    "Images (N,H,W,C) uint8 as networks are given them"
    import torch
    return torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255


def phase(a, name=None):
    "The history of one phase, of the last without a name"
    of = a.history_.phase.iloc[-1] if name is None else name
    return a.history_[a.history_.phase == of].dropna(axis=1, how="all").reset_index(drop=True)


def changed_parts(a, b):
    "The sub-modules in which two models differ; what is only measured does not count"
    one, two = weights(a), weights(b)
    return {k.partition(".")[0] for k in one if not one[k].equal(two[k]) and "spread" not in k}


def spied(*callbacks): return dict(trainer_options=dict(callbacks=list(callbacks)))


def Spy(name, fn):
    "A callback: `fn(module, batches seen in this phase)` after each batch of the phases whose name begins so"
    import pytorch_lightning as pl
    class Spy(pl.Callback):
        def __init__(self): self.seen = {}
        def on_train_batch_end(self, trainer, module, *args):
            n = self.seen[module.phase.name] = self.seen.get(module.phase.name, 0) + 1
            if module.phase.name.startswith(name): fn(module, n)
    return Spy()


@pytest.fixture(scope="session")
def quarters(): return four_kinds()


@pytest.fixture(scope="session")
def refined():
    "One fitted estimator of each of the family, with three clusters for the four kinds; tests must not change them"
    return Lazy(lambda m: mlp(m, pretrain_epochs=12, pretrain_lr=5e-3, update_interval=2).fit(four_kinds()[0]))


@pytest.fixture(scope="session")
def parted():
    "VaDE and GMVAE, fitted until the four kinds are four clusters; tests must not change them"
    more = dict(VaDE=dict(pretrain_epochs=20, pretrain_lr=6e-3, epochs=20, lr=3e-3, n_init=5), GMVAE=dict(epochs=100, lr=3e-3, w_dim=4, prior_hidden=32))
    return Lazy(lambda m: mixed(m, n_clusters=4, **more[m]).fit(four_kinds()[0]))


@pytest.fixture
def X(): return images()


@pytest.fixture
def untrained(monkeypatch):
    "Whoever trains, fails"
    from medstrat.training.fitting import Fit   # here, because it loads Lightning
    monkeypatch.setattr(Fit, "follow", lambda *a, **k: pytest.fail("trained"))


@pytest.fixture
def alone(monkeypatch, tmp_path):
    "No data folder and no cache but those of the test; notices are said again"
    monkeypatch.delenv("MEDSTRAT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forget_notices()


@pytest.fixture(scope="session")
def fitted():
    "One fitted estimator of each method; tests must not change them"
    return Lazy(lambda method: ready(method).fit(cohort()))


# ---- sets of images in files

def grey(n, side=8, rng=np.random.RandomState(0)): return rng.randint(0, 256, (n, side, side), np.uint8)


def arrays(side=8, **n):
    "Arrays of a small set in MedMNIST's key order: arrays(train=40, test=10)"
    return {f"{p}_{k}": v for p, m in n.items() for k, v in {"images": grey(m, side), "labels": (np.arange(m) % 2)[:, None]}.items()}


@pytest.fixture
def save(tmp_path):
    "save(name, **arrays) writes an npz into the test's data folder and returns its path"
    def write(name, **kw):
        np.savez(tmp_path / f"{name}.npz", **kw)
        return tmp_path / f"{name}.npz"
    return write


@pytest.fixture
def serve(monkeypatch):
    "Serve a folder on this machine: serve(folder) → address"
    import http.server
    import threading
    servers = []
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    def start(folder):
        s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
        threading.Thread(target=s.serve_forever, daemon=True).start()
        servers.append(s)
        return f"http://127.0.0.1:{s.server_port}/"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield start
    for s in servers: s.shutdown(); s.server_close()


# ---- collections in folders: small files in the layout of BraTS 2018, REFUGE-2 and HER2

def volume(rng, bright=False):
    "20×20×10 voxels (left–posterior–superior, as BraTS stores them): a brain in slices 2 to 8, and its tumour in 4 to 6, most in 5"
    brain, seg = np.zeros((20, 20, 10), bool), np.zeros((20, 20, 10), np.int16)
    brain[3:17, 2:18, 2:9] = True
    seg[5:8, 5:8, 4:7] = 2
    seg[4:9, 4:9, 5] = 4
    v = rng.integers(300, 900, brain.shape) * brain
    v[seg > 0] += 1000 * bright
    return v.astype(np.int16), seg


def write_brats(root, hgg=6, lgg=4, end=".nii.gz", seed=0):
    "Write patients; returns what was written, {(patient, kind): array}"
    import nibabel as nib
    rng, written = np.random.default_rng(seed), {}
    for grade, n, centre in (("HGG", hgg, "CBICA"), ("LGG", lgg, "TCIA09")):
        (root / grade).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            patient = f"Brats18_{centre}_{i:03}_1"
            (root / grade / patient).mkdir()
            for kind in ("t1", "t1ce", "t2", "flair", "seg"):
                v, seg = volume(rng, bright=grade == "HGG" and kind == "t1ce")
                written[patient, kind] = seg if kind == "seg" else v
                nib.save(nib.Nifti1Image(written[patient, kind], np.diag([-1., -1, 1, 1])), root / grade / patient / f"{patient}_{kind}{end}")
    return written


def write_refuge(root, yes=4, no=8, size=(40, 36), seed=0):
    rng = np.random.default_rng(seed)
    for kind, n, letter, level in (("Glaucoma", yes, "g", 200), ("Non-Glaucoma", no, "n", 80)):
        folder = root / "Training400" / kind
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(n): photograph(folder / f"{letter}{i:04}.jpg", rng, size, level)


def photograph(path, rng, size=(40, 36), level=100, **kw):
    from PIL import Image
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((level + rng.integers(0, 50, (size[1], size[0], 3))).astype(np.uint8)).save(path, quality=95, **kw)


def write_her2(root, patches=12, end=".jpg", names="class{}", scores=True, seed=0):
    "`patches` of 3 classes from 3 scanners, two patches a slide; the class is in the brightness. Returns the mean score of each patch"
    import pandas as pd
    from PIL import Image
    rng, rows = np.random.default_rng(seed), {}
    for i in range(patches):
        label = i * 3 // patches
        folder = root / names.format(label + 1)
        folder.mkdir(parents=True, exist_ok=True)
        for code, side in zip(("FD", "H1", "ND") if i % 2 else ("FD", "H2", "ND"), (30, 41, 36), strict=True):
            x = 60 + 70 * label + rng.integers(0, 20, (side - 4, side, 3))
            Image.fromarray(x.astype(np.uint8)).save(folder / f"P{i:02}_{code}{end}")
        rows[f"P{i:02}"] = rng.integers(33 * label + 2, 33 * label + 31, 7)
    if scores:
        table = pd.DataFrame(rows).T.set_axis([f"s{j}" for j in range(1, 8)], axis=1).rename_axis("patch").reset_index()
        table.assign(slide=[f"S{i // 2}" for i in range(patches)]).to_csv(root / "scores.csv", index=False)
    return {k: v.mean() for k, v in rows.items()}


@pytest.fixture
def brats(tmp_path):
    folder = tmp_path / "data" / "MICCAI_BraTS_2018_Data_Training"
    folder.mkdir(parents=True)
    (folder / "survival_data.csv").write_text("Brats18ID,Age\n")
    return folder, write_brats(folder)


@pytest.fixture
def refuge(tmp_path):
    folder = tmp_path / "data" / "REFUGE2"
    write_refuge(folder)
    return folder


@pytest.fixture
def her2(tmp_path):
    folder = tmp_path / "data" / "HER2"
    return folder, write_her2(folder)


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


# ---- draws

@pytest.fixture
def decoded(monkeypatch):
    "The embeddings that are drawn, in place of images"
    found = []
    monkeypatch.setattr(DeepClusterer, "inverse_transform", lambda self, Z, condition=None: found.append(Z) or np.zeros((len(Z), 16, 16, 1)))
    return found


# ---- backbones

@pytest.fixture(scope="session")
def file():
    "A file with weights of a tiny backbone"
    return backbone_file()


@pytest.fixture
def empty_memory():
    "No features kept from an earlier test"
    from medstrat.parts import backbones
    backbones._recent.clear()


@pytest.fixture
def spy(monkeypatch):
    "How many images the backbone was given"
    from medstrat.parts.backbones import Backbone
    seen = []
    real = Backbone.forward
    monkeypatch.setattr(Backbone, "forward", lambda self, x: seen.append(len(x)) or real(self, x))
    return seen


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    "`refused(words, says)`: the command says so in one line, before any notebook is started, and leaves nothing behind"
    from medstrat import cli
    def refused(words, says):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["medstrat", *words])
        monkeypatch.setattr(cli, "kernel", contextlib.nullcontext)
        monkeypatch.setattr(cli, "execute", lambda *_: pytest.fail("not noticed before the notebook"))
        with pytest.raises(SystemExit) as e: cli.main()
        got = capsys.readouterr()
        assert e.value.code == 1 and not got.out
        assert len(got.err.splitlines()) == 1 and got.err.startswith("medstrat: ") and says in got.err
        assert not list(tmp_path.iterdir())
    return refused
