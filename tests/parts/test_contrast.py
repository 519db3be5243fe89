"The contrastive loss against loops in float64, its bounds and gradients, and its precision."
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from helpers import pairs, slow_nt_xent

from medstrat.parts.contrast import nt_xent, partner_found


BOTH = pytest.mark.parametrize("denominator", ["all", "negatives"])


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 8), st.integers(1, 6), st.floats(-6, 12), st.floats(0.01, 10), st.sampled_from(["all", "negatives"]))
def test_loss_against_a_loop(seed, b, p, power, tau, denominator):
    z1, z2 = pairs(seed, b, p, 10**power)
    value = nt_xent(z1, z2, tau, denominator)
    assert value.dtype == torch.float32 and value.ndim == 0
    assert value.item() == pytest.approx(slow_nt_xent(z1, z2, tau, denominator), rel=1e-4, abs=2e-5 / tau + 1e-6)
    double = nt_xent(z1.double(), z2.double(), tau, denominator)
    assert double.dtype == torch.float64 and double.item() == pytest.approx(slow_nt_xent(z1, z2, tau, denominator), rel=1e-9, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7), st.integers(2, 5), st.floats(0.05, 5), st.sampled_from(["all", "negatives"]))
def test_what_the_loss_does_not_depend_on(seed, b, p, tau, denominator):
    "Which view is the first, the order of the images, the lengths, the axes"
    z1, z2 = pairs(seed, b, p, dtype=np.float64)
    rng = np.random.default_rng(seed)
    value, order, axes = nt_xent(z1, z2, tau, denominator), rng.permutation(b), torch.from_numpy(np.linalg.qr(rng.normal(size=(p, p)))[0])
    lengths = [torch.from_numpy(rng.uniform(0.1, 10, (b, 1))) for _ in range(2)]
    swapped = torch.from_numpy(rng.random((b, 1)) < 0.5)
    for one, two in [(z2, z1), (z1[order], z2[order]), (lengths[0] * z1, lengths[1] * z2), (z1 @ axes, z2 @ axes), (torch.where(swapped, z2, z1), torch.where(swapped, z1, z2))]:
        torch.testing.assert_close(nt_xent(one, two, tau, denominator), value, rtol=1e-9, atol=1e-9)
    if b > 2: assert abs(nt_xent(z1, z2.roll(1, 0), tau, denominator) - value) > 1e-6      # but on who belongs to whom


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(2, 5), st.floats(0.05, 5))
def test_bounds_of_the_loss(seed, b, p, tau):
    "A cross-entropy over 2B-1; without the positive below the fraction, it is the smaller one"
    z1, z2 = pairs(seed, b, p)
    a, n = nt_xent(z1, z2, tau, "all").item(), nt_xent(z1, z2, tau, "negatives").item()
    assert 0 <= a <= math.log(2 * b - 1) + 2 / tau + 1e-4 and n < a + 1e-5 and n >= math.log(2 * b - 2) - 2 / tau - 1e-4
    assert nt_xent(z1, z1, tau, "all") <= nt_xent(z1, -z1, tau, "all") + 1e-5


@BOTH
@pytest.mark.parametrize("b", [2, 5, 300])
@pytest.mark.parametrize("tau", [1e-3, 0.1, 0.5, 100.0])
def test_identical_projections(b, tau, denominator):
    "All alike: a guess among 2B-1, or 2B-2; and no NaN in the gradient"
    z = torch.full((b, 4), 0.3, requires_grad=True)
    loss = nt_xent(z, z, tau, denominator)
    assert loss.item() == pytest.approx(math.log(2 * b - (1 if denominator == "all" else 2)), abs=1e-3 + 1e-6 / tau)
    loss.backward()
    assert z.grad.isfinite().all()


def test_perfect_pairs():
    "Orthogonal images, identical views: the closed forms"
    for tau in (0.1, 0.5, 2.0):
        e = torch.eye(6, dtype=torch.float64)
        assert nt_xent(e, e, tau).item() == pytest.approx(math.log(1 + 10 * math.exp(-1 / tau)))
        assert nt_xent(e, e, tau, "negatives").item() == pytest.approx(math.log(10) - 1 / tau)
        assert nt_xent(e, -e, tau, "negatives").item() == pytest.approx(math.log(10) + 1 / tau)


def test_one_image():
    z1, z2 = pairs(0, 1, 4)
    assert nt_xent(z1, z2).item() == 0      # nothing to confuse it with
    with pytest.raises(ValueError, match="one image has no negatives.*at least 2"): nt_xent(z1, z2, 0.5, "negatives")
    with pytest.raises(ValueError, match="denominator='All' is unknown; choose 'all' or 'negatives'"): nt_xent(z1, z2, 0.5, "All")


@BOTH
@pytest.mark.parametrize("tau", [0.1, 0.5, 3.0])
def test_gradient_against_finite_differences(tau, denominator):
    z1, z2 = (z.requires_grad_() for z in pairs(3, 5, 4, dtype=np.float64))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, tau, denominator), (z1, z2))
    nt_xent(z1, z2, tau, denominator).backward()
    for z, other, first in ((z1, z2, True), (z2, z1, False)):
        h, at = 1e-5, z.detach().numpy()
        for i, j in [(0, 0), (2, 3), (4, 1)]:
            values = []
            for sign in (1, -1):
                moved = at.copy(); moved[i, j] += sign * h
                both = (moved, other.detach().numpy())
                values.append(slow_nt_xent(*(both if first else both[::-1]), tau, denominator))
            assert z.grad[i, j].item() == pytest.approx((values[0] - values[1]) / (2 * h), abs=1e-6)
    assert (z1.grad * z1).sum(1).abs().max() < 1e-12       # along a projection nothing changes


@BOTH
@pytest.mark.parametrize("tau", [1e-4, 1e-2, 0.5])
def test_large_batches_and_cold_temperatures(tau, denominator):
    z1, z2 = (z.requires_grad_() for z in pairs(1, 1500, 16))
    loss = nt_xent(z1, z2, tau, denominator)
    n = F.normalize(torch.cat([z1, z2]).detach().double(), dim=1).numpy()
    logits = n @ n.T / tau
    np.fill_diagonal(logits, -np.inf)
    i, j = np.arange(3000), np.roll(np.arange(3000), 1500)
    positive = logits[i, j].copy()
    if denominator == "negatives": logits[i, j] = -np.inf
    top = logits.max(1, keepdims=True)
    expected = (np.log(np.exp(logits - top).sum(1)) + top[:, 0] - positive).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert z1.grad.isfinite().all() and z2.grad.isfinite().all() and z1.grad.abs().sum() > 0


@BOTH
def test_projections_of_length_zero(denominator):
    z1, z2 = pairs(0, 4, 3)
    z1[1] = 0
    z1.requires_grad_()
    loss = nt_xent(z1, z2, 0.5, denominator)
    loss.backward()
    assert loss.isfinite() and z1.grad.isfinite().all()


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_loss_under_autocast(dtype, denominator):
    "The logits stay 32 bits wide, whatever the projector computed in"
    z1, z2 = (z.to(dtype) for z in pairs(2, 50, 8))
    plain = nt_xent(z1.float(), z2.float(), 0.05, denominator)
    with torch.autocast("cpu", torch.bfloat16):
        half = nt_xent(z1, z2, 0.05, denominator)
        grown = nt_xent(*(z.clone().requires_grad_() for z in (z1, z2)), 0.05, denominator)
    assert half.dtype == torch.float32 and half.equal(plain) and nt_xent(z1, z2, 0.05, denominator).equal(plain)
    grown.backward()


def test_logits_are_no_matrix_of_16_bits(monkeypatch):
    "Every matrix product inside is 32 bits wide"
    from torch.utils._python_dispatch import TorchDispatchMode
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if "mm" in func.__name__ or "softmax" in func.__name__ or "logsumexp" in func.__name__: found.append(out.dtype)
            return out
    for denominator in ("all", "negatives"):
        found = []
        with torch.autocast("cpu", torch.bfloat16), Watch(): nt_xent(*(z.bfloat16() for z in pairs(0, 9, 4)), 0.5, denominator)
        assert found and set(found) == {torch.float32}


# ---- who is found


def close_pairs(b=200, p=16):
    "Cosines beyond 0.99 between all, beyond 0.9999 within a pair"
    g = torch.Generator().manual_seed(0)
    base = torch.randn(1, p, generator=g) + 0.05 * torch.randn(b, p, generator=g)
    return [base + 5e-4 * torch.randn(b, p, generator=g) for _ in range(2)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 5))
def test_partner_found_against_a_loop(seed, b, p):
    z1, z2 = pairs(seed, b, p, dtype=np.float64)
    z, right = torch.cat([z1, z2]).numpy(), 0
    for i in range(2 * b):
        cosines = [-9 if k == i else float(np.round(z[i] @ z[k] / np.linalg.norm(z[i]) / np.linalg.norm(z[k]), 6)) for k in range(2 * b)]
        if sorted(cosines)[-1] - sorted([-9, *cosines])[-2] < 1e-5 and b > 1: return      # a tie
        right += int(np.argmax(cosines)) == (i + b) % (2 * b)
    assert partner_found(z1, z2).item() == pytest.approx(right / (2 * b))


def test_partner_found_under_autocast():
    z1, z2 = close_pairs()
    assert partner_found(z1, z2) == 1
    with torch.autocast("cpu", torch.bfloat16): assert partner_found(z1, z2) == 1
