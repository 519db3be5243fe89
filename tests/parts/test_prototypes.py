"The bank of prototypes: similarities, responsibilities, the update and its direction, re-seeding, draws; and several processes."

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medstrat.parts.prototypes import (
    PrototypeBank,
    batch_sums,
    draw_around,
    draw_labels,
    draw_of_cluster,
    move_prototypes,
    orthogonality,
    similarity,
    soft_assign,
    temperature,
)

few = settings(max_examples=25, deadline=None)


KINDS = ("cosine", "dot", "euclidean")


@st.composite
def clouds(draw):
    "z (B,d), Q (K,d), labels (B,), batch_weight"
    b, d, k = draw(st.integers(1, 12)), draw(st.integers(1, 4)), draw(st.integers(1, 6))
    g = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    return torch.randn(b, d, generator=g), torch.randn(k, d, generator=g), torch.randint(k, (b,), generator=g), draw(st.floats(0, 1))


@few
@given(clouds(), st.randoms())
def test_permuting_clusters_permutes_everything(cloud, random):
    z, Q, labels, weight = cloud
    order = list(range(len(Q))); random.shuffle(order)
    order = torch.tensor(order)
    inverse = order.argsort()
    torch.testing.assert_close(move_prototypes(Q[order], z, inverse[labels], weight), move_prototypes(Q, z, labels, weight)[order])
    for kind in KINDS:
        torch.testing.assert_close(soft_assign(z, Q[order], 0.5, kind), soft_assign(z, Q, 0.5, kind)[:, order])


@few
@given(clouds())
def test_a_prototype_moves_between_the_old_place_and_the_mean(cloud):
    z, Q, labels, weight = cloud
    new = move_prototypes(Q, z, labels, weight)
    for k in range(len(Q)):
        mine = z[labels == k]
        if not len(mine): assert new[k].equal(Q[k]); continue
        low, high = torch.minimum(Q[k], mine.mean(0)), torch.maximum(Q[k], mine.mean(0))
        assert (new[k] >= low - 1e-5).all() and (new[k] <= high + 1e-5).all()
        torch.testing.assert_close((new[k] - Q[k]).norm(), weight * (mine.mean(0) - Q[k]).norm(), atol=1e-5, rtol=1e-4)   # the share named by the weight


@few
@given(clouds())
def test_batch_weight_one_and_zero(cloud):
    z, Q, labels, _ = cloud
    assert move_prototypes(Q, z, labels, 0.0).equal(Q)
    new = move_prototypes(Q, z, labels, 1.0)
    for k in labels.unique(): torch.testing.assert_close(new[k], z[labels == k].mean(0))


@few
@given(clouds(), st.sampled_from(KINDS), st.floats(0.01, 10))
def test_responsibilities_are_a_distribution(cloud, kind, tau):
    z, Q, _, _ = cloud
    c = soft_assign(z, Q, tau, kind)
    assert c.isfinite().all() and (c >= 0).all()
    torch.testing.assert_close(c.sum(1), torch.ones(len(z)))
    top = similarity(z, Q, kind)
    chosen = draw_labels(c, "argmax")
    torch.testing.assert_close(top.gather(1, chosen[:, None])[:, 0], top.max(1).values, atol=1e-4, rtol=1e-4)


def test_lower_temperature_is_sharper():
    z, Q = torch.randn(20, 3), torch.randn(5, 3)
    entropy = [-(c := soft_assign(z, Q, tau)).clamp(min=1e-30).log().mul(c).sum(1).mean() for tau in (5.0, 1.0, 0.1, 0.01)]
    assert entropy == sorted(entropy, reverse=True)
    with pytest.raises(ValueError, match="positive"): soft_assign(z, Q, 0.0)


@few
@given(clouds())
def test_similarities_by_their_definition(cloud):
    z, Q, _, _ = cloud
    torch.testing.assert_close(similarity(z, Q, "euclidean"), -torch.cdist(z.double(), Q.double()).square().float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(similarity(z, Q, "cosine"), torch.cosine_similarity(z[:, None], Q[None], dim=2), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(similarity(3 * z, Q, "cosine"), similarity(z, Q, "cosine"), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(similarity(z, Q, "dot"), (z[:, None] * Q[None]).sum(2))


def test_similarity_is_float32_under_autocast():
    z, Q = torch.randn(8, 32) + 50, torch.randn(4, 32) + 50    # bfloat16 would not see the difference between near prototypes
    with torch.autocast("cpu", torch.bfloat16): got = similarity(z.bfloat16().float(), Q, "euclidean")
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, similarity(z.bfloat16().float(), Q, "euclidean"))


def test_unknown_words_are_named():
    z = torch.randn(2, 2)
    with pytest.raises(ValueError, match="'manhattan'.*cosine"): similarity(z, z, "manhattan")
    with pytest.raises(ValueError, match="'soft'.*argmax"): draw_labels(z, "soft")
    with pytest.raises(ValueError, match="'cooling'.*linear"): temperature("cooling", 0.1)


def test_multinomial_draws_follow_the_responsibilities():
    torch.manual_seed(0)
    share = torch.bincount(draw_labels(torch.tensor([[0.7, 0.2, 0.1]]).expand(20_000, 3)), minlength=3) / 20_000
    torch.testing.assert_close(share, torch.tensor([0.7, 0.2, 0.1]), atol=0.02, rtol=0)


@pytest.mark.parametrize("schedule, points", [
    ("linear", {0: 1.0, 0.25: 0.505, 0.5: 0.01, 0.9: 0.01, 1: 0.01}),      # Algorithm 1: to 0.01 in half of the epochs
    ("warm", {0: 5.0, 0.24: 5.0, 0.25: 1.0, 0.375: 0.505, 0.5: 0.01, 1: 0.01}),   # above 1 for the first quarter
    ("constant", {0: 0.01, 0.5: 0.01, 1: 0.01}),
])
def test_temperature_schedules(schedule, points):
    for progress, tau in points.items(): assert temperature(schedule, progress) == pytest.approx(tau), progress
    course = [temperature(schedule, p) for p in np.linspace(0, 1, 101)]
    assert course == sorted(course, reverse=True) and min(course) > 0


def test_batch_sums_against_a_loop():
    z, labels = torch.randn(30, 4), torch.randint(5, (30,))
    sums, counts = batch_sums(z, labels, 6)
    for k in range(6):
        torch.testing.assert_close(sums[k], z[labels == k].sum(0)); assert counts[k] == (labels == k).sum()


def test_dead_prototypes_are_counted_and_reseeded():
    torch.manual_seed(0)
    bank = PrototypeBank(4, 2, "euclidean")
    bank.set(torch.tensor([[0.0, 0], [10, 10], [100, 100], [-100, 100]]))
    z = torch.cat([torch.randn(10, 2), torch.randn(10, 2) + 10])
    for i in range(3):
        assert bank.reseed(z, after=3) == 0
        bank.update(z, bank.responsibilities(z), 0.5, "argmax")
        assert bank.unused.tolist() == [0, 0, i + 1, i + 1]
    alive = bank.Q[:2].clone()
    assert bank.reseed(z, after=3) == 2
    assert bank.Q[:2].equal(alive) and bank.unused.tolist() == [0] * 4
    assert all((z == q).all(1).any() for q in bank.Q[2:]) and not bank.Q[2].equal(bank.Q[3])


def test_more_dead_prototypes_than_images():
    bank = PrototypeBank(5, 2)
    bank.unused.fill_(9)
    assert bank.reseed(torch.randn(2, 2), after=3) == 2
    assert (bank.unused == 0).sum() == 2


def test_bank_is_saved_and_has_nothing_to_learn():
    bank = PrototypeBank(3, 2)
    assert not list(bank.parameters()) and set(bank.state_dict()) == {"Q", "unused", "tau"}
    bank.set(np.arange(6.0).reshape(3, 2)); bank.tau.fill_(0.1)
    other = PrototypeBank(3, 2); other.load_state_dict(bank.state_dict())
    z = torch.randn(4, 2)
    assert other.responsibilities(z).equal(bank.responsibilities(z))
    with pytest.raises(RuntimeError): bank.set(torch.zeros(4, 2))


def test_orthogonality_is_zero_for_orthogonal_centroids_and_one_for_equal_ones():
    assert orthogonality(torch.eye(3), torch.eye(3)).item() == pytest.approx(0, abs=1e-6)
    assert orthogonality(torch.ones(3, 3), torch.eye(3)).item() == pytest.approx(1, abs=1e-6)
    assert orthogonality(torch.randn(5, 3), torch.ones(5, 1)).item() == 0
    z, c = torch.randn(6, 3, requires_grad=True), torch.randn(6, 2).softmax(1)
    orthogonality(z, c).backward()
    assert z.grad.abs().sum() > 0


# ---- new embeddings, and clusters that nobody uses

def test_far_from_the_origin():
    z, Q = torch.randn(20, 6), torch.randn(4, 6)
    assert similarity(1e4 * z, 1e4 * z, "euclidean").diagonal().eq(0).all()
    torch.testing.assert_close(similarity(1000 + z, 1000 + Q, "euclidean"), similarity(z, Q, "euclidean"), rtol=0, atol=1e-2)


def test_hard_and_soft_agree():
    soft, hard = PrototypeBank(4, 2, "euclidean"), PrototypeBank(4, 2, "euclidean", hard=True)
    Q, z = torch.randn(4, 2), torch.randn(30, 2)
    for bank in (soft, hard): bank.set(Q)
    assert hard.responsibilities(z).equal(torch.eye(4)[soft.responsibilities(z).argmax(1)]) and hard.centres.equal(Q)


def test_draws_of_a_cluster_that_is_hardly_reached():
    rng, far = np.random.default_rng(0), PrototypeBank(2, 2, "euclidean")
    far.set([[0.0, 0.0], [30.0, 0.0]])
    draw = lambda n: rng.standard_normal((n, 2), dtype=np.float32)
    with pytest.raises(ValueError, match="^only 0 of 819200 draws from the prior fell into cluster 1. Choose a larger cluster.$"): draw_of_cluster(far, 1, draw, 1)
    with pytest.raises(ValueError, match=r"cluster 0 with a similarity of at least 1.0 \(the largest was -.*\). Lower min_similarity, or choose"): draw_of_cluster(far, 0, draw, 1, min_similarity=1.0)


def test_draws_without_a_spread_are_the_centre():
    centres = np.arange(8.0).reshape(4, 2)
    assert (draw_around(centres, 0 * centres, 3, np.random.default_rng(0), 0, None) == centres[[0, 0, 0]]).all()
