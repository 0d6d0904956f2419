"""Turn a checked study into steps. Pure, given what its trainings resolve to.

A step is named `<environment>/seed<n>/<kind>`; if it concerns all seeds, `<environment>/<kind>`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from string import Formatter
from typing import Any

from lightning_unlearn.audits import (
    elicitation,
    latent_shift,
    model_selection,
    policy_suite,
    probe_collection,
    probe_commands,
    relearning,
    repair_pairs,
)
from lightning_unlearn.audits.relearn_attacks import PPO
from lightning_unlearn.options import CommandParser
from lightning_unlearn.report import report_command
from lightning_unlearn.study.schema import RANDOM, Study, Weights, model_name, require_known
from lightning_unlearn.study.steps import (
    Arg,
    ConfigFile,
    FileRef,
    Location,
    ModelRef,
    NameRef,
    RunRef,
    StudyStep,
    Workload,
    in_order,
)
from lightning_unlearn.study.trainings import AUTO, EPISODE_STEPS, PlannedTraining

UNSAFE, ORACLE = "unsafe", "oracle"
PROBE, SELECT, EVALUATE, RELEARN, SHIFT, REPORT = "probe", "select", "evaluate", "relearn", "latent-shift", "report"
PATH = "weight-path"
PAIRS: Mapping[str, int] = {"elicit": 17, "patch": 10, PATH: 5}
"""Audit of repaired models beside their experts → policies that it runs for a model of two layers."""
CONTROLS = 2
"""Expert and oracle, which `elicit` attacks once for all models."""
STATES, FITTED, DIRECTION = "probe_states.npz", "hazard_probe.npz", "hazard_direction.pt"
_SET_WHEN_RUN = ("--out", "--tracking_uri", "--workers")
"""Options that every step gets when it runs."""
_EVAL_ID = f"{EVALUATE}-{{digest}}"
_READERS: Mapping[str, Callable[[Sequence[str]], Any]] = {
    SELECT: model_selection.read_options,
    EVALUATE: policy_suite.read_options,
    RELEARN: relearning.read_options,
    **dict.fromkeys(PAIRS, lambda args: repair_pairs.read_options(CommandParser(), args)),
    elicitation.NAME: elicitation.read_options,
    SHIFT: latent_shift.read_options,
    REPORT: report_command.read_options,
    f"{PROBE}.collect": probe_collection.read_options,
    f"{PROBE}.fit": probe_commands.read_fit_options,
}
"""Name of an audit's command → the function with which the command reads its options."""


def plan(
    study: Study, trainings: Mapping[str, Sequence[PlannedTraining]], out: str, digest_of: Callable[[str], str]
) -> list[StudyStep]:
    """Return every step of a study, each after what it needs.

    Args:
        study: The study file.
        trainings: Environment id → its trainings.
        out: Folder of the study's files.
        digest_of: Returns the digest of stored weights, by URI or file.

    Raises:
        ValueError: No method makes a model that is named, sources go in a circle, or an audit refuses an option.
    """
    for weights in study.weights:
        for of_env in trainings.values():
            require_known("weights", weights.method, [training.name for training in of_env])
        for env in weights.envs:
            require_known("weights.envs", env, trainings)
        if weights.seeds and not {*weights.seeds} & {*study.seeds}:
            raise ValueError(f"weights.seeds: {', '.join(map(str, weights.seeds))} is no seed of this study.")
    every = [_EnvironmentPlan(study, env, of_env, f"{out}/{env}", digest_of) for env, of_env in trainings.items()]
    return in_order([step for environment in every for step in environment.steps()])


def stages(study: Study, trainings: Sequence[PlannedTraining]) -> list[str]:
    """Return the names of the stages for display: methods, then audits; the probe before the edits that need it."""
    early = [t.name for t in trainings if not t.takes_direction]
    late = [t.name for t in trainings if t.takes_direction]
    audits = list(study.audits)
    return [*early, *(a for a in audits if a == PROBE), *late, *(a for a in audits if a != PROBE)]


@dataclass(frozen=True)
class _EnvironmentPlan:
    """The steps in one environment."""

    study: Study
    env: str
    trainings: Sequence[PlannedTraining]
    out: str
    digest_of: Callable[[str], str]

    def steps(self) -> list[StudyStep]:
        """Return all steps by stage."""
        audits, seeds, steps = self.study.audits, self.study.seeds, list[StudyStep]()
        for seed in seeds:
            steps += [self._training(training, seed) for training in self.trainings]
            steps += self._probe(seed) if PROBE in audits else ()
        if SELECT in audits:
            steps += [self._select(method) for method in audits[SELECT].methods]
        if EVALUATE in audits:
            steps.append(self._evaluate())
        for seed in seeds:
            steps += self._relearn(seed) if RELEARN in audits else ()
            steps += [step for name in PAIRS if name in audits for step in self._pairs(name, seed)]
            steps += self._shifts(seed) if SHIFT in audits else ()
        if REPORT in audits:
            steps.append(self._report(after=[step.name for step in steps]))
        return steps

    def _training(self, training: PlannedTraining, seed: int) -> StudyStep:
        for weights in self.study.weights:
            covers_env = not weights.envs or self.env in weights.envs
            covers_seed = not weights.seeds or seed in weights.seeds
            if weights.method == training.name and covers_env and covers_seed:
                return self._registration(training, seed, weights)
        _require_reached(training)
        config = ConfigFile(f"{self.out}/configs/{training.name}.yaml", training.text)
        args: list[Arg] = ["fit", "-c", config, "--seed", str(seed)]
        facts = training.facts
        if training.foreign:
            facts += self.digest_of(str(training.source))
        elif training.source is not None:
            args += ["--model.source", self._model(training.source, seed, f"methods: {training.name}: source")]
        if training.takes_direction and PROBE in self.study.audits:
            args += ["--repedit_artifact", self._probe_file(seed, "export", DIRECTION)]
        return self._step(
            training.name,
            training.name,
            args,
            seed,
            facts=facts,
            updates=training.save_points,
            workers=("--data.workers", training.num_envs),
            work=training.work,
        )

    def _registration(self, training: PlannedTraining, seed: int, weights: Weights) -> StudyStep:
        """Plan to register stored weights in place of a training."""
        known = {"env": self.env, "seed": seed, "method": training.name}
        for _, name, _, _ in Formatter().parse(weights.uri):
            require_known("weights.uri", name or "env", [*known, "update"])
        uris = [weights.uri.format(**known, update=update) for update in training.save_points]
        args: list[Arg] = ["register", "--env", self.env, "--method", training.name, "--seed", str(seed)]
        args += ["--updates", *map(str, training.save_points), "--model_path", *map(Location, uris)]
        facts = " ".join(map(self.digest_of, uris))
        return self._step(training.name, training.name, args, seed, facts, training.save_points, here=True)

    def _probe(self, seed: int) -> Iterator[StudyStep]:
        audit = self.study.audits[PROBE]
        model = self._model(audit.model, seed, "audits.probe.model")
        in_env: list[Arg] = ["--env", self.env]
        states: list[Arg] = ["--dataset", self._probe_file(seed, "collect", STATES)]
        args, options = self._with_options(
            f"{PROBE}.collect",
            [*in_env, "--model_path", model, "--out", self._probe_location(seed, STATES)],
            audit.collect,
            judges=True,
            whole=("num_envs", "max_env_steps", "n_per_class"),
        )
        # about one state in twenty shows the concept
        work = Workload(rolled=min(options.max_env_steps, 20 * options.n_per_class))
        yield self._probe_step("collect", args, seed, workers=("--workers", options.num_envs), work=work)
        args = [*in_env, *states, "--model_path", model]
        args += ["--metrics_out", self._probe_location(seed, "hazard_probe_metrics.json")]
        out: list[Arg] = ["--out", self._probe_location(seed, FITTED)]
        args, _ = self._with_options(f"{PROBE}.fit", args, audit.fit, out=out)
        yield self._probe_step("fit", args, seed)
        probe: list[Arg] = ["--probe_path", self._probe_file(seed, "fit", FITTED)]
        yield self._probe_step("export", [*probe, "--out", self._probe_location(seed, DIRECTION)], seed)
        for other in [audit.model, *audit.models]:
            uri = self._model(other, seed, "audits.probe.models")
            edited = self._named(model_name(other)[0], "audits.probe.models").edits
            if other != audit.model:
                metrics = self._probe_location(seed, f"{_word(other)}_probe_eval.json")
                args = [*probe, *states, "--model_path", uri, "--metrics_out", metrics]
                yield self._probe_step(f"eval {other}", [*args, *(["--use_editor_features"] if edited else [])], seed)
            if other == audit.model or edited:
                metrics = self._probe_location(seed, f"{_word(other)}_action_control.json")
                args = ["action-control", *in_env, *states, "--model_path", uri, "--metrics_out", metrics]
                yield self._step(PROBE, f"probe/action-control {other}", args, seed)

    def _probe_step(self, name: str, args: Sequence[Arg], seed: int, **more: Any) -> StudyStep:
        command = name.partition(" ")[0]
        return self._step(PROBE, f"probe/{name}", [PROBE, command, *args], seed, **more)

    def _select(self, method: str) -> StudyStep:
        audit, seeds = self.study.audits[SELECT], self.study.seeds
        training = self._named(method, "audits.select.methods")
        if training.edits:
            raise ValueError(f"audits.select.methods: {method} edits a frozen policy; leave it out.")
        args: list[Arg] = ["--env", self.env, "--method", method, "--seed", *map(str, seeds)]
        args += ["--run", *(RunRef(self._name_of(training, seed)) for seed in seeds)]
        args += ["--out", Location(f"{self.out}/select_{method}-{{digest}}")]
        args, options = self._with_options(SELECT, args, audit.options, judges=True, whole=("episodes",))
        work = Workload(rolled=len(seeds) * len(training.save_points) * options.episodes * EPISODE_STEPS)
        workers = ("--workers", options.episodes)
        return self._step(SELECT, f"select/{method}", [SELECT, *args], None, workers=workers, work=work)

    def _evaluate(self) -> StudyStep:
        audit, seeds = self.study.audits[EVALUATE], self.study.seeds
        models = [self._at(t, s, u) for t in self.trainings for s in seeds for u in t.save_points]
        args: list[Arg] = ["--env", self.env, "--models", *models, "--seed", *map(str, seeds)]
        if len(seeds) == 1 and UNSAFE in self._names():
            args += ["--unsafe_model", self._model(UNSAFE, seeds[0], EVALUATE)]
        args += self._results_in(EVALUATE)
        args, options = self._with_options(EVALUATE, args, audit.options, judges=True, whole=("episodes",))
        work = Workload(rolled=len(models) * options.episodes * EPISODE_STEPS)
        workers = ("--workers", options.episodes)
        return self._step(EVALUATE, EVALUATE, [EVALUATE, *args], None, workers=workers, work=work)

    def _relearn(self, seed: int) -> Iterator[StudyStep]:
        audit = self.study.audits[RELEARN]
        for attack, model in product(audit.attacks, audit.models):
            of_attack = "" if attack == PPO else f" {attack}"
            subject = RANDOM if model == RANDOM else self._model(model, seed, "audits.relearn.models")
            args: list[Arg] = ["--env", self.env, "--model_path", subject, "--seed", str(seed)]
            if UNSAFE in self._names():
                args += ["--unsafe_model", self._model(UNSAFE, seed, UNSAFE)]
            if attack != PPO:
                args += ["--attack", attack]
            args += self._results_in(f"seed{seed}/relearn_{_word(model)}{of_attack.replace(' ', '_')}")
            whole = ("max_updates", "horizon")
            args, options = self._with_options(RELEARN, args, audit.options, judges=True, whole=whole)
            updates = options.max_updates
            work = Workload(rolled=2 * updates * EPISODE_STEPS, alone=updates * options.horizon)
            yield self._step(RELEARN, f"relearn/{model}{of_attack}", [RELEARN, *args], seed, work=work)

    def _pairs(self, command: str, seed: int) -> Iterator[StudyStep]:
        """Plan an audit of repaired models beside the experts that they started from.

        It is one step a model. `elicit` takes all models of an expert in one, so that its controls are run once.
        """
        audit, relearned = self.study.audits[command], self.study.audits.get(RELEARN)
        relearned_too = relearned.models if command == PATH and relearned and PPO in relearned.attacks else ()
        where, elicits, steps = f"audits.{command}.models", command == elicitation.NAME, dict[Any, list[str]]()
        for model in audit.models:
            steps.setdefault(self._expert(model, seed, where) if elicits else model, []).append(model)
        for models in steps.values():
            subjects = [RANDOM if model == RANDOM else self._model(model, seed, where) for model in models]
            args: list[Arg] = ["--env", self.env, "--models", *subjects, "--seed", str(seed)]
            if (expert := self._expert(models[0], seed, where)) is not None:
                args += ["--expert", expert]
            if elicits and ORACLE in self._names():
                args += ["--oracle", self._model(ORACLE, seed, where)]
            alone = "" if elicits and len(steps) == 1 else models[0]
            args += self._results_in(f"seed{seed}/{command}{alone and '_'}{_word(alone)}")
            args, options = self._with_options(command, args, audit.options, judges=True, whole=("episodes",))
            after = [f"{self.env}/seed{seed}/{RELEARN}/{model}" for model in models if model in relearned_too]
            policies = PAIRS[command] * (len(models) + CONTROLS if elicits else 1)
            yield self._step(
                command,
                f"{command}{alone and '/'}{alone}",
                [command, *args],
                seed,
                after=tuple(after),
                workers=("--workers", options.episodes),
                work=Workload(rolled=policies * options.episodes * EPISODE_STEPS),
            )

    def _expert(self, model: str, seed: int, where: str) -> Arg | None:
        """Return the model that a repair started from; None if the study does not make it."""
        if model != RANDOM and (training := self._named(model_name(model)[0], where)).source is not None:
            return training.source if training.foreign else self._model(training.source, seed, where)
        return self._model(UNSAFE, seed, where) if UNSAFE in self._names() else None

    def _shifts(self, seed: int) -> Iterator[StudyStep]:
        audit, probe = self.study.audits[SHIFT], self.study.audits.get(PROBE)
        if probe is None:
            raise ValueError("audits.latent-shift needs the states of the probe: add audits.probe.")
        reference = self._model(probe.model, seed, "audits.probe.model")
        for model, raw in [(model, False) for model in audit.models] + [(model, True) for model in audit.raw_models]:
            compared = self._model(model, seed, "audits.latent-shift.models")
            args: list[Arg] = ["--env", self.env, "--dataset", self._probe_file(seed, "collect", STATES)]
            args += ["--ref_model_path", reference, "--cmp_model_path", compared]
            args += [*(["--raw_features"] if raw else []), "--out", Location(f"{self.out}/seed{seed}")]
            args, _ = self._with_options(SHIFT, args, audit.options)
            yield self._step(SHIFT, f"latent-shift/{model}{' raw' if raw else ''}", [SHIFT, *args], seed)

    def _report(self, after: Sequence[str]) -> StudyStep:
        args: list[Arg] = ["--env", self.env, "--seed", *map(str, self.study.seeds)]
        if EVALUATE in self.study.audits:
            args += ["--eval_id", NameRef(f"{self.env}/{EVALUATE}", _EVAL_ID)]
        args += ["--out", Location(f"{self.out}/report")]
        audit = self.study.audits[REPORT]
        args, options = self._with_options(REPORT, args, audit.options, whole=("map_episodes",))
        episodes, drivers = options.map_episodes, sum(len(t.save_points) for t in self.trainings)
        work = Workload(rolled=len(self.study.seeds) * drivers * episodes * EPISODE_STEPS)
        workers = ("--workers", max(1, episodes))
        return self._step(REPORT, REPORT, [REPORT, *args], None, after=tuple(after), workers=workers, work=work)

    def _step(
        self,
        stage: str,
        kind: str,
        args: Sequence[Arg],
        seed: int | None,
        facts: str = "",
        updates: Sequence[int] = (),
        **more: Any,
    ) -> StudyStep:
        name = f"{self.env}/{kind}" if seed is None else f"{self.env}/seed{seed}/{kind}"
        return StudyStep(name, stage, kind, self.env, tuple(args), facts, updates=tuple(updates), **more)

    def _with_options(
        self,
        command: str,
        args: Sequence[Arg],
        given: Mapping[str, Any],
        *,
        judges: bool = False,
        whole: Sequence[str] = (),
        out: Sequence[Arg] = (),
    ) -> tuple[list[Arg], Any]:
        """Add the options of the study file to those that the study sets, and read them all as the command will.

        Args:
            command: Key of `_READERS`.
            args: Options that the study sets.
            given: Options in the study file.
            judges: The command counts the concept: it gets that of the trainings if the file names none.
            whole: Options of the file that must be whole numbers, since the plan calculates with them.
            out: Options that the study sets after those of the file.

        Returns:
            All arguments, and the options as the command reads them, defaults included.

        Raises:
            ValueError: An option is set by the study itself, or the command refuses it.
        """
        for key in given:
            if f"--{key}" in (*args, *_SET_WHEN_RUN):
                raise ValueError(f"audits.{command}: {key} is set by the study itself: leave it out.")
        for option in whole:
            if not isinstance(given.get(option), int | None):
                raise ValueError(f"audits.{command}: {option}: {given[option]!r} is not possible: use a whole number.")
        every = [*args, *(self._concept(command, given) if judges else []), *_as_arguments(given), *out]
        words = [arg if isinstance(arg, str) else "from-the-study" for arg in every]
        try:
            read = _READERS[command](words)
        except ValueError as error:
            raise ValueError(f"audits.{command}: {error}") from error
        return every, read[0] if isinstance(read, tuple) else read

    def _concept(self, command: str, given: Mapping[str, Any]) -> list[Arg]:
        """Return the option that makes an audit count the trainings' concept; nothing if the file names one."""
        named = {training.concept for training in self.trainings} - {AUTO}
        if given.get("concept") is not None or not named:
            return []
        if len(named) > 1:
            raise ValueError(
                f"audits.{command}: the methods in {self.env} forget different things ({', '.join(sorted(named))}): "
                "say which the audit is about, by its option concept."
            )
        return ["--concept", *named]

    def _model(self, model: str, seed: int, where: str) -> ModelRef:
        """Return a save point of a method of this study."""
        method, update = model_name(model)
        training = self._named(method, where)
        if update is not None and update not in training.save_points:
            points = ", ".join(map(str, training.save_points))
            raise ValueError(f"{where}: {model} is no save point of {method} in {self.env}: use one of {points}.")
        return self._at(training, seed, update or max(training.save_points))

    def _at(self, training: PlannedTraining, seed: int, update: int) -> ModelRef:
        return ModelRef(self._name_of(training, seed), update)

    def _named(self, method: str, where: str) -> PlannedTraining:
        require_known(where, method, self._names())
        return next(t for t in self.trainings if t.name == method)

    def _name_of(self, training: PlannedTraining, seed: int) -> str:
        return f"{self.env}/seed{seed}/{training.name}"

    def _names(self) -> list[str]:
        return [training.name for training in self.trainings]

    def _probe_location(self, seed: int, name: str) -> Location:
        return Location(f"{self.out}/seed{seed}/probes/{name}")

    def _probe_file(self, seed: int, step: str, name: str) -> FileRef:
        return FileRef(f"{self.env}/seed{seed}/probe/{step}", self._probe_location(seed, name).path)

    def _results_in(self, folder: str) -> list[Arg]:
        """Return the options for an audit's folder and name; each variant of the audit has its own."""
        place = f"{folder}-{{digest}}"
        return ["--out", Location(f"{self.out}/{place}"), "--eval_id", Location(place.replace("/", "-"))]


def _as_arguments(given: Mapping[str, Any]) -> list[Arg]:
    """Write options as a command line: `record_videos: true` is a bare switch, a list follows its option."""
    args: list[Arg] = []
    for key, value in given.items():
        if value is not False and value is not None:
            values = [] if value is True else value if isinstance(value, list) else [value]
            words = [json.dumps(v) if isinstance(v, Mapping) else str(v) for v in values]  # a class becomes JSON
            args += [f"--{key}", *words]
    return args


def _require_reached(training: PlannedTraining) -> None:
    """Refuse save points beyond the last update, before the expert is trained."""
    if beyond := [point for point in training.save_points if not 1 <= point <= training.updates]:
        raise ValueError(
            f"methods: {training.name}: save point {beyond[0]} is not among its {training.updates} updates: give "
            "save_points, too."
        )


def _word(model: str) -> str:
    return model.replace("@", "_")
