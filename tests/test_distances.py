"Distances far from zero: prototypes' and Student's t kernel against differences in float64."
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medstrat.parts.prototypes import similarity
from medstrat.parts.student import log_student_t


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0., 1., 100., 3000.]), st.sampled_from([2, 30, 3000]), st.floats(1e-2, 10))
def test_distances_far_from_zero(seed, offset, d, spread):
    "Against the differences in float64, of the very numbers that are given"
    rng = torch.Generator().manual_seed(seed)
    Z = (offset + spread * torch.randn(20, d, generator=rng, dtype=torch.float64)).float()
    Q = (offset + spread * torch.randn(4, d, generator=rng, dtype=torch.float64)).float()
    exact = (Z.double()[:, None] - Q.double()).square().sum(-1)
    found = -similarity(Z, Q, "euclidean").double()
    assert ((found - exact).abs() <= 1e-4 * exact + 1e-12).all()
    assert torch.cat([similarity(z[None], Q, "euclidean") for z in Z]).equal(-found.float())      # one by one as all at once
    expected = (-(1 + exact).log()).log_softmax(1)
    assert (log_student_t(Z, Q).double() - expected).abs().max() < 1e-3
