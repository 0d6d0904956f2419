import pytest
import torch

from lightning_unlearn.losses import editing
from lightning_unlearn.policies.latent_editor import GatedEditor

STEEP = 1e9
"""With such a β the gate is a step."""


def test_suppression_is_the_editors_own(generator):
    latents = torch.randn(20, 4, generator=generator)
    editor = GatedEditor(torch.tensor([0.0, 1.0, 0.0, 0.0]), 1.7, 0.3, 5.0)
    scores = editor.score(latents)
    torch.testing.assert_close(1.7 * editing.unit_suppression(scores, 0.3, 5.0), editor.suppression(latents))
    torch.testing.assert_close(editing.gate(scores, 0.3, 5.0), editor.gate(latents))


def test_tau_is_a_quantile_of_the_positive_scores():
    scores = torch.arange(1.0, 101.0)
    # 40 positives 1…40: position 0.8·39 = 31.2 counted from 0, between 32 and 33
    assert editing.quantile_tau(scores, scores <= 40, 0.8) == pytest.approx(32.2)


def test_with_fewer_than_32_positives_tau_is_a_quantile_of_all_scores():
    scores = torch.arange(1.0, 102.0)
    assert editing.quantile_tau(scores, scores <= 31, 0.8) == pytest.approx(81.0)
    assert editing.quantile_tau(scores, scores <= 32, 0.5) == pytest.approx(16.5)


def test_near_and_far_stay_inside_their_episode():
    c_forget, done = torch.zeros(2, 10), torch.zeros(2, 10, dtype=torch.bool)
    c_forget[0, 3] = c_forget[1, 7] = 1.0
    done[:, 5] = True
    near, far = editing.near_far(c_forget, done, window=2)
    assert near[0].nonzero().flatten().tolist() == [1, 2, 3]
    assert far[0].nonzero().flatten().tolist() == [0, 6, 7, 8, 9]  # 4 and 5 come just after it
    assert near[1].nonzero().flatten().tolist() == [6, 7]  # 5 is two steps before, but of the episode before
    assert far[1].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_near_and_far_against_a_plain_loop(generator):
    c_forget = torch.rand(3, 200, generator=generator) < 0.03
    done = torch.rand(3, 200, generator=generator) < 0.05
    near, far = editing.near_far(c_forget, done, window=7)
    for e in range(3):
        starts = [0, *(done[e].nonzero().flatten() + 1).tolist(), 200]
        for t in range(200):
            low, high = max(s for s in starts if s <= t), min(s for s in starts if s > t)
            assert near[e, t] == c_forget[e, t : min(t + 8, high)].any()
            assert far[e, t] == (not c_forget[e, max(t - 7, low) : min(t + 8, high)].any())


def test_the_sweep_takes_the_tau_with_the_largest_ratio():
    near, far = torch.linspace(0, 1, 101), torch.tensor([0.52])
    # the q-quantile of near is q; far is suppressed for τ < 0.52, so the ratio peaks at the first τ above: 0.55
    assert editing.sweep_tau(near, far, STEEP) == pytest.approx(0.55)
    assert editing.TAU_QUANTILES[0] == 0.3
    assert editing.TAU_QUANTILES[-1] == pytest.approx(0.9)


def test_alpha_brings_the_mean_near_score_to_the_low_far_percentile():
    near, far = torch.tensor([1.0, 3.0]), torch.full((10,), 0.5)
    # mean near 2, goal 0.5, mean relu(s − 0) = 2: α = 1.5/2
    assert editing.closed_form_alpha(near, far, 0.0, STEEP) == pytest.approx(0.75)
    assert (near - 0.75 * near).mean().item() == pytest.approx(0.5)
    # the 1st percentile of 0, 1, … 100 is 1: α = (2 − 1)/2
    assert editing.closed_form_alpha(near, torch.arange(101.0), 0.0, STEEP) == pytest.approx(0.5)


def test_alpha_stays_from_0_to_50():
    near = torch.tensor([1.0, 3.0])
    assert editing.closed_form_alpha(near, torch.tensor([-1000.0]), 0.0, STEEP) == 50.0
    assert editing.closed_form_alpha(near, torch.tensor([9.0]), 0.0, STEEP) == 0.0
    assert editing.closed_form_alpha(near, torch.tensor([0.0]), 99.0, STEEP) == 50.0  # nothing is above τ


def test_the_refine_loss_by_hand():
    near, far = torch.tensor([2.0]), torch.tensor([3.0])
    loss = editing.refine_loss(near, far, torch.tensor(0.5), torch.tensor(1.0), 1.0, editing.FarScores(0.5, 2.0))
    # near: g = sigmoid(1) = 0.7310586, suppression 0.5·g·1 = 0.3655293, post-edit 1.6344707
    # ((1.6344707 − 0.5)/2)² = 0.3217559
    # far: g = sigmoid(2) = 0.8807971, suppression 0.5·g·2 = 0.8807971; ½·0.8807971/2 = 0.2201993
    assert loss.item() == pytest.approx(0.3217559 + 0.8807971 + 0.2201993)


def test_refining_lowers_the_loss_and_depends_on_its_stream_alone():
    near, far = torch.randn(400) + 1.0, torch.randn(400)
    start = editing.Strength(0.5, 0.5)
    runs = [editing.refine(near, far, start, 10.0, torch.Generator().manual_seed(s), steps=50) for s in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]

    def loss(strength):
        typical = editing.FarScores(far.median().item(), far.std().item())
        return editing.refine_loss(near, far, *(torch.tensor(number) for number in strength), 10.0, typical)

    assert loss(runs[0]) < loss(start)
    # Adam's first step is its step size against the sign of the gradient
    once = editing.refine(near, far, start, 10.0, torch.Generator().manual_seed(0), steps=1)
    assert once.alpha == pytest.approx(0.505)
    assert abs(once.tau - 0.5) == pytest.approx(0.001, rel=1e-4)


@pytest.mark.parametrize("steps", [500, 5000])
def test_refining_opens_the_gate_near_the_concept_and_not_everywhere(generator, steps):
    near, far = 0.3 + 0.1 * torch.randn(2000, generator=generator), 0.1 * torch.randn(2000, generator=generator)
    start = editing.Strength(1.0, 0.2)
    alpha, tau = editing.refine(near, far, start, 10.0, torch.Generator().manual_seed(0), steps=steps)
    assert (near > tau).float().mean() > 0.5
    assert (far > tau).float().mean() < 0.2
    edited = (near - alpha * editing.unit_suppression(near, tau, 10.0)).mean()
    assert (edited - far.median()).abs() < 0.5 * (near.mean() - far.median())


def test_far_scores_without_spread_are_refused():
    near, far = torch.ones(50), torch.full((50,), 0.25)
    with pytest.raises(ValueError, match=r"all 50 far scores are 0\.25"):
        editing.refine(near, far, editing.Strength(1.0, 0.5), 10.0, torch.Generator())


def test_alpha_is_kept_at_its_limit():
    near, far = torch.ones(50), torch.linspace(-1.0, 0.0, 50)
    assert editing.refine(near, far, editing.Strength(50.0, 0.99), 10.0, torch.Generator(), steps=3).alpha == 50.0


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        editing.quantile_tau(torch.zeros(3), torch.ones(2, dtype=torch.bool), 0.5)
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        editing.near_far(torch.zeros(2, 3), torch.zeros(3, 2, dtype=torch.bool))
