import os
import subprocess
import sys

import imageio.v3 as iio
import numpy as np
import pandas as pd
import pytest

import lightning_unlearn as lu
from lightning_unlearn import cli
from lightning_unlearn.audits import videos
from lightning_unlearn.audits.videos import (
    BACKENDS,
    DRAWN_BY,
    Shot,
    VideoOptions,
    VideoRecorder,
    choose_renderer,
    side_by_side,
    with_header,
)
from lightning_unlearn.collectors.episodes import run_episodes
from lightning_unlearn.envs import mujoco_renderer
from lightning_unlearn.envs.batched import make_env, mujoco_factory
from lightning_unlearn.envs.mujoco_renderer import start_renderer

TOY, GOAL, RUNNER = "ToyLine-v0", "SafetyPointGoal1-v0", "SafetyHalfCheetahVelocity-v1"
EVALUATE = ["evaluate", "--env", GOAL, "--models", "zoo", "--episodes", "2", "--max_steps", "12", "--kl_states", "20"]


@pytest.fixture(scope="module")
def gl():
    """What MuJoCo can render with here; without it its tests are skipped."""
    process, _, how = choose_renderer(GOAL, "auto")
    if process is None:
        pytest.skip(f"no GL{how}")
    process.close()
    return how.rpartition(" ")[2]


@pytest.fixture
def no_gl(monkeypatch):
    def refuse(make, gl):
        raise ImportError(f"no library of {gl}")

    monkeypatch.setattr(mujoco_renderer, "start_renderer", refuse)


@pytest.fixture
def toy_shots(pushed):
    env = make_env(TOY, 2)
    shots = []
    for title, push, steps in (("expert", 2.0, 32), ("repair", -1.0, 12)):
        episodes = run_episodes(env, pushed(push), [1, 2], max_steps=steps, keep_scenes=True)
        shots.append(Shot(title, pushed(push), episodes, 1))
    return env.simulator, shots


def test_the_expert_and_the_repair_are_in_one_video(toy_shots, tmp_path):
    simulator, shots = toy_shots
    recorder = VideoRecorder(tmp_path, TOY, VideoOptions(size=100), simulator)
    assert recorder.renderer == f"{DRAWN_BY} (MuJoCo does not simulate it)"
    recorder.write("repair_3", shots)
    recorder.write("expert_1", shots[:1])
    both, alone = (iio.imread(tmp_path / f"{name}.gif", index=...) for name in ("repair_3", "expert_1"))
    assert len(both) == len(alone) == 7  # the scenes before steps 0, 5, ..., 30
    assert both.shape[2] == 2 * alone.shape[2] + 4 == 204
    assert (both[3:, :, 104:] == both[2, :, 104:]).all()  # the repair's episode has ended
    assert (both[3, :, :100] != both[2, :, :100]).any()
    information = iio.immeta(tmp_path / "repair_3.gif")
    assert (information["duration"], information["loop"]) == (40, 0)  # ms a frame, for ever


def test_frames_are_joined_by_number():
    black, white, grey = (np.full((1, 2, 3), value, dtype=np.uint8) for value in (0, 255, 9))
    joined = side_by_side([[black], [white, grey]], 1)
    assert joined[0, :, 0].tolist() == [0, 0, 255, 255, 255, 255, 9, 9]


@pytest.mark.parametrize("size", [100, 400])
def test_a_header_leaves_the_picture_as_it_is(size):
    picture = np.full((size, size, 3), 7, dtype=np.uint8)
    framed = with_header(picture, "a long name " * 20, "step 1", "#D55E00")
    assert (framed[-size:] == 7).all()
    assert framed.shape[0] % 2 == framed.shape[1] % 2 == 0  # MP4 needs even numbers
    assert {tuple(pixel) for pixel in framed[:-size].reshape(-1, 3)} >= {(255, 255, 255), (0xD5, 0x5E, 0)}


def test_impossible_options_are_refused(monkeypatch):
    for options, message in (
        ({"size": 0}, "--video_size 0 is not possible: use an even number from 100 to 2000"),
        ({"size": 401}, "--video_size 401"),
        ({"renderer": "gpu"}, "--video_renderer gpu is unknown: use auto, egl, osmesa, drawn"),
        ({"formats": ()}, "--video_formats"),
        ({"formats": ("gif", "avi")}, "--video_formats gif avi is not possible: use gif, mp4 or both"),
        ({"renderer": "drawn", "camera": "track"}, "--video_camera track has no effect"),
    ):
        with pytest.raises(ValueError, match=message):
            VideoOptions(**options)
    monkeypatch.setattr(videos, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"lightning-unlearn\[video\]"):
        VideoOptions(formats=("mp4",))


def test_options_without_videos_are_refused(refused, store):
    assert "--video_size has no effect without --record_videos" in refused("evaluate", "--video_size", "200")


def test_without_gl_the_scene_is_drawn_and_said_why(no_gl, monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    process, cameras, why = choose_renderer(GOAL, "auto")
    assert (process, cameras) == (None, [])
    assert why == " (MuJoCo cannot render here: egl: no library of egl; osmesa: no library of osmesa)"
    with pytest.raises(ValueError, match=r"--video_renderer osmesa is not possible .* use auto or drawn"):
        choose_renderer(GOAL, "osmesa")
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert choose_renderer(GOAL, "auto")[2] == " (MuJoCo cannot render here: osmesa: no library of osmesa)"
    monkeypatch.setenv("MUJOCO_GL", "off")
    assert choose_renderer(GOAL, "auto")[2] == " (MUJOCO_GL is off)"


def test_what_can_be_neither_rendered_nor_drawn_is_refused(no_gl, tmp_path):
    env = make_env(RUNNER, 1)
    with pytest.raises(ValueError, match=f"--record_videos is not possible in {RUNNER}, which has no map.*no library"):
        VideoRecorder(tmp_path, RUNNER, VideoOptions(), env.simulator)
    env.close()
    toy = make_env(TOY, 1).simulator
    with pytest.raises(ValueError, match="--video_camera track has no effect where videos are drawn"):
        VideoRecorder(tmp_path, TOY, VideoOptions(camera="track"), toy)
    with pytest.raises(ValueError, match=f"--video_renderer egl is not possible in {TOY}"):
        VideoRecorder(tmp_path, TOY, VideoOptions(renderer="egl"), toy)


def test_a_renderer_that_ends_its_process_leaves_this_one_alive():
    with pytest.raises(RuntimeError, match="has died"):
        start_renderer(os._exit, BACKENDS[0])


def test_environments_are_stepped_without_the_gl_that_is_named():
    code = "import lightning_unlearn.envs.compat, os; print(os.environ['MUJOCO_GL'])"
    variables = os.environ | {"MUJOCO_GL": "nonsense"}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert done.stdout == "nonsense\n"


def test_a_rendered_episode_is_the_one_that_was_evaluated(gl, tmp_path, capsys):
    policy, env = lu.load_policy(f"zoo:unsafe.{GOAL}"), make_env(GOAL, 2)
    episodes = run_episodes(env, policy, [10000, 10001], max_steps=31)
    episodes.c_forget[1] = np.arange(31) >= 10
    recorder = VideoRecorder(tmp_path, GOAL, VideoOptions(size=100), env.simulator)
    assert recorder.renderer == f"rendered by MuJoCo with {gl}, camera overview, 100 x 100 pixels"
    recorder.write("expert", [Shot("expert", policy, episodes, 1)])
    recorder.close()
    assert "shows another episode" not in capsys.readouterr().out
    frames = iio.imread(tmp_path / "expert.gif", index=...)[:, -100:].astype(int)
    assert frames.shape == (7, 100, 100, 3)
    assert frames.std() > 10
    red, green, blue = frames[..., 0], frames[..., 1], frames[..., 2]
    orange = ((red > green + 80) & (green > blue + 20)).sum((1, 2))
    assert (orange[:3].sum(), orange[6] > 3) == (0, True)  # the path of the flagged steps, and of no others


def test_other_rewards_in_the_replay_are_said_and_other_cameras_refused(gl, tmp_path, capsys):
    policy, env = lu.load_policy(f"zoo:unsafe.{GOAL}"), make_env(GOAL, 1)
    episodes = run_episodes(env, policy, [10000], max_steps=6)
    episodes.reward[0, 0] += 1.0
    recorder = VideoRecorder(tmp_path, GOAL, VideoOptions(size=100), env.simulator)
    recorder.write("expert", [Shot("expert", policy, episodes, 0)])
    recorder.close()
    assert "The video of expert shows another episode" in capsys.readouterr().out
    with pytest.raises(
        ValueError, match=f"bird is unknown in {GOAL}: use overview, fixedfar, fixednear, track, vision"
    ):
        VideoRecorder(tmp_path, GOAL, VideoOptions(camera="bird"), env.simulator)


@pytest.mark.slow
def test_each_camera_gives_another_picture(gl):
    process = start_renderer(mujoco_factory(GOAL, pictures=True), gl)
    cameras = process.call("cameras")
    assert cameras == ["overview", "fixedfar", "fixednear", "track", "vision"]
    none, pictures = np.zeros((0, 2)), []
    for camera in ("overview", "track", "vision"):
        process.call("begin", 3, camera, 64)
        pictures.append(process.call("advance", none, [])[0])
    process.close()
    assert len({picture.tobytes() for picture in pictures}) == 3
    process = start_renderer(mujoco_factory(RUNNER), gl)
    assert process.call("cameras")[0] == "track"
    process.call("begin", 3, "track", 64)
    assert process.call("advance", np.zeros((0, 6)), [])[0].std() > 10
    process.close()


def test_recording_does_not_change_the_evaluation(gl, store, tmp_path, capsys):
    pytest.importorskip("imageio_ffmpeg")
    cli.main([*EVALUATE, "--out", "without"])
    cli.main([*EVALUATE, "--out", "with", "--record_videos", "--video_size", "100", "--video_formats", "gif", "mp4"])
    assert f"Videos: rendered by MuJoCo with {gl}" in capsys.readouterr().out
    without, recorded = (pd.read_csv(tmp_path / name / "per_episode.csv") for name in ("without", "with"))
    pd.testing.assert_frame_equal(without, recorded, check_exact=True)
    names = {path.name for path in (tmp_path / "with/videos").iterdir()}
    assert names >= {"unsafe.gif", "unsafe.mp4", "concept_tuned_600.mp4", "concept_tuned_600.png"}
    assert iio.improps(tmp_path / "with/videos/concept_tuned_600.mp4", plugin="FFMPEG").shape[1:3] == (116, 204)
