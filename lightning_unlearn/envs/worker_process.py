"""A simulator in a worker process: the handle that the main process holds, and the program that the worker runs.

The two processes talk through a socket. For a step, the main process sends an empty message, and the worker answers
with one when it is done; actions and results lie in shared memory. Any other message is a pickled method call, or its
result. A rollout is one call; its rows lie in shared memory, too.

A process that waits for a message first polls a counter in shared memory for a moment, and only then sleeps: waking a
process up takes a tenth of a step. The counter is only a hint; the message is what is waited for.
"""

import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Mapping
from mmap import mmap
from socket import MSG_WAITALL, socket, socketpair
from struct import Struct
from types import MappingProxyType
from typing import Any

from lightning_unlearn.envs.rollout import Actor, RolloutBuffer, open_memory, roll_out
from lightning_unlearn.envs.simulator import Simulator
from lightning_unlearn.processes import python_command, working_directory_importable

_POLL_S = 0.0005
"""Seconds that a process polls before it sleeps."""
_END_S = 5.0
"""Seconds that a process is given to end."""
_STEP = b""
"""Message to a process: step with the actions in shared memory."""
_DONE = b""
"""Answer of a process: the call has ended; its results, if any, are in shared memory."""
_LENGTH = Struct("q")


class WorkerProcess:
    """A process that steps some of the environments; it ends with this object or with this process.

    Args:
        make: Makes the simulator of a given number of environments; can be pickled.
        rows: The worker's environments among all.
        num_envs: Number of all environments.
        memory: Descriptor of the memory that holds all environments' steps.
        variables: Environment variables of the process, beside those of this one.
    """

    def __init__(
        self,
        make: Callable[[int], Any],
        rows: slice,
        num_envs: int,
        memory: int,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.rows, self._awaits_answer = rows, False
        self._socket, there = socketpair()
        counters = open_memory()
        self._channel = _Channel(self._socket, counters, sends=0)
        command = python_command(__name__, str(there.fileno()), str(counters), str(memory))
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"} | dict(variables)
        self._process = subprocess.Popen(command, env=environment, pass_fds=[there.fileno(), counters, memory])
        there.close()
        os.close(counters)
        weakref.finalize(self, _end, self._process, self._socket)
        self._send(pickle.dumps((make, rows, num_envs)))

    def ask(self, method: str, *arguments: Any) -> None:
        """Start a call of a method of the simulator; `answer` waits for its result."""
        self._send(pickle.dumps((method, arguments)))

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the simulator and wait for its result."""
        self.ask(method, *arguments)
        return self.answer()

    def ask_for_step(self) -> None:
        """Start a step with the actions in shared memory; its results are there once `answer` returns."""
        self._send(_STEP)

    def answer(self) -> Any:
        """Wait for the result of the last call.

        Raises:
            RuntimeError: The process died.
            Exception: The exception that was raised in the process, also SystemExit.
        """
        try:
            message = self._channel.receive()
        except (EOFError, OSError) as error:
            raise self._died() from error
        self._awaits_answer = False
        if message == _DONE:
            return None
        value, failed = pickle.loads(message)  # written by a process that this one started
        if failed:
            raise value
        return value

    def close(self) -> None:
        """End the process; it is killed if it is still at work."""
        if self._awaits_answer:
            self._process.kill()
        _end(self._process, self._socket)

    def _send(self, message: bytes) -> None:
        self._awaits_answer = True
        try:
            self._channel.send(message)
        except OSError as error:
            raise self._died() from error

    def _died(self) -> RuntimeError:
        _end(self._process, self._socket)
        code = self._process.returncode
        return RuntimeError(f"the process of the environments {_span(self.rows)} has died (exit code {code}).")


class _Channel:
    """A socket whose two ends count their messages in shared memory.

    Args:
        end: This process's end.
        counters: Descriptor of the memory of both counters.
        sends: Index of this end's counter: 0 or 1.
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
        deadline = time.perf_counter() + _POLL_S
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
    end.close()  # the worker ends when its socket does
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def serve(end: int, counters: int, memory: int) -> None:
    """Build the simulator and answer calls until the main process closes its end of the socket."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the main process decides when this one ends
    channel = _Channel(socket(fileno=end), counters, sends=1)
    try:
        try:
            with working_directory_importable():  # the main process may have pickled a class from there
                make, rows, num_envs = pickle.loads(channel.receive())
            worker = _Worker(make(rows.stop - rows.start), rows, num_envs, memory)
        except (Exception, SystemExit) as error:
            channel.send(_failure(error))
            return
        channel.send(_DONE)
        while True:
            channel.send(worker.answer(channel.receive()))
    except (EOFError, OSError):
        return


class _Worker:
    """Answers the main process's calls of the simulator's methods."""

    def __init__(self, simulator: Simulator, rows: slice, num_envs: int, memory: int) -> None:
        self._simulator, self._rows, self._num_envs, self._memory = simulator, rows, num_envs, memory

    def answer(self, message: bytes) -> bytes:
        try:
            if message == _STEP:
                self._buffer.write(-1, self._simulator.step(self._buffer.action[-1]), self._simulator)
                return _DONE
            method, arguments = pickle.loads(message)  # written by the main process
            owner = self if method in ("share", "roll_out") else self._simulator
            return pickle.dumps((getattr(owner, method)(*arguments), False))
        except (Exception, SystemExit) as error:
            error.add_note(f"In the process of the environments {_span(self._rows)}:\n{traceback.format_exc()}")
            return _failure(error)

    def share(self, horizon: int) -> None:
        """Use the shared memory as a buffer of `horizon` steps from now on."""
        whole = RolloutBuffer.allocate(self._simulator, horizon, self._memory, self._num_envs)
        self._buffer = whole.rows(self._rows)

    def roll_out(self, actor: Actor, steps: int, action_repeat: int) -> None:
        roll_out(self._simulator, actor, self._buffer.first(steps), action_repeat, self._rows.start)


def _failure(error: BaseException) -> bytes:
    """Pickle an exception as an answer; as text, if it cannot be pickled."""
    try:
        message = pickle.dumps((error, True))
        pickle.loads(message)
        return message
    except Exception:
        as_text = RuntimeError(f"{type(error).__name__}: {error}")
        as_text.__notes__ = [*getattr(error, "__notes__", [])]
        return pickle.dumps((as_text, True))


def _span(rows: slice) -> str:
    return f"{rows.start} to {rows.stop - 1}"


if __name__ == "__main__":
    serve(*(int(argument) for argument in sys.argv[1:]))
