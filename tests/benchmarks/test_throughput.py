"""The benchmark itself, and the speed it must show; for a quiet machine."""

import json
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.benchmark


def test_the_quick_benchmark_keeps_its_promises(tmp_path):
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "lightning_unlearn", "bench", "--quick", "--out", str(out)]
    started = time.perf_counter()
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    seconds = time.perf_counter() - started
    summary = dict(pair.split("=") for pair in finished.stdout.splitlines()[-1].split())
    numbers = {key: float(value) for key, value in summary.items()}
    assert numbers == pytest.approx(json.loads(out.read_text())["summary"], rel=1e-3)
    assert numbers["env_speedup"] >= 8
    assert numbers["collect_speedup"] >= 5.5
    assert numbers["train_steps_per_s"] >= 5000
    assert numbers["limit_fraction"] >= 0.40
    assert seconds <= 60.0
