"""Where an audit's results go: the folder asked for, or one of the artifacts tree."""

import re
from pathlib import Path

from lightning_unlearn.audits.records import evaluation_folder

ARTIFACTS = "artifacts"


def results_folder(out: str | None, kind: str, eval_id: str | None) -> Path:
    """A folder that exists: `out` itself where it is given, else `artifacts/eval/<kind>/<eval_id>`.

    Without an `eval_id` that is a new one, named after the time.

    Raises:
        ValueError: It cannot be made, or the id is no name of a folder.
    """
    if eval_id is not None and not re.fullmatch(r"[\w][\w.-]*", eval_id):
        raise ValueError(f"--eval_id {eval_id} is not possible: use letters, digits, dots, dashes and underscores.")
    if out is None and eval_id is None:
        return evaluation_folder(ARTIFACTS, kind)
    folder = Path(ARTIFACTS, "eval", kind, str(eval_id)) if out is None else Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise ValueError(f"--out {folder} cannot be written ({error.strerror}): name another folder.") from error
    return folder
