"""Videos of episodes, the expert's beside the repair's: rendered by MuJoCo where it has GL, else drawn from above."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont
from tqdm.auto import tqdm

from lightning_unlearn.audits.figures import INK
from lightning_unlearn.audits.top_view import FORGET, drawn_frames, has_map
from lightning_unlearn.collectors.acting import actor_of
from lightning_unlearn.collectors.episodes import Episodes
from lightning_unlearn.envs import toy
from lightning_unlearn.envs.batched import mujoco_factory
from lightning_unlearn.envs.parallel import is_portable
from lightning_unlearn.envs.simulator import Simulator
from lightning_unlearn.envs.worker_process import WorkerProcess
from lightning_unlearn.options import CommandParser
from lightning_unlearn.policies.actor_critic import ActorCritic

AUTO, DRAWN = "auto", "drawn"
BACKENDS = ("egl", "osmesa")
"""Values of MUJOCO_GL that need no display, the faster one first."""
RENDERERS = (AUTO, *BACKENDS, DRAWN)
DRAWN_BY = "top view drawn by matplotlib, which needs neither a display nor GL (EGL, OSMesa)"
GIF, MP4 = "gif", "mp4"
SIZES = range(100, 2001, 2)
"""Possible sizes; MP4 needs even numbers."""
STEPS_PER_FRAME, FPS = 5, 25
_NO_GL = ("disable", "disabled", "off", "false", "0")
"""Values of MUJOCO_GL with which MuJoCo renders nothing."""
_GAP = 4  # pixels between two pictures
_PALETTE_FRAMES = 8


@dataclass(frozen=True)
class VideoOptions:
    """How videos are made."""

    renderer: str = AUTO
    camera: str | None = None
    size: int = 400
    formats: tuple[str, ...] = (GIF,)

    def __post_init__(self) -> None:
        """Refuse what is unknown or cannot be had."""
        if self.renderer not in RENDERERS:
            raise ValueError(f"--video_renderer {self.renderer} is unknown: use {', '.join(RENDERERS)}.")
        if self.size not in SIZES:
            raise ValueError(f"--video_size {self.size} is not possible: use an even number from 100 to 2000, pixels.")
        if not self.formats or set(self.formats) - {GIF, MP4}:
            given = " ".join(self.formats)
            raise ValueError(f"--video_formats {given} is not possible: use {GIF}, {MP4} or both.")
        if self.renderer == DRAWN and self.camera is not None:
            raise ValueError(f"--video_camera {self.camera} has no effect on --video_renderer {DRAWN}: leave one out.")
        if MP4 in self.formats and find_spec("imageio_ffmpeg") is None:
            raise ValueError(
                f"--video_formats {MP4} needs ffmpeg, which comes with the extra `video`: "
                "pip install 'lightning-unlearn[video]'."
            )


@dataclass(frozen=True)
class Shot:
    """An episode to be shown."""

    title: str
    policy: ActorCritic
    episodes: Episodes
    episode: int
    """Index of the episode."""


class VideoRecorder:
    """Writes videos of one environment's episodes.

    Args:
        folder: Folder of the videos; it must exist when they are written.
        env_id: The environment.
        options: How videos are made.
        simulator: Simulates the environment.

    Raises:
        ValueError: The environment can be neither rendered nor drawn, or not as the options ask.
    """

    def __init__(self, folder: Path, env_id: str, options: VideoOptions, simulator: Simulator) -> None:
        self.folder, self.options, self.has_map = folder, options, has_map(simulator.top_view())
        self._process, cameras, why = choose_renderer(env_id, options.renderer)
        self._camera = options.camera or next(iter(cameras), "")
        try:
            self._require_possible(env_id, cameras, why)
        except ValueError:
            self.close()
            raise
        pixels = f"{options.size} x {options.size} pixels"
        self.renderer = f"{why}, camera {self._camera}, {pixels}" if cameras else DRAWN_BY + why
        """How the videos are made, in words."""
        self._expert: tuple[Episodes, list[np.ndarray]] | None = None

    def write(self, label: str, shots: Sequence[Shot]) -> None:
        """Write one video a format, of one episode or of several side by side; a shorter one waits for the others.

        Args:
            label: Name of the files.
            shots: The episodes; the frames of the first one are kept, for the next call with it.
        """
        if self._expert is None or self._expert[0] is not shots[0].episodes:
            self._expert = shots[0].episodes, self._frames(shots[0])
        columns = [self._expert[1], *(self._frames(shot) for shot in shots[1:])]
        frames = [side_by_side(columns, number) for number in range(max(map(len, columns)))]
        for path in self.paths(label):
            if path.suffix == f".{GIF}":
                write_gif(path, frames)
            else:
                iio.imwrite(path, frames, plugin="FFMPEG", fps=FPS, codec="libx264", macro_block_size=2)

    def paths(self, label: str) -> list[Path]:
        """Return the files of a model's video."""
        return [self.folder / f"{label}.{ending}" for ending in self.options.formats]

    def close(self) -> None:
        """End the process that renders."""
        if self._process is not None:
            self._process.close()

    def _require_possible(self, env_id: str, cameras: Sequence[str], why: str) -> None:
        camera, drawn = self.options.camera, self._process is None
        if drawn and not self.has_map:
            raise ValueError(
                f"--record_videos is not possible in {env_id}, which has no map to draw{why}: leave it out."
            )
        if drawn and camera is not None:
            raise ValueError(f"--video_camera {camera} has no effect where videos are drawn{why}: leave it out.")
        if not drawn and self._camera not in cameras:
            raise ValueError(f"--video_camera {camera} is unknown in {env_id}: use {', '.join(cameras)}.")

    def _frames(self, shot: Shot) -> list[np.ndarray]:
        """Shape of each: (height, size, 3), uint8."""
        if self._process is None:
            return drawn_frames(shot.episodes, shot.episode, shot.title, STEPS_PER_FRAME, self.options.size)
        return list(self._rendered(shot, self._process))

    def _rendered(self, shot: Shot, process: WorkerProcess) -> Iterator[np.ndarray]:
        episodes, row, same = shot.episodes, shot.episode, True
        length = int(episodes.length[row])
        actions = actor_of(shot.policy).squash(episodes.pre_tanh[row, :length]).astype(np.float64)
        reward, cost, flags = (of[row, :length] for of in (episodes.reward, episodes.cost, episodes.c_forget > 0))
        process.call("begin", episodes.layout_seeds[row], self._camera, self.options.size)
        starts = range(0, length, STEPS_PER_FRAME)
        for step in tqdm(starts, desc=f"{shot.title} (video)", unit="frame", leave=False):
            new = slice(max(0, step - STEPS_PER_FRAME), step)
            picture, rewards = process.call("advance", actions[new], flags[new])
            same &= np.array_equal(rewards, reward[new])
            counts = f"step {step:4d}  return {reward[:step].sum():7.2f}  cost {cost[:step].sum():4.0f}"
            yield with_header(picture, shot.title, counts, FORGET if flags[new].any() else INK)
        if not same:
            print(
                f"The video of {shot.title} shows another episode: its seed and actions do not repeat the environment."
            )


def choose_renderer(env_id: str, renderer: str) -> tuple[WorkerProcess | None, list[str], str]:
    """Start MuJoCo's renderer.

    Returns:
        The process, its cameras, and what it renders with; or None, no cameras, and why there is none, in brackets.

    Raises:
        ValueError: The renderer was asked for by name, and cannot be had.
    """
    if renderer == DRAWN:
        return None, [], ""
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if renderer == AUTO and chosen in _NO_GL:
        return None, [], f" (MUJOCO_GL is {chosen})"
    backends = (renderer,) if renderer != AUTO else (chosen,) if chosen in BACKENDS else BACKENDS
    why = "MuJoCo does not simulate it"
    if env_id != toy.ENV_ID:
        process, cameras, why = _first_renderer(env_id, backends)
        if process is not None:
            return process, cameras, why
    if renderer != AUTO:
        raise ValueError(f"--video_renderer {renderer} is not possible in {env_id} ({why}): use {AUTO} or {DRAWN}.")
    return None, [], f" ({why})"


def _first_renderer(env_id: str, backends: Sequence[str]) -> tuple[WorkerProcess | None, list[str], str]:
    """Start MuJoCo's renderer with the first GL that can be had; results as of `choose_renderer`, without brackets."""
    from lightning_unlearn.envs import mujoco_renderer  # MuJoCo waits until it is needed

    make, failures = mujoco_factory(env_id, pictures=True), []
    if not is_portable(make):
        return None, [], "it was made in the program's main file"
    for gl in backends:
        try:
            process = mujoco_renderer.start_renderer(make, gl)
        except Exception as error:  # PyOpenGL and the drivers have many, and the process may have died
            failures.append(f"{gl}: {(str(error) or type(error).__name__).splitlines()[0]}")
            continue
        if cameras := process.call("cameras"):
            return process, cameras, f"rendered by MuJoCo with {gl}"
        process.close()
        return None, [], "MuJoCo does not simulate it"
    return None, [], f"MuJoCo cannot render here: {'; '.join(failures)}"


def side_by_side(columns: Sequence[Sequence[np.ndarray]], number: int) -> np.ndarray:
    """Join the frames of this number; of a column that has ended, its last one."""
    frames = [column[min(number, len(column) - 1)] for column in columns]
    gap = np.full((len(frames[0]), _GAP, 3), 255, dtype=np.uint8)
    return np.concatenate([part for frame in frames for part in (gap, frame)][1:], axis=1)


def write_gif(path: Path, frames: Sequence[np.ndarray]) -> None:
    """Write an animated GIF that loops for ever, with one palette, so that what stands still keeps its colours."""
    some = np.concatenate(frames[:: max(1, len(frames) // _PALETTE_FRAMES)])
    palette = Image.fromarray(some).quantize(256, Image.Quantize.FASTOCTREE)
    first, *others = (Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    first.save(path, save_all=True, append_images=others, duration=1000 // FPS, loop=0)


def with_header(picture: np.ndarray, title: str, counts: str, colour: str) -> np.ndarray:
    """Put two lines of text above a picture. Shape: (size, size, 3) → (size + header, size, 3), uint8."""
    size = len(picture)
    text, line = max(7, size // 28), max(8, size // 22)
    header = Image.new("RGB", (size, 2 * line + line % 2 * 2), "white")
    draw = ImageDraw.Draw(header)
    for number, (words, weight, fill) in enumerate(((title, "bold", INK), (counts, "regular", colour))):
        font = ImageFont.truetype(findfont(FontProperties(family="monospace", weight=weight)), text)
        draw.text((line / 3, number * line + line / 8), words, fill, font)
    return np.concatenate([np.asarray(header), picture])


def add_video_options(parser: CommandParser) -> None:
    """Add `--record_videos` and how videos are made."""
    add, default = parser.add_argument, VideoOptions()
    add("--record_videos", action="store_true", help="a video of each model beside its expert, and a figure")
    renderers = "egl or osmesa: MuJoCo through that GL; drawn: from above; auto: MuJoCo if it can"
    add("--video_renderer", type=str, default=default.renderer, help=renderers)
    cameras = "camera of MuJoCo's renderer; default: the whole scene, or behind an agent that runs"
    add("--video_camera", type=str | None, default=default.camera, help=cameras)
    add("--video_size", type=int, default=default.size, help="width of one model's picture, pixels")
    add("--video_formats", type=str, nargs="+", default=list(default.formats), help="gif, mp4 or both")


def read_video_options(options: Any) -> VideoOptions | None:
    """Return how videos are made; None if there are to be none, whose options are then removed.

    Raises:
        ValueError: An option is impossible, or was given without `--record_videos`.
    """
    given = VideoOptions(
        options.video_renderer, options.video_camera, options.video_size, tuple(dict.fromkeys(options.video_formats))
    )
    if not options.record_videos and given != VideoOptions():
        named = next(field.name for field in fields(given) if getattr(given, field.name) != field.default)
        raise ValueError(f"--video_{named} has no effect without --record_videos.")
    if options.record_videos:
        return given
    for field in fields(given):
        del options[f"video_{field.name}"]
    return None
