"""When a simulator that fails is no longer an accident."""

import numpy as np

MOST_IN_A_ROW = 10


class FailureCount:
    """Counts each environment's episodes that ended by a failure, in a row.

    Args:
        env_id: Named in the error.
        num_envs: E.
    """

    def __init__(self, env_id: str, num_envs: int) -> None:
        self._env_id = env_id
        self.in_a_row = np.zeros(num_envs, dtype=np.int64)  # (E,)

    def add(self, failed: np.ndarray, ended: np.ndarray) -> None:
        """Take one step into account. Shapes: (E,), (E,) bool.

        Raises:
            RuntimeError: An environment failed again and again.
        """
        if not ended.any():  # a failure is an end, too
            return
        self.in_a_row[ended & ~failed] = 0
        self.in_a_row += failed
        if (self.in_a_row > MOST_IN_A_ROW).any():
            row = int(self.in_a_row.argmax())
            raise RuntimeError(
                f"{self._env_id}: the simulation of environment {row} failed {self.in_a_row[row]} times in a row"
            )
