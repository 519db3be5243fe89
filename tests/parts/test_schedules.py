"Courses against their formulas, and the groups that LARS makes."
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medstrat.parts.schedules import OPTIMIZERS, adam, lars, learning_rate_factor, warmup_cosine


def slow_rate(epoch, epochs, start, peak, end, rise):
    if epoch <= rise: return start + (peak - start) * epoch / rise
    return end + (peak - end) * (1 + math.cos(math.pi * (epoch - rise) / (epochs - rise))) / 2


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.floats(0, 1), st.floats(0.1, 50), st.floats(1e-4, 1), st.floats(1e-4, 1), st.floats(0, 1))
def test_the_curve(epochs, share, rise, start, peak, end):
    e = share * epochs
    assert warmup_cosine(e, epochs, start, peak, end, rise) == pytest.approx(slow_rate(e, epochs, start, peak, end, rise) if rise < epochs else start + (peak - start) * min(e / rise, 1), rel=1e-6)
    assert min(start, peak, end) - 1e-9 <= warmup_cosine(e, epochs, start, peak, end, rise) <= max(start, peak, end) + 1e-9


def test_lars_of_kernels_or_biases_alone():
    for p in (torch.ones(2, 2), torch.ones(3), torch.tensor(1.0)):
        w = nn.Parameter(p.clone())
        optimizer = lars(iter([w]), lr=0.1)
        w.square().sum().backward(); optimizer.step()
        assert len(optimizer.param_groups) == 1 and w.isfinite().all() and not w.equal(p)


def test_courses_of_the_learning_rate():
    factors = lambda schedule, **more: [learning_rate_factor(schedule, SimpleNamespace(epoch=e, progress=e / 20), **more) for e in (0, 5, 10, 19, 20)]
    assert factors("constant") == [1] * 5
    assert factors("cosine") == pytest.approx([1, (1 + 0.5**0.5) / 2, 0.5, (1 + math.cos(0.95 * math.pi)) / 2, 0])
    assert factors("step", every=10, factor=0.5) == [1, 1, 0.5, 0.5, 0.25] and factors("step") == [1, 1, 1, 1, 0.2]
    assert factors("tenths") == pytest.approx([1, 0.01, 1e-5, 1e-9, 1e-10])
    with pytest.raises(ValueError, match="lr_schedule='linear' is unknown; choose 'constant'"): factors("linear")
def test_the_printed_curve():
    rate = lambda e: warmup_cosine(e, 100, 0.01, 0.25, 0.05, 10)
    assert (rate(0), rate(5), rate(10), rate(55), rate(100), rate(101)) == pytest.approx((0.01, 0.13, 0.25, 0.15, 0.05, 0.05))


def test_adam_takes_the_usual_steps():
    torch.manual_seed(0)
    layers = [nn.Linear(5, 3) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    for layer, optimizer in zip(layers, (adam(layers[0].parameters(), 1e-2), torch.optim.Adam(layers[1].parameters(), 1e-2)), strict=True):
        for _ in range(20):
            optimizer.zero_grad()
            (layer(torch.ones(1, 5)) - 3).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(layers[0].weight, layers[1].weight, rtol=0, atol=1e-5)


def test_optimisers_by_name():
    for name, make in OPTIMIZERS.items():
        w = nn.Parameter(torch.ones(2, 2))
        optimizer = make([w], lr=0.1)
        w.square().sum().backward(); optimizer.step()
        assert not w.equal(torch.ones(2, 2)) and w.isfinite().all(), name
    assert OPTIMIZERS["sgd"]([w], lr=0.1).defaults["momentum"] == 0.9
