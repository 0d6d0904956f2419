"""One concept drives training, record and audits, from the command line; a stranger's is never run by loading."""

import json
import re
import sys
from pathlib import Path

import mlflow
import pytest
import torch
import yaml

from lightning_unlearn import cli, fit
from lightning_unlearn.audits.probe_data import load_data
from lightning_unlearn.callbacks import expert
from lightning_unlearn.safe_files import read_json
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking.store import open_store

PAGE = (Path(__file__).parent.parent / ".github/docs/environments.md").read_text()
TOY = "ToyLine-v0"
CHAIN = ["-c", "configs/base.yaml", "-c", "configs/env/point_goal1.yaml"]
SMOKE = ["-c", "configs/smoke.yaml"]
LEFT = {"class_path": "lightning_unlearn.envs.concepts.ObservationRange", "init_args": {"part": "position", "below": 0}}
BRAKING = """
from dataclasses import dataclass
import numpy as np
from lightning_unlearn.envs.concepts import Concept, Transitions

print("the stranger's module runs")

@dataclass
class Braking(Concept):
    '''The action points back.'''
    push: float = 0.0

    def __call__(self, transitions: Transitions) -> np.ndarray:
        return transitions.action[:, 0] < -self.push
"""


@pytest.fixture
def braking(store, tmp_path):
    """A class of one's own in one short file of the working directory."""
    (tmp_path / "braking.py").write_text(BRAKING)
    yield "braking.Braking"
    sys.modules.pop("braking", None)


def config(tmp_path, concept):
    (tmp_path / "configs").mkdir(exist_ok=True)
    path = tmp_path / "configs/concept.yaml"
    path.write_text(yaml.safe_dump({"data": {"concept": concept}}))
    return ["-c", str(path)]


def trained(method, *more):
    return fit.train([*CHAIN, "-c", f"configs/method/{method}.yaml", *SMOKE, *more])


def card(run):
    return registry.load_policy(run.saved[4]).card


def c_forget_rates(run):
    points = mlflow.MlflowClient().get_metric_history(run.run_id, "rollout/c_forget_rate")
    return [point.value for point in points]


@pytest.mark.parametrize("method", ["concept", "localized_concept", "trajectory_decremental", "repedit"])
def test_a_class_in_a_config_drives_every_method_and_is_recorded(store, tmp_path, method):
    quick = {"trajectory_decremental": ["--dataset_episodes", "40"], "repedit": ["--repedit_tau", "0.5"]}
    concept = {"class_path": "ObservationRange", "init_args": {"part": "position", "above": 0.9}}
    run = trained(method, *config(tmp_path, concept), *quick.get(method, []))
    recorded = json.loads(card(run).concept)
    expected = {"part": "position", "above": 0.9, "below": None, "which": "any"}
    assert recorded == {"class_path": LEFT["class_path"], "init_args": expected}
    stored = yaml.safe_load(mlflow.artifacts.load_text(f"runs:/{run.run_id}/config.yaml"))
    assert stored["data"]["concept"] == {"class_path": LEFT["class_path"], "init_args": expected}
    assert mlflow.MlflowClient().get_run(run.run_id).data.params["data.concept.init_args.above"] == "0.9"


def test_the_class_of_a_key_trains_what_the_key_trains(store, tmp_path):
    by_class = config(tmp_path, {"class_path": "InfoKey", "init_args": {"key": "cost_hazards"}})
    runs = [trained("concept", *more) for more in ([], ["--data.concept", "cost_hazards"], by_class)]
    assert {card(run).concept for run in runs} == {"cost_hazards"}
    assert len({tuple(c_forget_rates(run)) for run in runs}) == 1


def test_arguments_of_a_class_are_options_too(store):
    run = trained(
        "continued", "--data.concept", "ActionBox", "--data.concept.low", "[0]", "--data.concept.high", "[null]"
    )
    assert json.loads(card(run).concept)["init_args"] == {"low": [0.0], "high": [None]}
    assert all(0.0 < rate < 1.0 for rate in c_forget_rates(run))


def test_ones_own_class_is_found_in_the_working_directory(braking, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    run = trained("concept", *config(tmp_path, {"class_path": braking, "init_args": {"push": 0.5}}))
    assert json.loads(card(run).concept) == {"class_path": braking, "init_args": {"push": 0.5}}
    assert str(tmp_path) not in sys.path
    cli.main(
        ["evaluate", "--env", TOY, "--models", run.saved[4], "--episodes", "2", "--out", "e", "--concept", braking]
    )
    assert json.loads(read_json(tmp_path / "e/metadata.json", 1 << 20)["concept"])["class_path"] == braking


def test_the_classes_of_the_page_train(store, tmp_path):
    (in_yaml,) = (shown for shown in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "AnyOf" in shown)
    (in_python,) = (shown for shown in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "Reversing" in shown)
    (tmp_path / "shown.yaml").write_text(in_yaml)
    (tmp_path / "mine.py").write_text(in_python)
    chain = [*CHAIN, "-c", "configs/method/concept.yaml", "--updates", "1", "--save_points", "1", "--horizon", "16"]
    own = ["--data.concept", "mine.Reversing", "--data.concept.speed", "0.1"]
    recorded = []
    for more in (["-c", "shown.yaml"], own):
        run = fit.train([*chain, "--n_envs", "2", *more])
        recorded.append(json.loads(registry.load_policy(run.saved[1]).card.concept))
    assert [len(recorded[0]["init_args"]["concepts"]), recorded[1]["init_args"]] == [2, {"speed": 0.1}]
    sys.modules.pop("mine")


def test_loading_a_model_runs_nothing_that_its_card_names(braking, tmp_path, capsys):
    run = trained("concept", *config(tmp_path, {"class_path": braking}))
    sys.modules.pop("braking")
    capsys.readouterr()
    assert "braking.Braking" in registry.load_policy(run.saved[4]).card.concept
    cli.main(["evaluate", "--env", TOY, "--models", run.saved[4], "--episodes", "2", "--out", "e"])
    cli.main(["relearn", "--env", TOY, "--model_path", run.saved[4], "--max_updates", "1", "--horizon", "32"])
    cli.main(["export-artifacts", "--env", TOY, "--out", "tree"])
    assert "braking" not in sys.modules
    assert "stranger" not in capsys.readouterr().out


def test_audits_judge_by_the_same_concept(store, tmp_path):
    expert = trained("unsafe").saved[4]
    text = json.dumps(LEFT)
    cli.main(["evaluate", "--env", TOY, "--models", expert, "--episodes", "4", "--out", "e", "--concept", text])
    metadata = read_json(tmp_path / "e/metadata.json", 1 << 20)
    assert json.loads(metadata["concept"])["init_args"]["below"] == 0
    assert metadata["near_by"] == "steps until the next C_forget of the episode"

    told = ["--concept", "ObservationRange", "--concept.part", "position", "--concept.below", "0"]
    cli.main(["probe", "collect", "--env", TOY, "--model_path", expert, "--out", "p.npz", "--n_per_class", "50", *told])
    data = load_data("p.npz")
    assert json.loads(data.metadata["concept"]) == json.loads(metadata["concept"])
    moved = (
        data.states[:, 0]
        + 0.25 * registry.load_policy(expert).policy.act(torch.from_numpy(data.states))[:, 0].detach().numpy()
    )
    assert ((moved < 0) == data.labels).all()

    relearn = ["relearn", "--env", TOY, "--model_path", "random"]
    cli.main([*relearn, "--unsafe_model", expert, "--out", "r", *told, "--max_updates", "1", "--horizon", "32"])
    result = read_json(tmp_path / "r/relearn_result.json", 1 << 20)
    assert result["unit"] == "C_forget per step, deterministic policy"
    assert json.loads(result["settings"]["concept"]) == json.loads(metadata["concept"])


def test_a_run_is_reproduced_with_ones_own_class_only_if_it_is_named_again(braking, tmp_path, capsys):
    both = {"class_path": "AnyOf", "init_args": {"concepts": [LEFT, {"class_path": braking}]}}
    run = trained("concept", *config(tmp_path, both))
    sys.modules.pop("braking")
    with pytest.raises(SystemExit):
        cli.main(["reproduce", run.run_id])
    assert "braking" not in sys.modules
    assert f"name it by --concept {braking}." in capsys.readouterr().err
    cli.main(["reproduce", run.run_id, "--concept", braking])
    assert "Reproduced: 2 save points" in capsys.readouterr().out


NEVER = {"class_path": "ObservationRange", "init_args": {"part": "position", "above": 5.0}}
ALWAYS = {"class_path": "ObservationRange", "init_args": {"part": "position", "below": 5.0}}


@pytest.mark.parametrize("method", ["concept", "localized_concept"])
@pytest.mark.parametrize(
    ("concept", "told"), [(NEVER, r"0 of its first 512 steps \(a rate of 0\)"), (ALWAYS, r"512 of .* \(a rate of 1\)")]
)
def test_what_the_expert_never_or_always_shows_is_refused(store, tmp_path, monkeypatch, method, concept, told):
    monkeypatch.setattr(expert, "STEPS", 500)  # two rollouts of 4 x 64
    with pytest.raises(ValueError, match=rf"zoo:unsafe.ToyLine-v0 shows .*ObservationRange.* in {told}") as refusal:
        trained(method, *config(tmp_path, concept))
    assert not getattr(refusal.value, "__notes__", [])  # no word of resuming what would be refused again
    (run,) = mlflow.search_runs(experiment_names=[TOY], output_format="list")
    assert run.info.status == "FAILED"
    with pytest.raises(ValueError, match="shows"):  # and is, if somebody tries
        trained(method, *config(tmp_path, concept), "--resume", run.info.run_id)


def test_only_repairs_are_checked(store, tmp_path, monkeypatch):
    monkeypatch.setattr(expert, "STEPS", 500)
    ended = [
        trained("oracle", *config(tmp_path, NEVER)),
        trained("continued", *config(tmp_path, NEVER)),
        trained("concept"),
    ]
    assert [list(run.saved) for run in ended] == [[2, 4]] * 3


def test_episodes_that_never_show_it_have_nothing_to_forget(store, tmp_path):
    with pytest.raises(ValueError, match=r"40 episodes were collected with zoo:.*none shows the concept .*above"):
        trained("trajectory_decremental", *config(tmp_path, NEVER), "--dataset_episodes", "40")
    assert mlflow.search_runs(experiment_names=[TOY], output_format="list") == []


BAD = {
    "a misspelt argument": ('{"class_path": "SpeedAbove", "init_args": {"lmit": 1}}', "'lmit' is not accepted"),
    "no such class": ("lightning_unlearn.envs.concepts.Spede", "no attribute 'Spede'"),
    "no such module": ("nowhere.Mine", "No module named 'nowhere'"),
    "a class of another kind": ("collections.OrderedDict", "does not correspond to a subclass of Concept"),
    "a negative speed": ('{"class_path": "SpeedAbove", "init_args": {"limit": -1}}', "SpeedAbove.limit=-1.0 is not"),
    "an empty union": ('{"class_path": "AnyOf", "init_args": {"concepts": []}}', "AnyOf.concepts=[] is not possible"),
    "no plane": ('{"class_path": "SpeedAbove", "init_args": {"limit": 1}}', "ToyLine-v0, which has no plane"),
    "a wrong slice": (
        '{"class_path": "ObservationRange", "init_args": {"part": [1, 3], "above": 1}}',
        "position [0, 1], clock [1, 2]",
    ),
    "an unknown key": ("cost_vases", "Choose one of cost_hazards, cost_sum"),
}


@pytest.mark.parametrize("command", ["fit", "evaluate", "probe", "relearn"])
@pytest.mark.parametrize(("concept", "message"), BAD.values(), ids=BAD)
def test_bad_concepts_are_refused_before_anything_is_made(store, capsys, command, concept, message):
    zoo = "zoo:unsafe.ToyLine-v0"
    asked = {
        "fit": ["fit", *CHAIN, "-c", "configs/method/concept.yaml", *SMOKE, "--data.concept", concept],
        "evaluate": ["evaluate", "--env", TOY, "--models", zoo, "--concept", concept],
        "probe": ["probe", "collect", "--env", TOY, "--model_path", zoo, "--out", "p.npz", "--concept", concept],
        "relearn": ["relearn", "--env", TOY, "--model_path", zoo, "--concept", concept],
    }[command]
    with pytest.raises(SystemExit) as stopped:
        cli.main(asked)
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    open_store(store)
    assert mlflow.search_experiments(filter_string=f"name = '{TOY}'") == []


@pytest.mark.parametrize(("name", "key"), [("point_goal2", "cost_hazards"), ("point_button1", "cost_gremlins")])
def test_tasks_with_several_costs_name_the_one_to_forget(name, key):
    chain = ["-c", "configs/base.yaml", "-c", f"configs/env/{name}.yaml", "-c", "configs/method/localized_concept.yaml"]
    parsed = fit.FitCLI(chain).config
    assert parsed.data.concept == key
    assert fit.FitCLI([*chain, *SMOKE]).config.data.concept == "auto"
