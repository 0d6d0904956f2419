"""What a stored policy says of itself, in JSON: its shape and where it comes from. None of it is believed unchecked."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning_unlearn.old_names import with_current_paths
from lightning_unlearn.policies.actor_critic import PolicyConfig
from lightning_unlearn.safe_files import read_json

FORMAT = "lightning-unlearn/policy/1"
_MAX_BYTES = 1 << 20
_MAX_LAYERS = 32
MAX_NUMBER = 1e30
"""Numbers become float32, and so does the range between two bounds."""
_NAMES = {"method": r"\w*", "env": r"((\w[\w.]*:)?(\w[\w-]*/)?\w[\w.-]*)?"}
"""An environment may have a module that registers it, and a namespace: `module:namespace/Id-v0`."""


@dataclass(frozen=True)
class ModelCard:
    """Where a policy comes from; empty fields are unknown (a policy of the published layout)."""

    method: str = ""
    env: str = ""
    concept: str = ""
    """The behaviour to forget: the info key of a cost, or a class and its arguments as JSON. Reading builds nothing."""
    seed: int = -1
    update: int = -1
    env_steps: int = -1
    note: str = ""
    """What else has to be known of it, such as how its editor was made."""

    def __post_init__(self) -> None:
        """Refuse names that could not be part of a file's name, which audits make them (see `as_file_name`)."""
        for name, pattern in _NAMES.items():
            if not re.fullmatch(pattern, getattr(self, name), re.ASCII):
                raise ValueError(f"{name}={getattr(self, name)!r} is no name: use letters, digits and underscores.")


def as_file_name(env_id: str) -> str:
    """An environment's id where slashes and colons are not possible: in names of files and of registered models."""
    return env_id.replace("/", "+").replace(":", "~")


@dataclass(frozen=True)
class Description:
    """The content of a description file."""

    config: PolicyConfig
    card: ModelCard
    weights_sha256: str | None = None
    """Of the weights file beside it; None in files of older versions."""

    def as_json(self) -> dict[str, Any]:
        """What is written."""
        digest = {"weights_sha256": self.weights_sha256} if self.weights_sha256 else {}
        return {"format": FORMAT, "policy": asdict(self.config), "card": asdict(self.card), **digest}


def read_description(path: Path) -> Description:
    """Read a description.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is none, or describes what cannot be.
    """
    content = read_json(path, _MAX_BYTES)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is not a policy description of the format {FORMAT!r}.")
    try:
        return Description(_config(content["policy"]), _card(content.get("card", {})), _digest(content))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not describe a policy: {str(error)[:400]}") from error


def require_possible(config: PolicyConfig, weights_bytes: int) -> None:
    """Refuse a shape that no file of this size has weights for, before a network of that shape is made.

    Raises:
        ValueError: It is such a shape, or has too many layers.
    """
    trunks = [config.hidden_sizes, *([config.critic_sizes] if config.critics == "separate" else [])]
    if any(len(sizes) > _MAX_LAYERS for sizes in trunks):
        raise ValueError(f"it has more than {_MAX_LAYERS} layers")
    weights = sum(_products([config.observation_size, *sizes]) for sizes in trunks)
    weights += config.latent_size * (config.action_size + (config.latent_size if config.editor == "affine" else 0))
    if 4 * weights > weights_bytes:
        raise ValueError(f"its sizes {trunks} ask for more weights than the {weights_bytes} bytes that it holds")


def _products(sizes: list[int]) -> int:
    return sum(wide * narrow for wide, narrow in pairwise(sizes))


def _config(policy: Mapping[str, Any]) -> PolicyConfig:
    config = PolicyConfig(**policy)
    sizes = [config.observation_size, *config.hidden_sizes, *config.critic_sizes]
    if not all(type(size) is int and 0 < size <= 1 << 16 for size in sizes):
        raise ValueError(f"sizes must be whole numbers up to 65536, got {str(sizes)[:80]}")
    _require_bounds(config.action_low, config.action_high)
    if not isinstance(config.normalise_observation, bool):
        raise ValueError("normalise_observation must be true or false")
    _require_numbers(config)
    return config


def _require_bounds(low: list[float], high: list[float]) -> None:
    bounds = [*low, *high]
    if len(bounds) > 1 << 12 or not all(_is_finite(bound) for bound in bounds):
        raise ValueError(f"action bounds must be finite numbers up to {MAX_NUMBER:g}")
    if not all(lower < upper for lower, upper in zip(low, high, strict=True)):
        raise ValueError("every lower action bound must be below its upper one")


def _require_numbers(config: PolicyConfig) -> None:
    low, high = config.log_std_range
    numbers = [config.normaliser_epsilon, config.normaliser_clip, low, high]
    if not all(_is_finite(number) for number in numbers):
        raise ValueError("normaliser_epsilon, normaliser_clip and log_std_range must be finite numbers")
    if config.normaliser_epsilon < 0 or config.normaliser_clip <= 0 or low > high:
        raise ValueError(
            f"normaliser_epsilon={config.normaliser_epsilon}, normaliser_clip={config.normaliser_clip} or "
            f"log_std_range={config.log_std_range} is out of range"
        )


def _is_finite(number: object) -> bool:
    """As float32, which a policy computes in."""
    return type(number) in (int, float) and abs(number) <= MAX_NUMBER  # type: ignore[arg-type]


def _card(card: Any) -> ModelCard:
    known = {field.name: field.type for field in fields(ModelCard)}
    if not isinstance(card, dict) or not all(isinstance(card.get(k, t()), t) for k, t in known.items()):  # type: ignore[operator, arg-type]
        raise ValueError(f"the card must hold {', '.join(known)} of their types")
    given = {name: card[name] for name in known if name in card}
    return ModelCard(**given | {"concept": with_current_paths(given.get("concept", ""))})


def _digest(content: Mapping[str, Any]) -> str | None:
    digest = content.get("weights_sha256")
    if digest is not None and not (isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest)):
        raise ValueError("weights_sha256 is no SHA-256")
    return digest
