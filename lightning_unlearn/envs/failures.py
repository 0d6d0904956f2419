"""What is said of an environment whose own code fails, and when a failing simulator is no longer an accident."""

import sys
import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np

MOST_IN_A_ROW = 10
_CALLERS = ("gymnasium", "lightning_unlearn")
"""Packages that call an environment."""


def blame(error: BaseException, env: Any, method: str, what: str) -> None:
    """Add a note to an exception that an environment raised: what happened, and the environment's line.

    Where none of its lines raised it, as where its method takes or returns something else than Gymnasium expects, the
    note names the method.

    Args:
        error: Raised by the environment or by a wrapper around it.
        env: The environment with its wrappers.
        method: Which was called: reset or step.
        what: Begins the note.
    """
    lines, inner = traceback.extract_tb(error.__traceback__), type(env.unwrapped)
    *_, (last, _) = traceback.walk_tb(error.__traceback__)
    code = getattr(getattr(inner, method), "__code__", None)
    written = {vars(sys.modules[inner.__module__]).get("__file__"), code and code.co_filename}
    own = [line for line in lines if line.filename in written]
    if not own and str(last.f_globals.get("__name__")).partition(".")[0] in _CALLERS:
        error.add_note(f"{what}: {written_at(env, method)}")
        return
    line = (own or lines)[-1]
    error.add_note(f"{what}, at {line.filename}:{line.lineno}, in {line.name}")


def written_at(env: Any, method: str) -> str:
    """Where a method of an environment, below all wrappers, is written."""
    inner = type(env.unwrapped)
    code = getattr(getattr(inner, method), "__code__", None)
    place = "" if code is None else f" at {code.co_filename}:{code.co_firstlineno}"
    return f"see {inner.__qualname__}.{method}{place}"


class FailureCount:
    """Counts each environment's episodes that ended by a failure, in a row.

    Args:
        env_id: Named in the error.
        num_envs: E.
    """

    def __init__(self, env_id: str, num_envs: int) -> None:
        self._env_id = env_id
        self.in_a_row = np.zeros(num_envs, dtype=np.int64)  # (E,)
        self.last = ""
        """Why the last failure happened, if that is known."""

    def add(self, failed: np.ndarray, ended: np.ndarray, reasons: Sequence[str] | None = None) -> None:
        """Take one step into account.

        Args:
            failed: Where the simulation failed. Shape: (E,), bool.
            ended: Where an episode ended. Shape: (E,), bool.
            reasons: What failed in each environment, if that is known.

        Raises:
            RuntimeError: An environment failed again and again.
        """
        if not np.count_nonzero(ended):  # a failure is an end, too
            return
        self.in_a_row[ended & ~failed] = 0
        self.in_a_row += failed
        if reasons is not None and failed.any():
            self.last = reasons[int(failed.nonzero()[0][-1])]
        if (self.in_a_row > MOST_IN_A_ROW).any():
            row = int(self.in_a_row.argmax())
            what = f"the simulation of environment {row} failed {self.in_a_row[row]} times in a row"
            why = f", the last time {reasons[row]}" if reasons is not None else ""
            raise RuntimeError(f"{self._env_id}: {what}{why}")
