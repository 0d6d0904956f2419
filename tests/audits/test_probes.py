import pickle

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lightning_unlearn.audits.probe_data import SplitOptions, make_splits
from lightning_unlearn.audits.probes import StoredProbe, fit_probe, load_probe, probe_file, save_probe, scores
from lightning_unlearn.policies.latent_editor import GatedEditor, load_direction, save_direction


@pytest.fixture
def features():
    """Five features of very different scales and offsets, two of which tell the label."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(600, 5)) * [1, 10, 0.1, 3, 1] + [0, 5, -2, 0, 1]
    return z, (z[:, 0] + 0.1 * z[:, 1] + rng.normal(size=600) > 0.8).astype(np.int64)


def stored(data, features, labels):
    splits = make_splits(data.labels, data.episode_ids, SplitOptions())
    about = {"env": "ToyLine-v0", "model_path": "m", "dataset": "d", "dataset_digest": data.digest}
    return StoredProbe(fit_probe(features, labels), splits, about | {"dataset_states": len(data.states)})


def test_it_is_scikit_learns_pipeline(features):
    z, labels = features
    probe = fit_probe(z, labels)
    reference = make_pipeline(
        StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced", tol=1e-8)
    ).fit(z, labels)
    np.testing.assert_allclose(probe.decision(z), reference.decision_function(z), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(probe.decision(z) > 0, reference.predict(z).astype(bool))


def test_scores_are_scikit_learns(features):
    z, labels = features
    decision = fit_probe(z, labels).decision(z)
    found = scores(decision, labels)
    assert found["auroc"] == roc_auc_score(labels, decision)
    assert found["balanced_accuracy"] == balanced_accuracy_score(labels, decision > 0)
    assert found["confusion_matrix"] == confusion_matrix(labels, decision > 0).tolist()


def test_scores_of_a_small_case_by_hand():
    # Safe scored -1, 2; hazard -1, 1, 3, 3: one of two safe right, three of four hazards right.
    # Pairs safe/hazard won: -1 against -1 (tie), 1, 3, 3 is 3.5; 2 against -1, 1, 3, 3 is 2; 5.5 of 8.
    found = scores(np.array([-1.0, 2.0, -1.0, 1.0, 3.0, 3.0]), np.array([0, 0, 1, 1, 1, 1]))
    assert found == {
        "balanced_accuracy": pytest.approx(0.625),
        "auroc": pytest.approx(5.5 / 8),
        "confusion_matrix": [[1, 1], [1, 3]],
        "n": 6,
        "hazard_ratio": pytest.approx(4 / 6),
        "safe_count": 2,
        "hazard_count": 4,
    }


def test_the_score_passes_tau_exactly_where_the_decision_is_positive(features):
    z, labels = features
    probe = fit_probe(z, labels)
    direction = probe.direction()
    assert float(direction.vector.norm()) == pytest.approx(1.0, abs=1e-6)
    margin = z @ direction.vector.double().numpy() - direction.tau
    raw = np.linalg.norm(probe.coefficients / probe.scaler_scale)
    np.testing.assert_allclose(margin * raw, probe.decision(z), rtol=1e-5, atol=1e-5)
    clear = np.abs(probe.decision(z)) > 1e-4
    np.testing.assert_array_equal((margin > 0)[clear], (probe.decision(z) > 0)[clear])


def test_a_steep_gate_opens_exactly_where_the_decision_is_positive(features, tmp_path):
    z, labels = features
    probe = fit_probe(z, labels)
    save_direction(tmp_path / "d.pt", probe.direction())
    read = load_direction(tmp_path / "d.pt", 5)
    gate = GatedEditor(read.vector, 1.5, read.tau, 1e6).gate(torch.from_numpy(z).float()).numpy()
    clear = np.abs(probe.decision(z)) > 1e-3
    assert clear.mean() > 0.99
    np.testing.assert_array_equal((gate > 0.5)[clear], (probe.decision(z) > 0)[clear])


def test_a_probe_of_zeros_has_no_direction():
    labels = np.tile([0, 1], 50)
    with pytest.raises(ValueError, match="no direction"):
        fit_probe(np.zeros((100, 3)), labels).direction()


def test_another_latent_size_is_refused(features):
    probe = fit_probe(*features)
    with pytest.raises(ValueError, match=r"reads 5 features.*latent has 4.*probe fit"):
        probe.decision(np.zeros((10, 4)))


def test_what_is_saved_is_loaded(data, features, tmp_path):
    kept = stored(data, *features)
    beside = save_probe(tmp_path / "p.npz", kept)
    read = load_probe(str(tmp_path / "p.npz"))
    np.testing.assert_array_equal(read.probe.coefficients, kept.probe.coefficients)
    np.testing.assert_array_equal(read.splits.test, kept.splits.test)
    assert read.metadata["dataset_digest"] == data.digest
    assert beside.read_text().startswith("{")


@pytest.mark.parametrize(
    ("asked", "written"), [("a/p.pkl", "a/p.npz"), ("p.npz", "p.npz"), ("p.v2", "p.v2.npz"), ("p", "p.npz")]
)
def test_a_pickle_becomes_a_safe_file_of_the_same_stem(asked, written):
    assert str(probe_file(asked)) == written


def test_a_pickle_is_never_read_but_its_twin_is(data, features, tmp_path):
    pickled = tmp_path / "p.pkl"
    pickled.write_bytes(pickle.dumps({"coef": 1}))
    with pytest.raises(ValueError, match=r"never read; fit a probe with `lightning-unlearn probe fit`"):
        load_probe(str(pickled))
    save_probe(tmp_path / "p.npz", stored(data, *features))
    assert load_probe(str(pickled)).probe.size == 5


def test_parts_that_do_not_belong_together_are_refused(data, features, tmp_path):
    kept = stored(data, *features)
    save_probe(tmp_path / "p.npz", StoredProbe(kept.probe, kept.splits, kept.metadata | {"dataset_states": 7}))
    with pytest.raises(ValueError, match="do not belong to 7 states"):
        load_probe(str(tmp_path / "p.npz"))
