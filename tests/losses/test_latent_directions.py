import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lightning_unlearn.losses import latent_directions as directions
from lightning_unlearn.policies.latent_editor import GatedEditor

STEEP = 1e9
"""With such a β the gate is a step."""


def labelled(generator, n=600, size=6):
    latents = torch.randn(n, size, generator=generator) * torch.arange(1.0, size + 1) + 3.0
    return latents, latents[:, 0] - 0.2 * latents[:, 3] + torch.randn(n, generator=generator) > 2.0


def test_unit():
    assert directions.unit(torch.tensor([3.0, -4.0])).tolist() == pytest.approx([0.6, -0.8])
    for bad in (torch.zeros(3), torch.tensor([float("inf"), 1.0]), torch.ones(1, 2)):
        with pytest.raises(ValueError, match="no direction"):
            directions.unit(bad)


def test_a_random_direction_is_a_unit_vector_of_its_stream():
    first, again, other = (directions.random_direction(64, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.norm().item() == pytest.approx(1.0)


def test_mean_difference_points_from_the_others_to_the_concept():
    latents = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 4.0]])
    labels = torch.tensor([False, False, True])
    # means (4, 4) and (1, 0): the difference (3, 4) is of length 5
    assert directions.mean_difference(latents, labels).tolist() == pytest.approx([0.6, 0.8])


def test_a_probe_in_raw_space_by_hand():
    # c = (2, 0), b = −1, m = (10, 5), σ = (4, 1): w = (½, 0); "concept" where z·w > m·w − b = 5 + 1 = 6, so z₀ > 12
    probe = directions.from_standardised(np.array([2.0, 0.0]), -1.0, np.array([10.0, 5.0]), np.array([4.0, 1.0]))
    assert probe.vector.tolist() == [1.0, 0.0]
    assert probe.tau == pytest.approx(12.0)


def test_with_a_large_beta_the_gate_opens_exactly_where_the_probe_decides(generator):
    latents, labels = labelled(generator)
    probe = directions.probe_direction(latents, labels)
    sklearns = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced"))
    decided = torch.from_numpy(sklearns.fit(latents.double().numpy(), labels.numpy()).predict(latents.double().numpy()))
    gate = GatedEditor(probe.vector, 1.5, probe.tau, 1e6).gate(latents)
    assert torch.equal(gate > 0.5, decided)
    assert 0.2 < decided.float().mean() < 0.8


@pytest.mark.parametrize("fit", [directions.mean_difference, directions.probe_direction])
@pytest.mark.parametrize("label", [True, False])
def test_one_class_alone_gives_no_direction(fit, label):
    with pytest.raises(ValueError, match="some of each kind"):
        fit(torch.randn(5, 2), torch.full((5,), label))


def test_labels_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"bool of shape \(5,\)"):
        directions.mean_difference(torch.randn(5, 2), torch.ones(4, dtype=torch.bool))


def correlated(generator, share, n=4000, size=5):
    labels = torch.rand(n, generator=generator) < share
    mixing = torch.randn(size, size, generator=generator, dtype=torch.float64)
    shift = torch.tensor([1.0, -0.5, 0.0, 0.0, 0.2], dtype=torch.float64)
    return (torch.randn(n, size, generator=generator, dtype=torch.float64) + labels[:, None] * shift) @ mixing, labels


def probe_score(latents, labels):
    probe = LogisticRegression(max_iter=2000, class_weight="balanced").fit(latents.numpy(), labels.numpy())
    return balanced_accuracy_score(labels.numpy(), probe.predict(latents.numpy())), abs(probe.coef_).max()


@pytest.mark.parametrize("share", [0.4, 0.01])
def test_leace_leaves_no_linear_signal(generator, share):
    latents, labels = correlated(generator, share)
    assert probe_score(latents, labels)[0] > 0.65
    matrix, bias = directions.leace(latents, labels)
    erased = latents @ matrix.T + bias
    torch.testing.assert_close(erased[labels].mean(0), erased[~labels].mean(0), atol=1e-9, rtol=0)
    accuracy, coefficient = probe_score(erased, labels)
    assert accuracy == pytest.approx(0.5, abs=0.02)
    assert coefficient < 1e-6


def test_leace_keeps_the_mean_and_all_directions_but_one(generator):
    latents, labels = correlated(generator, 0.3)
    matrix, bias = directions.leace(latents, labels)
    torch.testing.assert_close((latents @ matrix.T + bias).mean(0), latents.mean(0))
    assert torch.linalg.matrix_rank(matrix, tol=1e-6) == 4


def test_without_the_extra_the_remedy_is_told(monkeypatch, generator):
    monkeypatch.setitem(sys.modules, "concept_erasure", None)
    with pytest.raises(ValueError, match=r"lightning-unlearn\[leace\]"):
        directions.leace(*correlated(generator, 0.5, n=50))


def test_suppression_is_the_editors_own(generator):
    latents = torch.randn(20, 4, generator=generator)
    editor = GatedEditor(torch.tensor([0.0, 1.0, 0.0, 0.0]), 1.7, 0.3, 5.0)
    scores = editor.score(latents)
    torch.testing.assert_close(1.7 * directions.unit_suppression(scores, 0.3, 5.0), editor.suppression(latents))
    torch.testing.assert_close(directions.gate(scores, 0.3, 5.0), editor.gate(latents))


def test_tau_is_a_quantile_of_the_positive_scores():
    scores = torch.arange(1.0, 101.0)
    # 40 positives 1…40: position 0.8·39 = 31.2 counted from 0, between 32 and 33
    assert directions.quantile_tau(scores, scores <= 40, 0.8) == pytest.approx(32.2)


def test_with_fewer_than_32_positives_tau_is_a_quantile_of_all_scores():
    scores = torch.arange(1.0, 102.0)
    assert directions.quantile_tau(scores, scores <= 31, 0.8) == pytest.approx(81.0)
    assert directions.quantile_tau(scores, scores <= 32, 0.5) == pytest.approx(16.5)


def test_near_and_far_stay_inside_their_episode():
    c_forget, done = torch.zeros(2, 10), torch.zeros(2, 10, dtype=torch.bool)
    c_forget[0, 3] = c_forget[1, 7] = 1.0
    done[:, 5] = True
    near, far = directions.near_far(c_forget, done, window=2)
    assert near[0].nonzero().flatten().tolist() == [1, 2, 3]
    assert far[0].nonzero().flatten().tolist() == [0, 6, 7, 8, 9]  # 4 and 5 come just after it
    assert near[1].nonzero().flatten().tolist() == [6, 7]  # 5 is two steps before, but of the episode before
    assert far[1].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_near_and_far_against_a_plain_loop(generator):
    c_forget = torch.rand(3, 200, generator=generator) < 0.03
    done = torch.rand(3, 200, generator=generator) < 0.05
    near, far = directions.near_far(c_forget, done, window=7)
    for e in range(3):
        starts = [0, *(done[e].nonzero().flatten() + 1).tolist(), 200]
        for t in range(200):
            low, high = max(s for s in starts if s <= t), min(s for s in starts if s > t)
            assert near[e, t] == c_forget[e, t : min(t + 8, high)].any()
            assert far[e, t] == (not c_forget[e, max(t - 7, low) : min(t + 8, high)].any())


def test_the_sweep_takes_the_tau_with_the_largest_ratio():
    near, far = torch.linspace(0, 1, 101), torch.tensor([0.52])
    # the q-quantile of near is q; far is suppressed for τ < 0.52, so the ratio peaks at the first τ above: 0.55
    assert directions.sweep_tau(near, far, STEEP) == pytest.approx(0.55)
    assert directions.TAU_QUANTILES[0] == 0.3
    assert directions.TAU_QUANTILES[-1] == pytest.approx(0.9)


def test_alpha_brings_the_mean_near_score_to_the_low_far_percentile():
    near, far = torch.tensor([1.0, 3.0]), torch.full((10,), 0.5)
    # mean near 2, goal 0.5, mean relu(s − 0) = 2: α = 1.5/2
    assert directions.closed_form_alpha(near, far, 0.0, STEEP) == pytest.approx(0.75)
    assert (near - 0.75 * near).mean().item() == pytest.approx(0.5)
    # the 1st percentile of 0, 1, … 100 is 1: α = (2 − 1)/2
    assert directions.closed_form_alpha(near, torch.arange(101.0), 0.0, STEEP) == pytest.approx(0.5)


def test_alpha_stays_from_0_to_50():
    near = torch.tensor([1.0, 3.0])
    assert directions.closed_form_alpha(near, torch.tensor([-1000.0]), 0.0, STEEP) == 50.0
    assert directions.closed_form_alpha(near, torch.tensor([9.0]), 0.0, STEEP) == 0.0
    assert directions.closed_form_alpha(near, torch.tensor([0.0]), 99.0, STEEP) == 50.0  # nothing is above τ


def test_the_refine_loss_by_hand():
    near, far = torch.tensor([2.0]), torch.tensor([3.0])
    loss = directions.refine_loss(near, far, torch.tensor(0.5), torch.tensor(1.0), 1.0, directions.FarScores(0.5, 2.0))
    # near: g = sigmoid(1) = 0.7310586, suppression 0.5·g·1 = 0.3655293, post-edit 1.6344707
    # ((1.6344707 − 0.5)/2)² = 0.3217559
    # far: g = sigmoid(2) = 0.8807971, suppression 0.5·g·2 = 0.8807971; ½·0.8807971/2 = 0.2201993
    assert loss.item() == pytest.approx(0.3217559 + 0.8807971 + 0.2201993)


def test_refining_lowers_the_loss_and_depends_on_its_stream_alone():
    near, far = torch.randn(400) + 1.0, torch.randn(400)
    start = directions.Strength(0.5, 0.5)
    runs = [directions.refine(near, far, start, 10.0, torch.Generator().manual_seed(s), steps=50) for s in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]

    def loss(strength):
        typical = directions.FarScores(far.median().item(), far.std().item())
        return directions.refine_loss(near, far, *(torch.tensor(number) for number in strength), 10.0, typical)

    assert loss(runs[0]) < loss(start)
    # Adam's first step is its step size against the sign of the gradient
    once = directions.refine(near, far, start, 10.0, torch.Generator().manual_seed(0), steps=1)
    assert once.alpha == pytest.approx(0.505)
    assert abs(once.tau - 0.5) == pytest.approx(0.001, rel=1e-4)


@pytest.mark.parametrize("steps", [500, 5000])
def test_refining_opens_the_gate_near_the_concept_and_not_everywhere(generator, steps):
    near, far = 0.3 + 0.1 * torch.randn(2000, generator=generator), 0.1 * torch.randn(2000, generator=generator)
    start = directions.Strength(1.0, 0.2)
    alpha, tau = directions.refine(near, far, start, 10.0, torch.Generator().manual_seed(0), steps=steps)
    assert (near > tau).float().mean() > 0.5
    assert (far > tau).float().mean() < 0.2
    edited = (near - alpha * directions.unit_suppression(near, tau, 10.0)).mean()
    assert (edited - far.median()).abs() < 0.5 * (near.mean() - far.median())


def test_far_scores_without_spread_are_refused():
    near, far = torch.ones(50), torch.full((50,), 0.25)
    with pytest.raises(ValueError, match=r"all 50 far scores are 0\.25"):
        directions.refine(near, far, directions.Strength(1.0, 0.5), 10.0, torch.Generator())


def test_alpha_is_kept_at_its_limit():
    near, far = torch.ones(50), torch.linspace(-1.0, 0.0, 50)
    assert directions.refine(near, far, directions.Strength(50.0, 0.99), 10.0, torch.Generator(), steps=3).alpha == 50.0


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        directions.quantile_tau(torch.zeros(3), torch.ones(2, dtype=torch.bool), 0.5)
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        directions.near_far(torch.zeros(2, 3), torch.zeros(3, 2, dtype=torch.bool))
