import pytest
import torch
from torch.distributions import Normal, kl_divergence

from lightning_unlearn.losses.gaussian import gaussian_kl, kept_kl, locality


def test_kl_is_that_of_pytorch(generator):
    p, q = torch.randn(9, 2, generator=generator), torch.randn(9, 2, generator=generator)
    std_p, std_q = torch.tensor([0.5, 2.0]), torch.tensor([1.5, 0.7])
    torch.testing.assert_close(gaussian_kl(p, std_p, q, std_q), kl_divergence(Normal(p, std_p), Normal(q, std_q)))


def test_near_is_below_the_median_distance():
    # distances 1..4: median 2.5, so the first two are near: means 3 and 0.5.
    split = locality(torch.tensor([2.0, 4.0, 0.0, 1.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert (split.near, split.far, split.overall) == (3.0, 0.5, 1.75)
    assert split.ratio == pytest.approx(6.0)


def test_the_penalty_averages_the_joint_kl_over_what_does_not_show_the_concept():
    # joint KLs 3, 100, 5 and 7; the second and the last show the concept: (3 + 5)/2 = 4
    kl = torch.tensor([[1.0, 2.0], [50.0, 50.0], [0.0, 5.0], [3.0, 4.0]], requires_grad=True)
    penalty = kept_kl(kl, torch.tensor([0.0, 1.0, 0.0, 1.0]))
    penalty.backward()
    assert penalty.item() == 4.0
    assert kl.grad.tolist() == [[0.5, 0.5], [0.0, 0.0], [0.5, 0.5], [0.0, 0.0]]


def test_the_penalty_is_zero_where_everything_shows_the_concept():
    assert kept_kl(torch.ones(3, 2), torch.ones(3)).item() == 0.0


def test_misshapen_input_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 2\), \(3, 1\)"):
        kept_kl(torch.zeros(3, 2), torch.zeros(3, 1))
    with pytest.raises(ValueError, match="shape"):
        locality(torch.zeros(3, 1), torch.zeros(3))
    with pytest.raises(ValueError, match="shapes differ"):
        gaussian_kl(torch.zeros(3, 2), torch.ones(2), torch.zeros(3, 2), torch.ones(3))


def test_distances_may_be_infinite():
    """The median of 1, 2, inf, inf is infinite: the two finite ones are near."""
    inf = float("inf")
    found = locality(torch.tensor([3.0, 1.0, 1.0, 1.0]), torch.tensor([1.0, 2.0, inf, inf]))
    assert (found.near, found.far) == (2.0, 1.0)
    nowhere_near = locality(torch.ones(3), torch.full((3,), inf))
    assert nowhere_near.overall == nowhere_near.far == 1.0
    assert nowhere_near.near != nowhere_near.near
