"""Checkpoint files: what is written is read again, and nothing else is."""

import pytest
import torch

from lightning_unlearn.tracking import checkpoints


def test_a_checkpoint_of_many_environments_is_read_again(tmp_path):
    tensors = {f"environment {number}": torch.tensor([number]) for number in range(17_000)}
    checkpoints.AtomicCheckpoints().save_checkpoint(tensors, tmp_path / "update-1")
    assert checkpoints.AtomicCheckpoints().load_checkpoint(checkpoints.newest(tmp_path)) == tensors


def test_a_checkpoint_that_would_not_be_read_again_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"more than 1000 are not read again: .*data.num_envs.*model.capacity"):
        checkpoints.AtomicCheckpoints().save_checkpoint({"weights": torch.zeros(1000)}, tmp_path / "update-1")
    assert [*tmp_path.iterdir()] == []


def test_a_checkpoint_that_asks_for_more_than_tensors_is_refused(tmp_path):
    class Greedy:
        def __reduce__(self):
            return bytearray, (10**12,)

    torch.save({"state_dict": Greedy()}, tmp_path / "greedy.ckpt")
    with pytest.raises(ValueError, match="bytearray"):
        checkpoints.AtomicCheckpoints().load_checkpoint(tmp_path / "greedy.ckpt")
