"""A simulator in a process of its own, and the program of that process.

The two talk through a socket: an empty message asks for a step, whose numbers lie in shared memory, or says that it
is done; any other is a pickled call, or its answer. A rollout is one call, whose numbers lie in shared memory, too. Who
waits watches a counter in shared memory for a moment before it sleeps, since to be woken takes a tenth of a step; but
it is the message that counts.
"""

import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
import weakref
from collections.abc import Callable
from mmap import mmap
from socket import MSG_WAITALL, socket, socketpair
from struct import Struct
from typing import Any

from lightning_unlearn.envs.rollout import Actor, RolloutBuffer, open_memory, roll_out
from lightning_unlearn.envs.simulator import Simulator
from lightning_unlearn.envs.working_directory import working_directory_importable
from lightning_unlearn.processes import python_command

_WATCH = 0.0005
"""Seconds that a process watches before it sleeps."""
_FAREWELL = 5.0
"""Seconds that a process is given to end."""
_STEP = _DONE = b""
_LENGTH = Struct("q")


class Shard:
    """Some of a simulator's environments, in a process that ends with this object or with this process.

    Args:
        make: Makes the simulator of so many environments; can be pickled.
        rows: Which of the environments.
        num_envs: How many there are in all.
        memory: Descriptor of the memory of all environments' steps.
    """

    def __init__(self, make: Callable[[int], Simulator], rows: slice, num_envs: int, memory: int) -> None:
        self.rows, self._asked = rows, False
        self._socket, there = socketpair()
        counters = open_memory()
        self._line = _Line(self._socket, counters, sends=0)
        command = python_command(__name__, str(there.fileno()), str(counters), str(memory))
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(command, env=environment, pass_fds=[there.fileno(), counters, memory])
        there.close()
        os.close(counters)
        weakref.finalize(self, _end, self._process, self._socket)
        self._send(pickle.dumps((make, rows, num_envs)))

    def ask(self, method: str, *arguments: Any) -> None:
        """Begin a call of a method of the simulator; `answer` waits for it."""
        self._send(pickle.dumps((method, arguments)))

    def ask_for_step(self) -> None:
        """Begin a step with the actions in shared memory; once `answer` returns, its results are there."""
        self._send(_STEP)

    def answer(self) -> Any:
        """The result of what was asked for last.

        Raises:
            RuntimeError: The process died.
            Exception: Whatever was raised there, also SystemExit.
        """
        try:
            message = self._line.receive()
        except (EOFError, OSError) as error:
            raise self._died() from error
        self._asked = False
        if message == _DONE:
            return None
        value, failed = pickle.loads(message)  # of this program's own process
        if failed:
            raise value
        return value

    def close(self) -> None:
        """End the process, at once where it is at work."""
        if self._asked:
            self._process.kill()
        _end(self._process, self._socket)

    def _send(self, message: bytes) -> None:
        self._asked = True
        try:
            self._line.send(message)
        except OSError as error:
            raise self._died() from error

    def _died(self) -> RuntimeError:
        _end(self._process, self._socket)
        code = self._process.returncode
        return RuntimeError(f"the process of the environments {_span(self.rows)} has died (exit code {code}).")


class _Line:
    """A socket whose ends count their messages where the other end sees it.

    Args:
        end: One end.
        counters: Descriptor of the memory of both counts.
        sends: Which of the two counts is this end's: 0 or 1.
    """

    def __init__(self, end: socket, counters: int, sends: int) -> None:
        self._socket = end
        os.ftruncate(counters, 16)
        both = memoryview(mmap(counters, 16)).cast("q")
        self._sent, self._received = both[sends : sends + 1], both[1 - sends : 2 - sends]
        self._seen = 0

    def send(self, message: bytes) -> None:
        self._socket.sendall(_LENGTH.pack(len(message)) + message)
        self._sent[0] += 1

    def receive(self) -> bytes:
        deadline = time.perf_counter() + _WATCH
        while self._received[0] == self._seen and time.perf_counter() < deadline:
            os.sched_yield()
        self._seen += 1
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        return self._read(length) if length else b""

    def _read(self, length: int) -> bytes:
        data = self._socket.recv(length, MSG_WAITALL)
        if len(data) < length:
            raise EOFError("the other end is gone")
        return data


def _end(process: "subprocess.Popen[bytes]", end: socket) -> None:
    end.close()  # which is what it waits for
    try:
        process.wait(_FAREWELL)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def serve(end: int, counters: int, memory: int) -> None:
    """Build the simulator that is asked for, and do what is asked of it until the other end closes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # this process ends with the one that it works for
    line = _Line(socket(fileno=end), counters, sends=1)
    try:
        try:
            with working_directory_importable():  # as for the process that started this one, whose pickle it is
                make, rows, num_envs = pickle.loads(line.receive())
            desk = _Desk(make(rows.stop - rows.start), rows, num_envs, memory)
        except (Exception, SystemExit) as error:
            line.send(_failure(error))
            return
        line.send(_DONE)
        while True:
            line.send(desk.answer(line.receive()))
    except (EOFError, OSError):
        return


class _Desk:
    """Where the simulator's environments are asked for something."""

    def __init__(self, simulator: Simulator, rows: slice, num_envs: int, memory: int) -> None:
        self._simulator, self._rows, self._num_envs, self._memory = simulator, rows, num_envs, memory

    def answer(self, message: bytes) -> bytes:
        try:
            return self._step() if message == _STEP else pickle.dumps((self._called(message), False))
        except (Exception, SystemExit) as error:
            error.add_note(f"In the process of the environments {_span(self._rows)}:\n{traceback.format_exc()}")
            return _failure(error)

    def share(self, horizon: int) -> None:
        """Use the shared memory as a buffer of so many steps from here on."""
        whole = RolloutBuffer.allocate(self._simulator, horizon, self._memory, self._num_envs)
        self._buffer = whole.rows(self._rows)

    def roll_out(self, actor: Actor, steps: int, hold: int) -> None:
        roll_out(self._simulator, actor, self._buffer.first(steps), hold, self._rows.start)

    def _step(self) -> bytes:
        self._buffer.write(-1, self._simulator.step(self._buffer.action[-1]), self._simulator)
        return _DONE

    def _called(self, message: bytes) -> Any:
        method, arguments = pickle.loads(message)  # of the process that started this one
        owner = self if method in ("share", "roll_out") else self._simulator
        return getattr(owner, method)(*arguments)


def _failure(error: BaseException) -> bytes:
    """An exception as an answer; as text, where it cannot be pickled."""
    try:
        message = pickle.dumps((error, True))
        pickle.loads(message)
        return message
    except Exception:
        told = RuntimeError(f"{type(error).__name__}: {error}")
        told.__notes__ = [*getattr(error, "__notes__", [])]
        return pickle.dumps((told, True))


def _span(rows: slice) -> str:
    return f"{rows.start} to {rows.stop - 1}"


if __name__ == "__main__":
    serve(*(int(argument) for argument in sys.argv[1:]))
