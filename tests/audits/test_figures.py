import dataclasses

import numpy as np
import pytest
import torch

from lightning_unlearn.audits.drawing import save_png
from lightning_unlearn.audits.figures import before_after, goals_given
from lightning_unlearn.collectors.episodes import Episodes, run_episodes
from lightning_unlearn.envs.batched import make_env
from lightning_unlearn.envs.simulator import TopView
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig


def toy_episodes(push: float) -> Episodes:
    """Episodes of a policy that moves right, into the hazard, for a positive `push`."""
    env = make_env("ToyLine-v0", 3)
    policy = ActorCritic(PolicyConfig(2, [-1.0], [1.0]), torch.Generator().manual_seed(0))
    policy.action_mean.bias.data.fill_(push)
    try:
        return run_episodes(env, policy, [1, 2, 3], keep_scenes=True)
    finally:
        env.close()


@pytest.fixture(scope="module")
def pair():
    return toy_episodes(1.0), toy_episodes(-1.0)


@pytest.fixture(scope="module")
def figure(pair):
    return before_after(*pair, 1, ("unsafe", "repaired"))


def test_panels_are_titled_and_labelled(figure):
    first, second, cost, returns = figure.axes
    assert [ax.get_title(loc="left") for ax in (first, second)] == ["unsafe", "repaired"]
    assert (cost.get_xlabel(), cost.get_ylabel()) == ("step", "cost so far")
    assert (returns.get_xlabel(), returns.get_ylabel()) == (
        "cost of an episode",
        "return of an episode",
    )
    assert (first.get_xlim(), first.get_ylim()) == (second.get_xlim(), second.get_ylim())


def test_cost_curves_end_at_the_mean_cost_of_an_episode(figure, pair):
    curves = figure.axes[2].lines
    assert len(curves) == 2
    for curve, episodes in zip(curves, pair, strict=True):
        steps, cost = curve.get_xdata(), curve.get_ydata()
        assert (steps[0], steps[-1]) == (1, 32)
        assert cost[-1] == pytest.approx(episodes.episode_cost.mean())
    assert curves[0].get_ydata()[-1] > curves[1].get_ydata()[-1] == 0.0


def test_scatter_shows_every_layout_and_the_means(figure, pair):
    pairs, *dots = figure.axes[3].collections
    assert len(pairs.get_segments()) == 3
    for episodes, points, mean in zip(pair, dots[::2], dots[1::2], strict=True):
        expected = np.stack([episodes.episode_cost, episodes.episode_return], axis=-1)
        np.testing.assert_allclose(points.get_offsets(), expected)
        np.testing.assert_allclose(mean.get_offsets(), expected.mean(0, keepdims=True))


def test_png_is_1200_wide_and_the_same_each_time(pair, figure, tmp_path):
    save_png(figure, tmp_path / "one.png")
    save_png(before_after(*pair, 1, ("unsafe", "repaired")), tmp_path / "two.png")
    written = (tmp_path / "one.png").read_bytes()
    assert written.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(written[16:20], "big") == 1200
    assert written == (tmp_path / "two.png").read_bytes()


def test_goals_are_listed_once_each_in_order(pair):
    places = [[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]
    scenes = [TopView({"goal": np.array([[place]])}) for place in places]
    episodes = dataclasses.replace(pair[0], scenes=scenes, length=np.array([4]))
    np.testing.assert_array_equal(goals_given(episodes, 0), [[0, 0], [1, 0], [0, 0]])
    assert goals_given(pair[0], 0).shape == (0, 2)


def test_what_cannot_be_compared_is_refused(pair):
    before, after = pair
    with pytest.raises(ValueError, match="keep_scenes"):
        before_after(before, dataclasses.replace(after, scenes=[]), 0, ("a", "b"))
    with pytest.raises(ValueError, match="evaluate both on the same"):
        before_after(before, dataclasses.replace(after, layout_seeds=[1, 2, 4]), 0, ("a", "b"))
