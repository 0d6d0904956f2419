"""Tensors by name from a PyTorch file, with nothing in it executed."""

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

MAX_BYTES = 1 << 28


def read_torch(file: Path | IO[bytes], name: str) -> dict[str, Any]:
    """What `torch.save` wrote, if it is a dict of tensors or of such dicts.

    Args:
        file: The file, or its content.
        name: What messages call it.

    Raises:
        ValueError: It is none, or holds objects other than tensors.
    """
    if isinstance(file, Path):
        require_file(file, name)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{name} cannot be read safely ({type(error).__name__}): it must hold tensors only, as "
            "torch.save(agent.state_dict(), …) writes them"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{name} holds a {type(content).__name__}, not weights by name")
    return dict(content)


def require_file(path: Path, name: str) -> None:
    """Refuse what is no file, or too large to be an agent.

    Raises:
        ValueError: It is.
    """
    if not path.is_file():
        raise ValueError(f"{name} was not found: name the file of an agent")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{name} is larger than {MAX_BYTES} bytes: too large for an agent of this kind")


def tensors(content: Mapping[str, Any], name: str) -> dict[str, torch.Tensor]:
    """The same dict, if all its values are finite tensors.

    Raises:
        ValueError: One is not.
    """
    odd = [key for key, value in content.items() if not (isinstance(value, torch.Tensor) and value.isfinite().all())]
    if odd or not content:
        raise ValueError(f"{name} should hold finite tensors only, but {', '.join(map(str, odd[:4])) or 'it is empty'}")
    return {str(key): value for key, value in content.items()}
