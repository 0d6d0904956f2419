import sys

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from lightning_unlearn.losses.erasure import leace


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
    matrix, bias = leace(latents, labels)
    erased = latents @ matrix.T + bias
    torch.testing.assert_close(erased[labels].mean(0), erased[~labels].mean(0), atol=1e-9, rtol=0)
    accuracy, coefficient = probe_score(erased, labels)
    assert accuracy == pytest.approx(0.5, abs=0.02)
    assert coefficient < 1e-6


def test_leace_keeps_the_mean_and_all_directions_but_one(generator):
    latents, labels = correlated(generator, 0.3)
    matrix, bias = leace(latents, labels)
    torch.testing.assert_close((latents @ matrix.T + bias).mean(0), latents.mean(0))
    assert torch.linalg.matrix_rank(matrix, tol=1e-6) == 4


def test_without_the_extra_the_remedy_is_told(monkeypatch, generator):
    monkeypatch.setitem(sys.modules, "concept_erasure", None)
    with pytest.raises(ValueError, match=r"lightning-unlearn\[leace\]"):
        leace(*correlated(generator, 0.5, n=50))
