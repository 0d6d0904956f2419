"""Which process a run belongs to, so that one that died without a word can be told from one that still works; cores."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path

HOST, PROCESS, STARTED = "process.host", "process.id", "process.started"


def host() -> str:
    """This machine, and on Linux the container's own numbering of processes."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def owner() -> dict[str, str]:
    """Tags that name this process."""
    return {HOST: host(), PROCESS: str(os.getpid()), STARTED: started(os.getpid())}


def is_gone(tags: Mapping[str, str]) -> bool:
    """Whether the process that `owner` named is no longer there; False where that cannot be seen from here."""
    if tags.get(HOST) != host() or not tags.get(PROCESS, "").isdigit():
        return False
    process = int(tags[PROCESS])
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another user's, perhaps with a number that was used before
    return started(process) != tags.get(STARTED)


def lives_here(tags: Mapping[str, str]) -> bool:
    """Whether the process that `owner` named is one of this machine, and still there."""
    return tags.get(HOST) == host() and not is_gone(tags)


def started(process: int) -> str:
    """When a process started, in the kernel's ticks; empty where the kernel does not tell, or it has ended."""
    try:
        line = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        state, *_ = fields = line.rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state == "Z" else fields[19]
