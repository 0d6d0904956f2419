import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from lightning_unlearn.audits.figures import save_png
from lightning_unlearn.audits.top_view import (
    Path2D,
    SceneMap,
    before_after,
    drawn_frames,
    extent,
    goals_given,
    prepare_map,
    track,
)
from lightning_unlearn.collectors.episodes import Episodes, run_episodes
from lightning_unlearn.envs.batched import make_env
from lightning_unlearn.envs.simulator import TopView
from lightning_unlearn.policies.actor_critic import ActorCritic, PolicyConfig


@pytest.fixture(scope="module")
def toy_episodes():
    env = make_env("ToyLine-v0", 3)
    policy = ActorCritic(PolicyConfig(2, [-1.0], [1.0]), torch.Generator().manual_seed(0))
    yield run_episodes(env, policy, [1, 2, 3], keep_scenes=True, noise=torch.Generator().manual_seed(0))
    env.close()


def two_step_episode() -> Episodes:
    """Two environments; in the second one the agent goes right, the gremlin goes up, the episode ends after 2 of 3."""
    scenes = []
    for step in range(3):
        agent = [[[9.0, 9.0]], [[float(step), 0.0]]]
        gremlins = [[[9.0, 9.0]], [[-1.0, 3.0 * step]]]
        scenes.append(TopView({"agent": np.array(agent), "gremlins": np.array(gremlins)}, {"gremlins": 0.5}))
    signal = np.zeros((2, 3))
    length = np.array([3, 2])
    observation, flags = np.zeros((2, 3, 1)), np.zeros(2, dtype=bool)
    signals = (signal, signal, signal, signal > 0, length)
    return Episodes([0, 1], observation, observation, *signals, observation[:, 0], flags, flags, scenes)


def test_frames_show_the_steps_of_the_episode(toy_episodes):
    frames = np.stack(drawn_frames(toy_episodes, 1, "untrained", every=5))
    assert frames.shape == (7, 350, 320, 3)  # the scenes before steps 0, 5, ..., 30 of 32
    assert all((before != after).any() for before, after in pairwise(frames[:, :40]))  # the header
    assert (frames[0, 40:] != frames[-1, 40:]).any()
    (frame,) = drawn_frames(toy_episodes, 0, "costs $5 _now_", every=100, size=400)
    assert frame.shape[1] == 400


def test_tracks_and_extent_stop_with_the_episode():
    episodes = two_step_episode()
    np.testing.assert_array_equal(track(episodes, 1, "agent")[:, 0], [[0, 0], [1, 0]])
    # Lowest: the gremlin at (-1, 0) less 0.5. Highest: the agent's x of 1 plus its 0.1, the gremlin's y of 3 plus 0.5.
    np.testing.assert_allclose(extent(episodes, 1), [[-1.5, -0.5], [1.1, 3.5]])


def test_map_holds_all_that_is_covered_in_a_square():
    axes = Figure().add_subplot()
    prepare_map(axes, np.array([[-1.5, -0.5], [1.1, 3.5]]))
    low, high = np.transpose([axes.get_xlim(), axes.get_ylim()])
    assert np.ptp(high - low) == pytest.approx(0.0, abs=1e-12)
    assert (low < [-1.5, -0.5]).all()
    assert (high > [1.1, 3.5]).all()


def test_objects_move_with_their_labels():
    axes = Figure().add_subplot()
    scene = SceneMap(axes, {"gremlins": np.array([[0.0, 0.0], [4.0, 4.0]])}, {"gremlins": 0.5})
    scene.move({"gremlins": np.array([[1.0, 2.0], [4.0, 4.0]])})
    (shapes,) = axes.collections
    centres = [path.vertices[:-1].mean(0) for path in shapes.get_paths()]  # without the corner that closes it
    np.testing.assert_allclose(centres, [[1, 2], [4, 4]], atol=1e-12)
    assert [text.get_text() for text in axes.texts] == ["gremlin", "gremlin"]
    np.testing.assert_allclose(axes.texts[0].get_position(), (1.0, 1.5))  # just under the disc


def test_path_marks_the_steps_that_show_the_concept():
    axes = Figure().add_subplot()
    Path2D(axes).show(np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 1.0]]), np.array([0.0, 1.0, 0.0]))
    whole, flagged = axes.lines
    np.testing.assert_array_equal(whole.get_xydata(), [[0, 0], [1, 0], [2, 0], [3, 1]])
    np.testing.assert_array_equal(flagged.get_xydata(), [[1, 0], [2, 0], [np.nan, np.nan]])


def test_impossible_requests_name_the_remedy(toy_episodes):
    with pytest.raises(ValueError, match="keep_scenes"):
        drawn_frames(dataclasses.replace(toy_episodes, scenes=[]), 0, "")
    with pytest.raises(ValueError, match=r"episode=3 .* use 0 to 2"):
        drawn_frames(toy_episodes, 3, "")
    with pytest.raises(ValueError, match="task without a map"):
        drawn_frames(dataclasses.replace(toy_episodes, scenes=[TopView()] * len(toy_episodes.scenes)), 0, "")
    with pytest.raises(ValueError, match="every=0"):
        drawn_frames(toy_episodes, 0, "", every=0)


def pushed_episodes(push: float) -> Episodes:
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
    return pushed_episodes(1.0), pushed_episodes(-1.0)


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
