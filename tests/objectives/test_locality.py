import pytest
import torch
from torch.distributions import Normal, kl_divergence

from lightning_unlearn.objectives.locality import gaussian_kl, locality


def test_kl_is_that_of_pytorch(generator):
    p, q = torch.randn(9, 2, generator=generator), torch.randn(9, 2, generator=generator)
    std_p, std_q = torch.tensor([0.5, 2.0]), torch.tensor([1.5, 0.7])
    torch.testing.assert_close(gaussian_kl(p, std_p, q, std_q), kl_divergence(Normal(p, std_p), Normal(q, std_q)))


def test_near_is_below_the_median_distance():
    # distances 1..4: median 2.5, so the first two are near: means 3 and 0.5.
    split = locality(torch.tensor([2.0, 4.0, 0.0, 1.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert (split.near, split.far, split.overall) == (3.0, 0.5, 1.75)
    assert split.ratio == pytest.approx(6.0)


def test_misshapen_input_is_refused():
    with pytest.raises(ValueError, match="shape"):
        locality(torch.zeros(3, 1), torch.zeros(3))
    with pytest.raises(ValueError, match="shapes differ"):
        gaussian_kl(torch.zeros(3, 2), torch.ones(2), torch.zeros(3, 2), torch.ones(3))
