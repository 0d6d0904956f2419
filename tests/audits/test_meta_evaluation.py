"""How well audits tell models apart, against scikit-learn and numbers worked out by hand."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

import lightning_unlearn as lu
from lightning_unlearn.audits.meta_evaluation import auc_interval

HIDDEN = [True, True, True, False, False]


def test_the_area_is_the_share_of_pairs_in_the_right_order():
    scores = pd.DataFrame({"sharp": [3, 4, 5, 1, 2], "blunt": [1, 2, 3, 2, 2], "gap": [5, np.nan, 1, 1, 0]})
    found = lu.meta_evaluation(scores, HIDDEN)
    assert found.loc["blunt", "auc"] == roc_auc_score(HIDDEN, scores["blunt"])
    # blunt: of 6 pairs 2 are in order, 2 are ties; gap: of 4 pairs 3 are in order, 1 is a tie
    assert found["auc"].to_dict() == pytest.approx({"sharp": 1.0, "blunt": 0.5, "gap": 3.5 / 4})
    assert found["weak"].to_dict() == {"sharp": False, "blunt": True, "gap": False}
    assert found.loc["gap", ["hidden", "never"]].tolist() == [2, 2]
    assert found.loc["sharp", ["low", "high"]].tolist() == [1.0, 1.0]
    assert (found["low"] <= found["auc"]).all()
    assert (found["auc"] <= found["high"]).all()
    pd.testing.assert_frame_equal(found, lu.meta_evaluation(scores, HIDDEN))


def test_the_interval_is_that_of_resampled_areas():
    rng = np.random.default_rng(0)
    has, never = rng.normal(0.8, 1.0, 10), rng.normal(0.0, 1.0, 8)
    truth = np.repeat([1, 0], [10, 8])
    areas = [
        roc_auc_score(truth, np.concatenate([rng.choice(scores, len(scores)) for scores in (has, never)]))
        for _ in range(400)
    ]
    found = auc_interval(has, never, np.random.default_rng(1), resamples=20_000)
    assert found == pytest.approx(tuple(np.quantile(areas, (0.025, 0.975))), abs=0.04)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(300):
        low, high = auc_interval(rng.normal(1.0, 1.0, 12), rng.normal(0.0, 1.0, 12), rng, resamples=400)
        covered += low <= 0.7602 <= high  # normal distribution function of 1 / √2
    assert 0.86 <= covered / 300 <= 0.98


@pytest.mark.parametrize(
    ("scores", "hidden", "message"),
    [
        ([1.0, 2.0], [True], "give True or False for each of 2 models"),
        ([1.0, 2.0], [1, 0], "give True or False for each of 2 models"),
        ([1.0, np.inf, 1.0, 2.0], [True, True, False, False], r"scores\['a'\] has an infinite score"),
        ([1.0, 2.0, 3.0], [True, True, False], "2 models that hide the behaviour and 1 that never had it"),
        ([1.0, 2.0, 3.0, np.nan], [True, True, False, False], "give two or more of each"),
    ],
)
def test_impossible_banks_are_refused(scores, hidden, message):
    with pytest.raises(ValueError, match=message):
        lu.meta_evaluation(pd.DataFrame({"a": scores}), hidden)
