"""Planning is pure: what is asked for, in which order, and what makes two steps the same."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from lightning_unlearn.configuration import find_config
from lightning_unlearn.study.jobs import make_job
from lightning_unlearn.study.plan import plan, stages
from lightning_unlearn.study.schema import read_study
from lightning_unlearn.study.steps import ModelRef, RunRef, StepResult, StudyStep, done_steps, in_order, step_digest
from lightning_unlearn.study.study_command import require_reported, require_videos
from lightning_unlearn.study.trainings import resolve

ORDER = [
    "unsafe",
    "oracle",
    "concept",
    "localized_concept",
    "continued",
    "trajectory_decremental",
    "probe",
    "repedit",
    "evaluate",
    "relearn",
    "latent-shift",
    "report",
]
DIGESTS = json.loads((Path(__file__).parent / "digests.json").read_text())
"""Study → step → cache key of results that are stored already; without the default repair, which is still tuned."""
DISC = {"class_path": "Disc", "init_args": {"centre": [0.0, 0.0], "radius": 1.0}}
SMALL = {"name": "small", "envs": ["point_goal1"], "seeds": [0], "methods": ["unsafe", "concept"], "audits": {}}


def study(**changes):
    return read_study({"weights": [], "overlays": [], **SMALL, **changes})


def steps_of(a_study, digest_of=lambda uri: f"weights of {uri}", out="out"):
    return {step.name: step for step in plan(a_study, resolve(a_study), out, digest_of)}


@pytest.fixture(scope="module")
def full():
    content = yaml.safe_load(find_config("study/full.yaml").read_text())
    return study(**content)


def test_the_full_study_has_every_stage_in_order(full):
    trainings = resolve(full)
    assert stages(full, trainings["SafetyPointGoal1-v0"]) == ORDER
    steps = plan(full, trainings, "out", str)
    assert {step.stage for step in steps} == set(ORDER)


def test_the_report_counts_the_episodes_of_its_heat_maps(full):
    report = plan(full, resolve(full), "out", str)[-1]
    assert report.stage == "report"
    assert report.work.rolled == 20 * 20 * 1000  # save points, layouts, steps


def test_learning_from_a_replay_is_planned_to_take_longer():
    concept, off_policy = resolve(study(methods=["unsafe", "concept", "off_policy_concept"]))["SafetyPointGoal1-v0"][1:]
    assert concept.work.trained == 150 * 8 * 1024
    assert off_policy.work.trained == 3 * 60 * 8 * 1024


def test_names_of_a_study_are_those_of_shipped_configs(tmp_path, monkeypatch):
    shipped = resolve(study())
    monkeypatch.chdir(tmp_path)
    for shadow in ("base.yaml", "env/point_goal1.yaml", "method/concept.yaml"):
        (tmp_path / shadow).parent.mkdir(exist_ok=True)
        (tmp_path / shadow).write_text("trainer: {max_epochs: 7}\n")
    assert resolve(study()) == shipped


@pytest.mark.parametrize("name", ["full", "headline", "other_tasks", "smoke"])
def test_every_study_file_can_be_planned(name):
    a_study = study(**yaml.safe_load(find_config(f"study/{name}.yaml").read_text()))
    steps = plan(a_study, resolve(a_study), "out", str)
    assert {step.name.split("/")[1] for step in steps if "seed" in step.name} == {f"seed{s}" for s in a_study.seeds}
    assert DIGESTS[name].items() <= digests(steps).items()


def test_cache_keys_are_those_of_finished_studies():
    """Otherwise a study that has finished would run again."""
    concept = {"data.concept": DISC}
    methods = [
        "unsafe",
        {"config": "concept", "name": "gentle", "options": concept | {"pid.kp": 0.5, "data.workers": 2}},
        {
            "config": "off_policy_concept",
            "source": "unsafe@300",
            "options": concept | {"cost_limit": 10, "save_points": [30, 60]},
        },
        {
            "config": "concept_tuned",
            "options": concept | {"model.source": "zoo:unsafe.SafetyPointGoal1-v0", "save_points": [600]},
        },
    ]
    audits = {
        "probe": {"models": ["gentle"]},
        "select": {"methods": ["gentle"], "options": {"cost_limit": 20}},
        "evaluate": {"options": {"concept": "cost_hazards"}},
        "relearn": {"models": ["gentle@150", "random"], "options": {"fractions": [0.5]}},
        "report": {"options": {"map_episodes": 0}},
    }
    weights = [{"method": "unsafe", "uri": "kept/{env}/{seed}/{method}-{update}", "seeds": [3]}]
    steps = steps_of(study(name="other", seeds=[0, 3], methods=methods, audits=audits, weights=weights))
    assert DIGESTS["other"].items() <= digests(steps.values()).items()


def test_a_step_comes_after_all_that_it_needs(full):
    seen = set()
    for name, step in steps_of(dataclasses.replace(full, seeds=[3, 1])).items():
        assert set(step.needs) <= seen
        seen.add(name)


def test_the_edit_waits_for_the_probe_and_the_probe_is_tried_on_the_edit(full):
    steps = steps_of(full)
    seed0 = "SafetyPointGoal1-v0/seed0"
    assert steps[f"{seed0}/repedit"].needs == (f"{seed0}/unsafe", f"{seed0}/probe/export")
    assert f"{seed0}/repedit" in steps[f"{seed0}/probe/eval repedit@150"].needs
    assert "--use_editor_features" in steps[f"{seed0}/probe/eval repedit@150"].args
    assert "--use_editor_features" not in steps[f"{seed0}/probe/eval concept@150"].args


def test_seeds_share_the_evaluation_and_the_report_waits_for_all(full):
    steps = steps_of(dataclasses.replace(full, seeds=[0, 1]))
    evaluate, report = (steps[f"SafetyPointGoal1-v0/{name}"] for name in ("evaluate", "report"))
    assert {need.split("/")[1] for need in evaluate.needs} == {"seed0", "seed1"}
    assert set(report.needs) == set(steps) - {report.name}


def everything_done(steps, of=lambda step, digest: digest):
    """Results as a store would have them that was filled by these very steps."""
    results = {}
    for step in steps:
        digest = step_digest(step, results)
        models = {update: f"models:/{step.name}/{update}" for update in step.updates}
        results[step.name] = StepResult(f"run of {digest}", of(step, digest), models)
    return results


def digests(steps):
    return {name: result.digest for name, result in everything_done(steps).items()}


def stored(results, steps):
    known = {step_digest(step, results): results[step.name] for step in steps}
    return lambda step, digest: known.get(digest)


def test_a_finished_study_is_done_wherever_its_files_are():
    steps = list(steps_of(study()).values())
    find = stored(everything_done(steps), steps)
    elsewhere = list(steps_of(study(), out="elsewhere").values())
    assert set(done_steps(elsewhere, find)) == {step.name for step in steps}


def test_a_changed_option_redoes_the_step_and_what_reads_it():
    steps = list(steps_of(study()).values())
    find = stored(everything_done(steps), steps)
    slower = {"config": "concept", "options": {"model.lr": 1e-4}}
    assert set(done_steps(list(steps_of(study(methods=["unsafe", slower])).values()), find)) == {
        "SafetyPointGoal1-v0/seed0/unsafe"
    }
    other_expert = {"config": "unsafe", "options": {"model.lr": 1e-4}}
    assert done_steps(list(steps_of(study(methods=[other_expert, "concept"])).values()), find) == {}


def test_other_weights_of_the_source_redo_what_starts_from_them():
    steps = list(steps_of(study()).values())
    find = stored(everything_done(steps, of=lambda step, digest: "other weights"), steps)
    again = done_steps(steps, lambda step, digest: find(step, digest) if step.stage == "unsafe" else None)
    (concept,) = (step for step in steps if step.stage == "concept")
    assert step_digest(concept, again) == step_digest(concept, everything_done(steps, of=lambda *_: "other weights"))
    assert step_digest(concept, again) != step_digest(concept, everything_done(steps))


def test_the_machine_is_no_part_of_a_digest():
    plain, threaded = (
        steps_of(study(methods=[{"config": "unsafe", "options": {"data.workers": n}}])).popitem()[1] for n in (1, 2)
    )
    assert step_digest(plain, {}) == step_digest(threaded, {})
    seed1 = steps_of(study(methods=["unsafe"], seeds=[1])).popitem()[1]
    assert step_digest(plain, {}) != step_digest(seed1, {})


def test_an_artifact_counts_by_its_content(tmp_path):
    file = tmp_path / "direction.pt"
    edit = study(methods=["unsafe", {"config": "repedit", "options": {"model.repedit_artifact": str(file)}}])
    found = []
    for content in (b"one", b"other"):
        file.write_bytes(content)
        found.append(resolve(edit)["SafetyPointGoal1-v0"][1].facts)
    assert found[0] != found[1]


def test_stored_weights_stand_in_for_one_seed_only():
    weights = [{"method": "unsafe", "uri": "kept/{env}/{seed}/{method}-{update}", "seeds": [1]}]
    steps = steps_of(study(seeds=[0, 1], weights=weights))
    assert steps["SafetyPointGoal1-v0/seed0/unsafe"].args[0] == "fit"
    registered = steps["SafetyPointGoal1-v0/seed1/unsafe"]
    assert registered.args[0] == "register"
    assert registered.args[-1].path == "kept/SafetyPointGoal1-v0/1/unsafe-300"
    assert "weights of kept/SafetyPointGoal1-v0/1/unsafe-300" in registered.facts


def test_a_method_may_start_from_any_other():
    chained = {"config": "concept", "name": "gentle", "source": "concept@50", "options": {"pid.kp": 0.5}}
    steps = steps_of(study(methods=["unsafe", "concept", chained]))
    gentle = steps["SafetyPointGoal1-v0/seed0/gentle"]
    assert ModelRef("SafetyPointGoal1-v0/seed0/concept", 50) in gentle.args
    assert '"kp": 0.5' in gentle.facts


TWICE = {"config": "concept", "options": {"pid.kp": 1.0}}
CYCLE = [
    "unsafe",
    {"config": "concept", "name": "a", "source": "b"},
    {"config": "concept", "name": "b", "source": "a"},
]
EDITED = ["unsafe", "repedit"]
UNUSED = {"method": "unsafe", "uri": "x"}
BAD = {
    "unknown method": ({"methods": ["unsafe", "concpt"]}, "'concpt' is unknown: use one of concept"),
    "unknown environment": ({"envs": ["point_gaol1"]}, "'point_gaol1' is unknown"),
    "unknown audit": ({"audits": {"evalute": {}}}, "'evalute' is unknown.*Did you mean evaluate"),
    "selection of no method": ({"audits": {"select": {"methods": ["oracle"]}}}, "audits.select.methods: 'oracle' is"),
    "selection of an edited one": (
        {"methods": EDITED, "audits": {"select": {"methods": ["repedit"]}}},
        "edits a frozen",
    ),
    "impossible option of a selection": (
        {"audits": {"select": {"methods": ["concept"], "options": {"cost_limit": -1}}}},
        "audits.select: --cost_limit",
    ),
    "unknown key of an audit": ({"audits": {"relearn": {"model": []}}}, "audits.relearn: 'model' is unknown.*models"),
    "missing key": ({"audits": {"relearn": {}}}, "audits.relearn is incomplete.*models"),
    "unknown option of an audit": ({"audits": {"evaluate": {"options": {"episode": 3}}}}, "evaluate.*episodes"),
    "impossible option of an audit": ({"audits": {"evaluate": {"options": {"episodes": 0}}}}, "episodes=0"),
    "a name that the study gives": (
        {"audits": {"evaluate": {"options": {"eval_id": "mine"}}}},
        "evaluate: eval_id is set",
    ),
    "another store": ({"audits": {"report": {"options": {"tracking_uri": "x"}}}}, "report: tracking_uri is set by"),
    "unknown option of a method": ({"methods": [{"config": "unsafe", "options": {"model.lrr": 1}}]}, "unsafe.*lr"),
    "unknown key of a method": ({"methods": [{"config": "unsafe", "sauce": "x"}]}, "'sauce' is unknown.*source"),
    "two stages of one name": ({"methods": ["unsafe", "concept", TWICE]}, "methods: concept is listed twice"),
    "a cyclic source": ({"methods": CYCLE}, "a cyclic source: .*seed0/a needs .*seed0/b"),
    "its own source": ({"methods": ["unsafe", {"config": "concept", "source": "concept"}]}, "a cyclic source"),
    "no such source": ({"methods": ["concept"]}, "methods: concept: source: 'unsafe' is unknown"),
    "seed listed twice": ({"seeds": [0, 1, 0]}, "seeds: 0 is listed twice"),
    "negative seed": ({"seeds": [-1]}, "seeds: -1"),
    "no seeds": ({"seeds": []}, "seeds is empty"),
    "environment listed twice": ({"envs": ["point_goal1", "configs/env/point_goal1.yaml"]}, "envs: .*listed twice"),
    "no such save point": ({"audits": {"relearn": {"models": ["concept@7"]}}}, "no save point.*50, 100, 150"),
    "no such update": ({"audits": {"relearn": {"models": ["concept@x"]}}}, "concept@150"),
    "a word for a list": ({"audits": {"relearn": {"models": "concept"}}}, "give a list"),
    "shift without states": ({"audits": {"latent-shift": {"models": ["concept"]}}}, "add audits.probe"),
    "weights of no method": ({"weights": [{"method": "oracle", "uri": "x"}]}, "weights: 'oracle' is unknown"),
    "weights of no environment": ({"weights": [UNUSED | {"envs": ["point_goal1"]}]}, "weights.envs: 'point_goal1' is"),
    "weights of no seed": ({"weights": [UNUSED | {"seeds": [7]}]}, "weights.seeds: 7 is no seed of this study"),
    "a word for a seed": ({"weights": [UNUSED | {"seeds": ["0"]}]}, "weights.seeds: '0' .*list whole numbers"),
    "a mapping for a model": ({"audits": {"relearn": {"models": [{"concept": 150}]}}}, "relearn.models: .*list words"),
    "a word for a number": ({"audits": {"evaluate": {"options": {"episodes": "many"}}}}, "episodes: 'many'"),
    "a method named like an audit": ({"methods": [{"config": "unsafe", "name": "evaluate"}]}, "the name 'evaluate'"),
    "a method named like a place": ({"methods": [{"config": "unsafe", "name": "a/b"}]}, "the name 'a/b'"),
    "save points beyond the updates": (
        {"methods": ["unsafe", {"config": "concept", "options": {"trainer.max_epochs": 100}}]},
        "concept: save point 150 is not among its 100 updates",
    ),
    "an environment among the options": (
        {"methods": ["unsafe", {"config": "concept", "options": {"data.env": "SafetyCarGoal1-v0"}}]},
        "concept is of SafetyCarGoal1-v0, others of SafetyPointGoal1-v0",
    ),
    "unknown placeholder": ({"weights": [{"method": "unsafe", "uri": "{sed}"}]}, "'sed' is unknown.*seed"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_while_planning(changes, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        steps_of(study(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"audits": {"evaluate": {"options": {"concept": "cost_gremlin"}}}},
            "audits.evaluate in SafetyPointGoal1-v0: concept='cost_gremlin' is never reported",
        ),
        (
            {"methods": ["unsafe", {"config": "concept", "options": {"data.concept": "cost_gremlin"}}]},
            "methods: concept in SafetyPointGoal1-v0: concept='cost_gremlin' is never reported",
        ),
    ],
)
def test_what_an_environment_does_not_have_is_refused_before_anything_is_trained(changes, message):
    a_study = study(**changes)
    trainings = resolve(a_study)
    with pytest.raises(ValueError, match=message):
        require_reported(trainings, plan(a_study, trainings, "out", str))


def test_videos_that_cannot_be_made_are_refused_before_anything_is_trained():
    a_study = study(
        methods=[{"config": "unsafe", "options": {"data.env": "SafetyHalfCheetahVelocity-v1"}}],
        audits={"evaluate": {"options": {"record_videos": True, "video_renderer": "drawn"}}},
    )
    steps = plan(a_study, resolve(a_study), "out", str)
    with pytest.raises(ValueError, match=r"audits.evaluate: --record_videos is not possible in SafetyHalfCheetah"):
        require_videos(steps)


def test_each_attack_of_relearning_is_a_step_of_its_own():
    asked = {"relearn": {"models": ["concept@150", "random"], "attacks": ["ppo", "cloning"]}}
    steps = steps_of(study(methods=["unsafe", "concept"], audits=asked))
    names = [name.partition("seed0/")[2] for name in steps if "relearn" in name]
    assert names == [f"relearn/{model}{attack}" for attack in ("", " cloning") for model in ("concept@150", "random")]
    cloning = steps["SafetyPointGoal1-v0/seed0/relearn/random cloning"].args
    assert cloning[cloning.index("--attack") + 1] == "cloning"
    assert "--attack" not in steps["SafetyPointGoal1-v0/seed0/relearn/random"].args
    with pytest.raises(ValueError, match="attack"):
        steps_of(study(methods=["unsafe", "concept"], audits={"relearn": {"models": ["random"], "attacks": ["x"]}}))


def test_repairs_are_compared_with_the_experts_that_they_started_from():
    methods = ["unsafe", "oracle", "concept", {"config": "concept", "name": "gentle", "source": "concept@50"}]
    relearn = {"models": ["concept@150"], "attacks": ["ppo", "cloning"]}
    models = {"models": ["concept@150", "gentle", "oracle", "random"], "options": {"episodes": 20}}
    steps = steps_of(
        study(methods=methods, audits={"relearn": relearn, "patch": models, "weight-path": models, "elicit": models})
    )
    in_seed = "SafetyPointGoal1-v0/seed0"
    experts = {}
    for model in models["models"]:
        step = steps[f"{in_seed}/patch/{model}"]
        experts[model] = step.args[step.args.index("--expert") + 1]
        assert (step.stage, step.work.rolled, step.workers) == ("patch", 10 * 20 * 1000, ("--workers", 20))
    unsafe = ModelRef(f"{in_seed}/unsafe", 300)
    assert experts == {
        "concept@150": unsafe,
        "gentle": ModelRef(f"{in_seed}/concept", 50),
        "oracle": unsafe,
        "random": unsafe,
    }
    elicited = {name.partition("elicit/")[2]: step for name, step in steps.items() if step.stage == "elicit"}
    assert list(elicited) == ["concept@150", "gentle"]  # one step an expert, so that its controls are run once
    of_unsafe = elicited["concept@150"].args
    named = of_unsafe.index("--models")
    oracle = ModelRef(f"{in_seed}/oracle", 450)
    assert of_unsafe[named + 1 : named + 4] == (ModelRef(f"{in_seed}/concept", 150), oracle, "random")
    assert [of_unsafe[of_unsafe.index(option) + 1] for option in ("--expert", "--oracle")] == [unsafe, oracle]
    assert elicited["concept@150"].work.rolled == 17 * (3 + 2) * 20 * 1000
    alone = steps_of(study(methods=methods, audits={"elicit": {"models": ["concept@150", "random"]}}))
    assert [name for name in alone if "elicit" in name] == [f"{in_seed}/elicit"]
    assert steps[f"{in_seed}/weight-path/concept@150"].after == (f"{in_seed}/relearn/concept@150",)
    assert steps[f"{in_seed}/weight-path/oracle"].after == steps[f"{in_seed}/patch/concept@150"].after == ()


@pytest.mark.parametrize("options", [{"episodes": 0}, {"episodes": "many"}, {"mean_scale": -1}, {"expert": "x"}])
def test_an_impossible_option_of_patching_is_refused(options):
    with pytest.raises(ValueError, match=r"audits.patch: .*(episodes|mean_scale|expert)"):
        steps_of(study(audits={"patch": {"models": ["concept"], "options": options}}))


JUDGED = {"probe": {}, "evaluate": {}, "relearn": {"models": ["random"]}}


def concepts_of(*methods, **audits):
    steps = steps_of(study(methods=list(methods), audits=JUDGED | audits))
    told = {name.removeprefix("SafetyPointGoal1-v0/"): step.args for name, step in steps.items()}
    return {name: args[args.index("--concept") + 1] for name, args in told.items() if "--concept" in args}


def test_audits_judge_as_the_trainings_do():
    assert concepts_of("unsafe", "concept") == {}
    disc = {"config": "concept", "options": {"data.concept": DISC}}
    told = concepts_of("unsafe", disc)
    assert set(told) == {"seed0/probe/collect", "evaluate", "seed0/relearn/random"}
    assert {json.loads(concept)["init_args"]["radius"] for concept in told.values()} == {1.0}
    own = concepts_of("unsafe", disc, evaluate={"options": {"concept": "cost_hazards"}})
    assert own.pop("evaluate") == "cost_hazards"
    assert set(own.values()) == {told["evaluate"]}


def test_save_points_are_chosen_among_those_of_the_study():
    audits = {"evaluate": {}, "select": {"methods": ["concept"], "options": {"cost_limit": 20}}}
    steps = steps_of(study(seeds=[0, 1], audits=audits))
    select = steps["SafetyPointGoal1-v0/select/concept"]
    trained = [f"SafetyPointGoal1-v0/seed{seed}/concept" for seed in (0, 1)]
    runs = select.args.index("--run")
    assert select.args[runs + 1 : runs + 3] == tuple(RunRef(name) for name in trained)
    assert select.needs == tuple(trained)
    assert select.args[-2:] == ("--cost_limit", "20")
    assert [step.stage for step in steps.values()][-2:] == ["select", "evaluate"]


def test_trainings_that_forget_different_things_need_a_word():
    other = {"config": "concept", "name": "other", "options": {"data.concept": "cost_sum"}}
    methods = ["unsafe", {"config": "concept", "options": {"data.concept": DISC}}, other]
    with pytest.raises(ValueError, match=r"audits.probe.collect: the methods in SafetyPointGoal1-v0 forget different"):
        steps_of(study(methods=methods, audits=JUDGED))


def test_an_option_without_a_value_is_left_at_its_default():
    steps = steps_of(study(audits={"evaluate": {"options": {"episodes": None}}}))
    assert "--episodes" not in steps["SafetyPointGoal1-v0/evaluate"].args


def test_the_report_is_about_the_evaluation_of_its_study():
    steps = steps_of(study(audits={"evaluate": {}, "report": {}}))
    evaluate, report = (steps[f"SafetyPointGoal1-v0/{name}"] for name in ("evaluate", "report"))
    results = everything_done(list(steps.values()))

    def eval_id(step):
        tags = {"mlflow.parentRunId": "the study's"}
        args = make_job(step, step_digest(step, results), results, tags, "uri", "out", 1).args
        return args[args.index("--eval_id") + 1]

    assert eval_id(evaluate) == eval_id(report) == f"evaluate-{step_digest(evaluate, results)[:8]}"


def test_a_need_that_nothing_makes_is_refused():
    with pytest.raises(ValueError, match="a needs b, which this study does not make"):
        in_order([StudyStep("a", "a", "a", "env", (), after=("b",))])
