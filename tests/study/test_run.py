"""The loop over steps, with small real processes: what fails or is killed takes only its dependants with it."""

import io
import signal
import subprocess
import threading

import pytest

from lightning_unlearn.study.estimate import Speeds, in_words, step_seconds, urgency, wall_seconds
from lightning_unlearn.study.jobs import last_line
from lightning_unlearn.study.run import StepHooks, run_steps
from lightning_unlearn.study.steps import StepResult, StudyStep, Workload
from lightning_unlearn.study.study_progress import ProgressView, State, initial_progress, step_table


class Shell:
    """A shell command as a running step."""

    def __init__(self, command):
        self.process = subprocess.Popen(["sh", "-c", command])

    def poll(self):
        return self.process.poll()

    def last_line(self):
        return " 40%|####      | 4/10"

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)

    def wait(self):
        self.process.wait(5)


def step(name, *needs):
    return StudyStep(name, name, name, "env", (), after=needs)


def run(steps, commands, jobs=2, retries=1, show=lambda progress: None):
    """The progress after running, and the names in the order in which they were started."""
    started, results = [], {}

    def start(one):
        started.append(one.name)
        return Shell(commands.get(one.name, "true"))

    progress = initial_progress(steps, {}, {s.name: 1.0 for s in steps})
    hooks = StepHooks(start, lambda one, seconds: StepResult(one.name, one.name), show)
    try:
        run_steps(progress, results, hooks, jobs, retries)
    except KeyboardInterrupt:
        progress.interrupted = True
    return progress, started, results


def test_a_failure_takes_its_dependants_and_nothing_else():
    steps = [step("expert"), step("bad", "expert"), step("audit", "bad"), step("last", "audit"), step("good", "expert")]
    progress, started, results = run(steps, {"bad": "exit 3"})
    assert [progress.states[name] for name in ("expert", "good", "bad")] == [State.DONE, State.DONE, State.FAILED]
    assert progress.reasons["audit"] == "needs bad, which failed"
    assert progress.reasons["last"] == "needs audit, which skipped"
    assert "audit" not in started
    assert set(results) == {"expert", "good"}
    assert progress.failed


def test_a_killed_process_is_started_again_but_not_for_ever():
    progress, started, _ = run([step("a")], {"a": "kill -9 $$"})
    assert started == ["a", "a"]
    assert progress.reasons["a"] == "killed by signal 9"


def test_the_longest_chain_goes_first():
    steps = [step("short"), step("long"), step("next", "long"), step("end", "next")]
    _, started, _ = run(steps, {}, jobs=1)
    assert started[:2] == ["long", "next"]


def test_steps_run_side_by_side():
    most = 0

    def show(progress):
        nonlocal most
        most = max(most, len(progress.running))

    run([step(name) for name in "abcd"], dict.fromkeys("abcd", "sleep 0.5"), jobs=3, show=show)
    assert most == 3


def test_an_interrupt_ends_what_runs():
    timer = threading.Timer(0.5, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer.start()
    try:
        progress, _, _ = run([step("a"), step("b", "a")], {"a": "exec sleep 30"})
    finally:
        signal.signal(signal.SIGINT, before)
    assert progress.interrupted
    assert progress.reasons["a"] == "interrupted"
    assert not progress.running


def test_lines_tell_what_happened_and_how_long_the_rest_takes():
    told = io.StringIO()
    view = ProgressView(2, told)
    view._last = -1e9
    progress, _, _ = run([step("a"), step("b", "a")], {"a": "sleep 0.3"}, show=view.show)
    lines = told.getvalue().splitlines()
    assert [" ".join(line.split()[1:3]) for line in lines] == ["running a", "done a", "running b", "done b"]
    assert "a,a,done," in step_table(progress)


def test_a_terminal_shows_a_table_that_is_redrawn():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    told = Terminal()
    run([step("a")], {"a": "sleep 0.3"}, show=ProgressView(1, told).show)
    assert "0 of 1 steps, about" in told.getvalue()
    assert "40%|####" in told.getvalue()
    assert "\x1b[2A\x1b[J" in told.getvalue()


def test_wall_time_by_hand():
    # Two at a time: a and b start at 0; b ends at 2, c runs from 2 to 5; a ends at 4, d (after a) from 4 to 10.
    steps = [step("a"), step("b"), step("c"), step("d", "a")]
    seconds = {"a": 4.0, "b": 2.0, "c": 3.0, "d": 6.0}
    assert urgency(steps, seconds) == {"a": 10.0, "b": 2.0, "c": 3.0, "d": 6.0}
    # The most urgent ready ones are a (10) and c (3): c ends at 3, b runs to 5.
    assert wall_seconds(steps, seconds, [], 2) == 10.0
    assert wall_seconds(steps, seconds, [], 1) == 15.0
    assert wall_seconds(steps[1:3], {"b": 0.5, "c": 3.0}, ["b"], 1) == 3.5


def test_the_time_of_a_step_is_that_of_its_kind_or_of_the_machine():
    trains = StudyStep("t", "t", "t", "env", (), work=Workload(trained=1000, rolled=500, alone=10))
    speeds = Speeds(trained=100.0, rolled=50.0, alone=10.0, start=5.0)
    assert step_seconds(trains, speeds, None) == 5 + 10 + 10 + 1
    assert step_seconds(trains, speeds, (30.0, 3020.0)) == pytest.approx(15.0)
    assert step_seconds(step("fit"), speeds, (7.0, 0.0)) == 7.0
    assert [in_words(s) for s in (12.4, 440, 7500)] == ["12 s", "7 min 20 s", "2 h 05 min"]


def test_the_last_line_is_what_a_bar_shows_or_the_error(tmp_path):
    log = tmp_path / "log"
    assert last_line(str(log)) == ""
    log.write_bytes(b"start\nconcept:  1%|  | 1/9\rconcept:  2%|  | 2/9")
    assert last_line(str(log)) == "concept:  2%|  | 2/9"
    log.write_text("lightning-unlearn: error: no such thing\nDid you mean this?\n")
    assert last_line(str(log)) == "lightning-unlearn: error: no such thing"
