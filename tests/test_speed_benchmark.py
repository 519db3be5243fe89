"What the benchmark counts and computes itself: products, exponents, the table, the Python beside this one."
import runpy
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from medstrat.methods.autoencoders import Autoencoder
from medstrat.training.method import Batch
from medstrat.training.phases import Moment
from medstrat.training.settling import settle

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import limits  # noqa: E402
import others  # noqa: E402

SPEED = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "speed.py"))


def counted(run):
    with FlopCounterMode(display=False) as counter: run()
    return counter.get_total_flops()


def autoencoder(network):
    images = np.random.default_rng(0).integers(0, 256, (6, 29, 31, 3), dtype=np.uint8)    # sides that blocks do not halve evenly
    wanted = dict(network=network, channels=(4, 8), hidden=(12, 9), latent_dim=5, n_clusters=2, verbose=False, random_state=0)
    fit = settle(Autoencoder(kind="ink", **wanted), images)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return fit.net.train(), lambda: fit.net.loss(Batch(x), Moment())["loss"]


@pytest.mark.parametrize("rests", [None, "encoder", "decoder"])
@pytest.mark.parametrize("network", ["mlp", "conv", "resize"])
def test_products_are_counted_as_torch_counts_them(network, rests):
    net, loss = autoencoder(network)
    if rests: getattr(net, rests).requires_grad_(False)
    layers = limits.layers_of(net, loss)
    assert sum(limits.flops(*layer) for layer in layers) == counted(lambda: loss().backward())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_what_is_timed_is_what_is_counted(network, dtype):
    net, loss = autoencoder(network)
    for m, x, y, dx, dw in limits.layers_of(net, loss):
        calls = limits.products(m, x, y, dx, dw, dtype)
        assert sum(map(counted, calls)) == limits.flops(m, x, y, dx, dw) and len(calls) == 1 + dx + dw
        made = [next(t for t in (out if isinstance(out, tuple) else [out]) if t is not None) for out in (call() for call in calls)]
        assert [t.shape for t in made] == [y, *[x] * dx, *[m.weight.shape] * dw] and {t.dtype for t in made} == {dtype}


def test_the_time_of_a_call(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(limits, "now", lambda: next(clock))
    called = []
    assert limits.seconds_of(lambda: called.append(1), 0) == 1 and len(called) == 8


def test_exponents():
    x = np.array([10, 30, 100, 300])
    assert SPEED["slopes"](x, 3 * x**1.5) == (1.5, 1.5, 1.5)
    a, low, high = SPEED["slopes"](np.array([1, 10, 100]), np.array([1, 10, 1000]))    # linear, then quadratic
    assert (a, low, high) == (1.5, 1, 2)


def job(part, case, what, name, network="mlp", x=0): return dict(part=part, case=case, what=what, name=name, network=network, x=x)
def result(value, above=1.0): return dict(value=value, note="", peak_gb=above + 1, above_gb=above, gpu_gb=0.0)


def test_the_table():
    jobs = [job("speed", "IDEC", "fit", "fit"), job("speed", "IDEC", "bare", "bare"), job("speed", "IDEC", "limit", "limit"),
            job("speed", "AE", "step", "step, bf16"), job("speed", "AE", "step", "step, bf16", "conv"), job("speed", "IDEC", "ClustPy", "ClustPy"),
            *(job("growth", "IDEC", "fit", "N", x=x) for x in (10, 100)), job("answers", "N2D", "answer", "to clusters")]
    results = {0: [result(v) for v in (80, 100, 300)], 1: [result(200)], 2: [result(400)], 3: [result(50)], 4: [result(7)],
               5: [dict(note="skipped: no network")], 6: [result(1, 0.1)], 7: [result(10, 0.4)], 8: [dict(note="failed: why")]}
    table = SPEED["table_of"](jobs, results, ["IDEC"])
    speed = table[table.part == "speed"].set_index("name")
    assert speed.value.dropna().to_dict() == {"fit": 100, "bare": 200, "limit": 400, "step, bf16": 50}    # the step of its own network
    assert speed.fit_is.dropna().to_dict() == {"fit": 1, "bare": .5, "limit": .25, "step, bf16": 2}
    assert speed.of_limit.dropna().to_dict() == {"fit": .25, "bare": .5}
    assert tuple(speed.loc["fit", ["low", "high", "runs"]]) == (80, 300, 3) and speed.note["ClustPy"] == "skipped: no network"
    exponents = table[table.unit == "exponent"].set_index("note").value
    assert exponents["seconds"] == 1 and exponents["memory above the start's"] == pytest.approx(np.log10(4), abs=1e-3)
    lines = SPEED["text"](table).splitlines()
    assert len(lines) == 1 + len(table) and lines[-1].split("  ")[0] == "answers" and lines[-1].endswith("failed: why")


def test_a_peer_that_cannot_be_had_is_named(tmp_path):
    venv.create(tmp_path / "bare", with_pip=False)    # without pip nothing is installed
    python, missing = others.peers(tmp_path / "bare")
    assert python.exists() and set(missing) == {"clustpy", "umap-learn"} and all("No module named pip" in why for why in missing.values())
