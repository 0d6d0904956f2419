import pickle

import pytest
import torch

from lightning_unlearn.policies.latent_editor import Direction, load_direction, save_direction


def written(path, **content):
    torch.save(content, path)
    return path


@pytest.mark.parametrize("tau", [None, -0.75])
def test_a_direction_comes_back_the_same(tmp_path, tau):
    save_direction(tmp_path / "probes" / "d.pt", Direction(torch.tensor([0.6, 0.8]), tau))
    loaded = load_direction(tmp_path / "probes" / "d.pt", 2)
    assert loaded.vector.tolist() == pytest.approx([0.6, 0.8])
    assert loaded.tau == (None if tau is None else pytest.approx(tau))


@pytest.mark.parametrize("tau", [10.0, 10, torch.tensor(10.0), torch.tensor([10.0])])
def test_a_stored_tau_is_divided_by_the_length_of_its_vector(tmp_path, tau):
    loaded = load_direction(written(tmp_path / "d.pt", direction=torch.tensor([[3.0, 4.0]]), tau=tau), 2)
    assert loaded.vector.tolist() == pytest.approx([0.6, 0.8])
    assert loaded.tau == pytest.approx(2.0)  # z·(3, 4) > 10 exactly where z·(0.6, 0.8) > 2


BAD = {
    "another size": ({"direction": torch.ones(3)}, "size 3, but the policy's latent has 2"),
    "no direction": ({"tau": 1.0}, "size none"),
    "all zeros": ({"direction": torch.zeros(2)}, "all zeros"),
    "not finite": ({"direction": torch.tensor([1.0, float("nan")])}, "not finite"),
    "tau that is no number": ({"direction": torch.ones(2), "tau": "0.5"}, "tau is no finite number"),
    "several taus": ({"direction": torch.ones(2), "tau": torch.ones(2)}, "tau is no finite number"),
    "infinite tau": ({"direction": torch.ones(2), "tau": float("inf")}, "tau is no finite number"),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_a_foreign_or_damaged_direction_is_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        load_direction(written(tmp_path / "d.pt", **content), 2)


def test_a_missing_file_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(ValueError, match="probe export"):
        load_direction(tmp_path / "nowhere.pt", 2)


def test_a_pickle_is_refused(tmp_path):
    (tmp_path / "d.pt").write_bytes(pickle.dumps(Direction(torch.ones(2))))
    with pytest.raises(ValueError, match="safely"):
        load_direction(tmp_path / "d.pt", 2)
