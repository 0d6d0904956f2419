"""The table, the summary and the verdicts of the benchmark, on made-up measurements; and one tiny real one."""

import json

import pytest

from lightning_unlearn import cli
from lightning_unlearn.benchmark import bench_command, ours
from lightning_unlearn.benchmark.measurement import Item, Measurement, Plan
from lightning_unlearn.benchmark.ours import Soak, soak
from lightning_unlearn.processes import cores

STEPPING = ours.stepping_name(8, min(cores(), 8))
MADE_UP = [
    Measurement("physics.limit", "limit", "steps/s", [10_000.0, 12_000.0, 11_000.0]),
    Measurement(STEPPING, "ours", "steps/s", [9000.0]),
    Measurement("env.vector_make", "peer", "steps/s", [900.0]),
    Measurement("collect.lean", "ours", "steps/s", [7000.0]),
    Measurement("collect.vector_make", "peer", "steps/s", [], "OSError: no such thing"),
    Measurement("train.published", "training", "steps/s", [5500.0]),
    Measurement("update.off_policy", "updating", "ms", [5.0, 6.0, 8.0]),
]
TINY = Plan("ToyLine-v0", 2, 0, (8,), 64, 4, 1, 2, 8, False, horizon=16)


def test_the_summary_by_hand():
    numbers = bench_command.summary(MADE_UP)
    # medians: 9000/900; no peer; 5500; 5500/11000
    assert numbers == {"env_speedup": 10.0, "collect_speedup": None, "train_steps_per_s": 5500.0, "limit_fraction": 0.5,
                       "off_policy_update_ms": 6.0}  # fmt: skip
    line = "env_speedup=10 collect_speedup=null train_steps_per_s=5500 limit_fraction=0.5 off_policy_update_ms=6"
    assert bench_command.summary_line(numbers) == line


def test_the_table_names_units_and_reasons():
    lines = bench_command.table(MADE_UP).splitlines()
    assert lines[1].split() == ["limit", "11,000", "steps/s", "10,000", "to", "12,000", "(3)"]
    assert lines[5].split()[:3] == ["peer", "null", "steps/s"]
    assert lines[5].endswith("OSError: no such thing")


def test_results_are_strict_json_with_figures_beside_them(tmp_path):
    flat = Soak([10 * k for k in range(1, 21)], [100.0] * 20, [500.0] * 20)
    written = bench_command.write(tmp_path / "new" / "b.json", TINY, MADE_UP, flat)
    assert [path.name for path in written] == ["b.json", "b.png", "b_soak.png"]
    content = json.loads(written[0].read_text())
    assert content["measurements"][4]["median"] is None
    assert content["machine"]["cores"] == cores()
    assert content["soak"]["flat"] is True
    assert all(path.stat().st_size > 1000 for path in written[1:])


@pytest.mark.parametrize(
    ("speed", "memory", "flat"),
    [((100, 96), (500, 510), True), ((100, 94), (500, 500), False), ((100, 120), (500, 530), False)],
)
def test_a_soak_is_flat_when_neither_speed_nor_memory_drifts(speed, memory, flat):
    series = [
        [1.0, *[float(first)] * 10, *[float(last)] * 9] for first, last in (speed, memory)
    ]  # the first one warms up
    assert Soak(list(range(20)), *series).flat is flat


def test_what_cannot_be_measured_says_why_if_it_may_be_missing():
    def fail(plan):
        raise OSError("no\nsuch")

    (missing,) = Item("x", fail, (MADE_UP[2],)).run(TINY)
    assert (missing.median, missing.note) == (None, "OSError: no")
    with pytest.raises(OSError, match="no"):
        Item("x", fail).run(TINY)


@pytest.mark.parametrize(("make", "number"), [(Plan.quick, 1), (Plan.full, 2)])
def test_off_policy_updates_on_all_cores_are_not_for_the_quick_plan(make, number):
    labels = [item.label for item in bench_command.items(make("ToyLine-v0", 2, 0))]
    assert sum("off policy" in label for label in labels) == number


def test_our_own_measurements_run_on_the_toy():
    for num_envs in (8, 32):
        (stepping,) = ours.stepping(TINY, num_envs, 2)
        assert len(stepping.values) == 2
    (row,) = ours.collection(TINY)
    assert (row.name, len(row.values)) == ("collect.lean", 2)
    assert row.median > 0
    assert ours.evaluation(TINY)[0].median > 0
    assert ours.resets(TINY)[0].median > 0
    assert len(soak(TINY, 1).steps_per_s) == 20


def test_rates_of_more_cores_are_extrapolated_by_hand():
    costs = ours.RolloutCosts(step_s=1e-4, message_s=1e-3, hand_over_s=1e-6)
    assert costs.rate(1, 100) == pytest.approx(800 / (0.08 + 0.0008))
    assert costs.rate(4, 100) == pytest.approx(3200 / (0.08 + 0.003 + 0.0032))
    table = bench_command.scaling_table(costs, 100).splitlines()
    assert table[0].startswith("EXTRAPOLATED, not measured")
    assert table[-5].split() == ["4", "37,123"]


def test_scaling_is_measured_with_each_number_of_workers():
    for workers in (1, 2):
        rows = ours.scaling(TINY, workers)
        assert [row.name for row in rows] == [f"scaling.collect_w{workers}", f"scaling.step_w{workers}"]
        assert all(row.median > 0 for row in rows)
    costs = ours.rollout_costs(TINY)
    assert min(costs.step_s, costs.message_s) > 0


def test_a_task_without_a_known_scene_has_no_limit():
    (item, *_) = bench_command.items(TINY)
    (limit,) = item.run(TINY)
    assert limit.median is None
    assert "ToyLine-v0" in limit.note


def test_bad_options_are_refused(capsys):
    for options in (["--repeats", "0"], ["--soak_steps", "-1"], ["--quik"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["bench", *options])
        assert stopped.value.code == 2
        assert options[0].strip("-") in capsys.readouterr().err
