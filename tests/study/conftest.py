"""A real tracking server with an artifact proxy, that a test may stop and start again."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest


class TrackingServer:
    """`mlflow server` over a database and a folder."""

    def __init__(self, folder):
        self.folder, self._process = folder, None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"

    def start(self):
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", f"{self.folder}/kept"]
        quiet = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # seven processes more
        with (self.folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=quiet, start_new_session=True)
        wait_for(self._answers, 900)

    def stop(self):
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self):
        try:
            return urllib.request.urlopen(f"{self.address}/health", timeout=2).status == 200
        except OSError:
            return False


@pytest.fixture
def server(tmp_path, template_store):
    (tmp_path / "server.db").write_bytes(template_store.read_bytes())
    server = TrackingServer(tmp_path)
    server.start()
    yield server
    server.stop()


def wait_for(condition, seconds):
    """Generous, because it only matters where something is broken."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return condition()


@pytest.fixture(name="wait_for")
def _wait_for():
    return wait_for
