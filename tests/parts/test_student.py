"Student's t, the target and its memory, each against a loop in float64."
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from helpers import Largest

from medstrat.parts.student import (
    StudentBank,
    Target,
    cluster_weights,
    clustering_loss,
    log_student_t,
    sharpen,
)


def slow_log_q(z, m, alpha=1.0):
    "DEC Eq. 1, one pair at a time, in float64"
    z, m = np.asarray(z, np.float64), np.asarray(m, np.float64)
    out = np.zeros((len(z), len(m)))
    for i in range(len(z)):
        for j in range(len(m)): out[i, j] = -(alpha + 1) / 2 * np.log(1 + ((z[i] - m[j]) ** 2).sum() / alpha)
        out[i] -= out[i].max() + np.log(np.exp(out[i] - out[i].max()).sum())
    return out


def cloud(seed, b, k, d, scale=1.0):
    rng = np.random.default_rng(seed)
    return [torch.from_numpy((scale * rng.uniform(-1, 1, (n, d))).astype(np.float32)) for n in (b, k)]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 6), st.integers(1, 6), st.floats(-4, 5), st.floats(0.3, 10))
def test_student_t_against_a_loop(seed, b, k, d, power, alpha):
    z, m = cloud(seed, b, k, d, 10**power)
    log_q = log_student_t(z, m, alpha)
    assert log_q.shape == (b, k) and log_q.dtype == torch.float32
    np.testing.assert_allclose(log_q.exp(), np.exp(slow_log_q(z, m, alpha)), atol=1e-4)
    np.testing.assert_allclose(log_q, slow_log_q(z, m, alpha), atol=5e-3)
    np.testing.assert_allclose(log_q.exp().sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("offset", [1.0, 30.0, 1e3, 1e4])
def test_student_t_depends_on_differences_alone(offset):
    "As far as float32 can tell the shifted points apart"
    z, m = cloud(0, 40, 5, 10)
    z, m = (z + offset), (m + offset)
    np.testing.assert_allclose(log_student_t(z, m).exp(), np.exp(slow_log_q(z, m)), atol=1e-3)


@pytest.mark.parametrize("scale", [1e15, 1e19, 1e30, 3e38])
def test_student_t_does_not_overflow(scale):
    z, m = cloud(1, 20, 4, 3, scale)
    z.requires_grad_(); m.requires_grad_()
    log_q = log_student_t(z, m)
    np.testing.assert_allclose(log_q.detach().exp(), np.exp(slow_log_q(z.detach(), m.detach())), atol=1e-3)
    log_q[:, 0].sum().backward()
    assert log_q.isfinite().all() and z.grad.isfinite().all() and m.grad.isfinite().all()
    far = log_student_t(torch.zeros(2, 3), torch.tensor([[0.0, 0, 0], [scale, 0, 0]]))
    assert far.isfinite().all() and (far.argmax(1) == 0).all() and (far[:, 0].exp() > 0.999).all()


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e4, 1e19, 3e38])
def test_points_on_their_centres(scale):
    z = torch.eye(4) * scale
    q = log_student_t(z, z).exp()
    assert q.isfinite().all() and (scale < 1 or (q.argmax(1) == torch.arange(4)).all())
    assert scale < 1e3 or (q.diagonal() > 0.999).all()
    same = log_student_t(torch.full((3, 2), scale), torch.full((5, 2), scale)).exp()
    np.testing.assert_allclose(same, 0.2, atol=1e-6)
    x = z.clone().requires_grad_()
    log_student_t(x, z).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("alpha", [0.5, 1.0, 4.0])
def test_gradient_is_the_one_of_the_paper(alpha):
    "DEC Eqs 4–5; α there is part of the derivative's factor"
    z, m = cloud(2, 12, 4, 3, 2.0)
    z.requires_grad_(); m.requires_grad_()
    q = slow_log_q(z.detach(), m.detach(), alpha)
    p = sharpen(torch.from_numpy(np.exp(q)), torch.ones(4, dtype=torch.float64)).numpy()
    kl = lambda: -(torch.from_numpy(p).float() * log_student_t(z, m, alpha)).sum()     # the part of KL(P‖Q) that moves
    kl().backward()
    dz, dm = np.zeros((12, 3)), np.zeros((4, 3))
    for i in range(12):
        for j in range(4):
            diff = (z[i] - m[j]).detach().numpy().astype(np.float64)
            step = (alpha + 1) / alpha / (1 + (diff**2).sum() / alpha) * (p[i, j] - np.exp(q[i, j])) * diff
            dz[i] += step; dm[j] -= step
    np.testing.assert_allclose(z.grad, dz, atol=1e-5)
    np.testing.assert_allclose(m.grad, dm, atol=1e-5)
    with torch.no_grad():
        for t, grad in ((z, dz), (m, dm)):
            h, old = 1e-2, t[1, 2].item()
            t[1, 2] = old + h; up = kl().item()
            t[1, 2] = old - h; down = kl().item()
            t[1, 2] = old
            assert (up - down) / (2 * h) == pytest.approx(grad[1, 2], abs=2e-3)


def test_student_t_under_autocast():
    z, m = cloud(3, 6, 3, 4)
    with torch.autocast("cpu", torch.bfloat16): half = log_student_t(z, m)
    assert half.dtype == torch.float32
    np.testing.assert_allclose(half, log_student_t(z, m), atol=1e-6)


def test_bank():
    z, m = cloud(4, 6, 3, 4)
    bank = StudentBank(3, 4, alpha=2.0)
    with torch.no_grad(): bank.Q.copy_(m)
    np.testing.assert_allclose(bank.responsibilities(z).detach(), np.exp(slow_log_q(z, m, 2.0)), atol=1e-5)
    assert [n for n, _ in bank.named_parameters()] == ["Q"] and bank.centres is bank.Q      # the centres learn by gradient


# ---- the target distribution


def slow_weights(q, kind, gamma=2.0):
    q = np.asarray(q, np.float64)
    n, k = q.shape
    w = np.zeros(k)
    for j in range(k):
        u = sum(q[i, j] for i in range(n))
        v = sum(np.sqrt(n / u) * (1 - q[i, j]) ** gamma * -np.log(q[i, j]) for i in range(n))
        w[j] = u if kind == "dec" else u + v
    return w


def slow_target(q, kind="dec", gamma=2.0):
    q, w = np.asarray(q, np.float64), slow_weights(q, kind, gamma)
    p = np.array([[q[i, j] ** 2 / w[j] for j in range(q.shape[1])] for i in range(len(q))])
    return p / p.sum(1, keepdims=True)


def soft(seed, n, k, sharpness=1.0):
    "Random probabilities (n,k), float32"
    return torch.from_numpy((sharpness * np.random.default_rng(seed).standard_normal((n, k))).astype(np.float32)).softmax(1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 6), st.floats(0, 8))
def test_clustering_loss_is_kl(seed, n, k, sharpness):
    q, p = soft(seed, n, k, sharpness), soft(seed + 1, n, k, sharpness)
    assert clustering_loss(q.log(), p).item() == pytest.approx((p.double() * (p.double() / q.double()).log()).sum(1).mean().item(), rel=1e-4, abs=1e-5)
    assert clustering_loss(q.log(), q).item() == pytest.approx(0, abs=1e-5)
    assert clustering_loss(torch.log_softmax(torch.eye(k) * 1e3, 1), torch.eye(k)).item() == pytest.approx(0, abs=1e-6)      # 0 · log 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 6), st.floats(0, 6), st.sampled_from(["dec", "dvc"]), st.floats(0, 4))
def test_target_against_a_loop(seed, n, k, sharpness, kind, gamma):
    q = soft(seed, n, k, sharpness)
    w = cluster_weights(q, kind, gamma)
    np.testing.assert_allclose(w, slow_weights(q, kind, gamma), rtol=1e-3)
    p = sharpen(q, w)
    np.testing.assert_allclose(p, slow_target(q, kind, gamma), atol=1e-4)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["dec", "dvc"]))
def test_target_does_not_depend_on_numbering(seed, kind):
    q, rng = soft(seed, 9, 5, 3.0), np.random.default_rng(seed)
    rows, columns = rng.permutation(9), rng.permutation(5)
    p, moved = sharpen(q, cluster_weights(q, kind)), q[rows][:, columns]
    np.testing.assert_allclose(sharpen(moved, cluster_weights(moved, kind)), p[rows][:, columns], atol=1e-5)


def test_target_is_more_certain():
    q = soft(0, 200, 4, 2.0)
    p = sharpen(q, torch.ones(4))
    assert (p.amax(1) >= q.amax(1) - 1e-6).all()                    # each row, where all clusters weigh the same
    entropy = lambda t: -torch.special.xlogy(t, t).sum(1).mean()
    for kind in ("dec", "dvc"): assert entropy(sharpen(q, cluster_weights(q, kind))) < entropy(q)
    np.testing.assert_allclose(sharpen(torch.full((6, 3), 1 / 3), cluster_weights(torch.full((6, 3), 1 / 3))), 1 / 3, atol=1e-6)


def test_small_clusters_gain():
    "DEC Eq. 3 divides by the soft size: an undecided image goes to the smaller cluster"
    q = torch.tensor([[0.9, 0.1]] * 8 + [[0.1, 0.9], [0.5, 0.5]])
    assert sharpen(q, cluster_weights(q))[-1, 1] > 0.6


@pytest.mark.parametrize("kind", ["dec", "dvc"])
@pytest.mark.parametrize("empty", [0.0, 1e-45, 1e-38, 1e-30, 1e-12])
def test_all_images_in_one_cluster(kind, empty):
    q = torch.tensor([[1.0, empty, empty]] * 50)
    w = cluster_weights(q, kind)
    p = sharpen(q, w)
    assert w.isfinite().all() and p.isfinite().all() and (p.argmax(1) == 0).all()
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-6)
    new = sharpen(torch.tensor([[0.0, 1.0, 0.0], [0.2, 0.3, 0.5]]), w)      # a validation image in a cluster without training images
    assert new.isfinite().all() and new[0].argmax() == 1
    np.testing.assert_allclose(new.sum(1), 1, atol=1e-5)


def test_unknown_kind_of_target():
    with pytest.raises(ValueError, match="target='DEC'.*'dec' or 'dvc'"): cluster_weights(soft(0, 3, 2), "DEC")


def test_one_cluster():
    q = torch.ones(7, 1)
    for kind in ("dec", "dvc"): assert (sharpen(q, cluster_weights(q, kind)) == 1).all()


def test_target_counts_changed_labels():
    eye, t = torch.eye(4) * 0.6 + 0.1, Target()
    assert t.renew(eye, "dec", 2.0, 0.5) is False and t.changed == 1.0            # nothing to compare with yet
    one = eye.clone(); one[0] = eye[1]
    assert t.renew(one, "dec", 2.0, 0.25) is False and t.changed == 0.25 and not t.finished    # "fewer than": not as many
    assert t.renew(one, "dec", 2.0, 0.0) is False                                  # δ = 0 never stops
    assert t.renew(one, "dec", 2.0, 1e-6) is True and t.finished and t.changed == 0
    again = Target(); again.load_state_dict(t.state_dict())
    assert again.finished and again.P.equal(t.P) and again.w.equal(t.w) and again.labels.equal(t.labels)


def test_targets_are_looked_up_by_index():
    q, t = soft(1, 30, 4, 2.0), Target()
    t.renew(q, "dec", 2.0, 0.0)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))[:7]
    assert t.of(None, order).equal(t.P[order]) and not t.of(None, order).equal(t.P[:7])
    np.testing.assert_allclose(t.of(q[order]), t.P[order], atol=1e-6)              # without index: from q and the same weights


def test_distances_need_no_more_than_n_times_k():
    n, k, d = 97, 31, 23
    z, m = cloud(0, n, k, d)
    with Largest() as naive: ((z[:, None] - m[None]) ** 2).sum(2)
    assert naive.size == n * k * d                                # the measurement would notice
    with Largest() as seen: log_student_t(z, m)
    assert n * k <= seen.size <= n * max(k, d)


def test_draws_have_the_spread_that_was_remembered():
    bank = StudentBank(2, 2)
    with torch.no_grad(): bank.Q.copy_(torch.tensor([[3.0, -1.0], [0.0, 0.0]]))
    bank.spread[0] = torch.tensor([0.5, 0.1])
    drawn = bank.draw(5000, np.random.default_rng(0), 0, None)
    np.testing.assert_allclose(drawn.mean(0), (3, -1), atol=0.03); np.testing.assert_allclose(drawn.std(0), (0.5, 0.1), atol=0.02)
