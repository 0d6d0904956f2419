"""Tensors by name from a PyTorch file, with nothing in it executed."""

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from lightning_unlearn.safe_files.pt import read_pt, read_pt_stream

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
        return read_pt(file, MAX_BYTES) if isinstance(file, Path) else read_pt_stream(file)
    except ValueError as error:
        raise ValueError(
            f"{name} cannot be read safely ({error}): it must hold tensors only, as "
            "torch.save(agent.state_dict(), …) writes them"
        ) from error


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
