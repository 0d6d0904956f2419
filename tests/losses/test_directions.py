import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lightning_unlearn.losses import directions
from lightning_unlearn.policies.latent_editor import GatedEditor


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
    assert torch.equal(directions.flipped(first), -first)


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
