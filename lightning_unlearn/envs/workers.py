"""Threads that step environments side by side."""

import weakref
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Thread


class Workers:
    """Runs one function for every environment, on this thread and `count − 1` others.

    MuJoCo releases the interpreter lock, so the threads step at the same time. Who steps which environment is left to
    chance, and has no influence on the result. (The threads wait at a queue of their own: a `ThreadPoolExecutor` makes
    a step of 8 environments 5 % slower.)
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"workers must be at least 1, got {count}")
        self._inboxes: list[SimpleQueue[_Share | None]] = [SimpleQueue() for _ in range(count - 1)]
        self._threads = [Thread(target=_serve, args=(inbox,), name="physics", daemon=True) for inbox in self._inboxes]
        for thread in self._threads:
            thread.start()
        weakref.finalize(self, _dismiss, self._inboxes)

    def each(self, function: Callable[[int], None], count: int) -> None:
        """Call `function` with 0 … count − 1; an exception of any call is raised here, after all threads stopped."""
        rows = iter(range(count))  # `next` on it is atomic
        done: SimpleQueue[BaseException | None] = SimpleQueue()
        for inbox in self._inboxes:
            inbox.put((rows, function, done))
        try:
            _drain(rows, function)
        finally:
            errors = [done.get() for _ in self._inboxes]
        for error in errors:
            if error is not None:
                raise error

    def close(self) -> None:
        """End the threads."""
        _dismiss(self._inboxes)
        for thread in self._threads:
            thread.join()


_Share = tuple[Iterator[int], Callable[[int], None], "SimpleQueue[BaseException | None]"]


def _serve(inbox: "SimpleQueue[_Share | None]") -> None:
    while (share := inbox.get()) is not None:
        rows, function, done = share
        try:
            _drain(rows, function)
            done.put(None)
        except BaseException as error:  # handed to the thread that waits for it
            done.put(error)
        del share, rows, function, done  # or the environments would live as long as this thread


def _dismiss(inboxes: "list[SimpleQueue[_Share | None]]") -> None:
    for inbox in inboxes:
        inbox.put(None)


def _drain(rows: Iterator[int], function: Callable[[int], None]) -> None:
    for row in rows:
        function(row)
