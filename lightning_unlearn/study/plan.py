"""From a checked study to its steps: pure, given what its trainings resolve to.

A step is named `<environment>/seed<n>/<what>`; where it concerns all seeds, `<environment>/<what>`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

from lightning_unlearn.study.schema import RANDOM, Study, Weights, model_name, require_known
from lightning_unlearn.study.steps import Arg, Config, FileOf, ModelOf, NameOf, Place, RunOf, Step, Work, in_order
from lightning_unlearn.study.trainings import AUTO, EPISODE_STEPS, Training

UNSAFE = "unsafe"
PROBE, SELECT, EVALUATE, RELEARN, SHIFT, REPORT = "probe", "select", "evaluate", "relearn", "latent-shift", "report"
_OF_THE_STUDY = ("--out", "--tracking_uri", "--workers")
"""Options that every step gets when it runs."""
_EVAL_ID = f"{EVALUATE}-{{digest}}"
STATES, FITTED, DIRECTION = "probe_states.npz", "hazard_probe.npz", "hazard_direction.pt"


def plan(
    study: Study, trainings: Mapping[str, Sequence[Training]], out: str, digest_of: Callable[[str], str]
) -> list[Step]:
    """Every step of a study, each after what it needs.

    Args:
        study: The file.
        trainings: Environment id → what its methods resolve to.
        out: Folder of the study's files.
        digest_of: The digest of stored weights, by URI or file.

    Raises:
        ValueError: A model is asked for that no method makes, or sources go in a circle.
    """
    for weights in study.weights:
        for of_env in trainings.values():
            require_known("weights", weights.method, [training.name for training in of_env])
        for env in weights.envs:
            require_known("weights.envs", env, trainings)
        if weights.seeds and not {*weights.seeds} & {*study.seeds}:
            raise ValueError(f"weights.seeds: {', '.join(map(str, weights.seeds))} is no seed of this study.")
    every = [_Environment(study, env, of_env, f"{out}/{env}", digest_of) for env, of_env in trainings.items()]
    return in_order([step for environment in every for step in environment.steps()])


def stages(study: Study, trainings: Sequence[Training]) -> list[str]:
    """Their names in the order in which people think of them: methods, then audits; the probe before its edits."""
    early = [t.name for t in trainings if not t.takes_direction]
    late = [t.name for t in trainings if t.takes_direction]
    audits = list(study.audits)
    return [*early, *(a for a in audits if a == PROBE), *late, *(a for a in audits if a != PROBE)]


@dataclass(frozen=True)
class _Environment:
    """The steps in one environment."""

    study: Study
    env: str
    trainings: Sequence[Training]
    out: str
    digest_of: Callable[[str], str]

    def steps(self) -> list[Step]:
        """All of them, as people would list them."""
        steps = list(self._before_the_report())
        return [*steps, self._report([step.name for step in steps])] if REPORT in self.study.audits else steps

    def _before_the_report(self) -> Iterator[Step]:
        audits = self.study.audits
        for seed in self.study.seeds:
            yield from (self._training(training, seed) for training in self.trainings)
            yield from self._probe(seed) if PROBE in audits else ()
        if SELECT in audits:
            yield from (self._select(method) for method in audits[SELECT].methods)
        if EVALUATE in audits:
            yield self._evaluate()
        for seed in self.study.seeds:
            yield from self._relearn(seed) if RELEARN in audits else ()
            yield from self._shifts(seed) if SHIFT in audits else ()

    def _training(self, training: Training, seed: int) -> Step:
        for weights in self.study.weights:
            if weights.method == training.name and self._covers(weights, seed):
                return self._stored(training, seed, weights)
        _require_reached(training)
        config = Config(f"{self.out}/configs/{training.name}.yaml", training.text)
        args: list[Arg] = ["fit", "-c", config, "--seed", str(seed)]
        facts = training.facts
        if training.foreign:
            facts += self.digest_of(str(training.source))
        elif training.source is not None:
            args += ["--model.source", self._model(training.source, seed, f"methods: {training.name}: source")]
        if training.takes_direction and PROBE in self.study.audits:
            args += ["--repedit_artifact", self._file(seed, "export", DIRECTION)]
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

    def _stored(self, training: Training, seed: int, weights: Weights) -> Step:
        known = {"env": self.env, "seed": seed, "method": training.name}
        for _, name, _, _ in Formatter().parse(weights.uri):
            require_known("weights.uri", name or "env", [*known, "update"])
        uris = [weights.uri.format(**known, update=update) for update in training.save_points]
        args: list[Arg] = ["register", "--env", self.env, "--method", training.name, "--seed", str(seed)]
        args += ["--updates", *map(str, training.save_points), "--model_path", *map(Place, uris)]
        facts = " ".join(map(self.digest_of, uris))
        return self._step(training.name, training.name, args, seed, facts, training.save_points, here=True)

    def _covers(self, weights: Weights, seed: int) -> bool:
        return (not weights.envs or self.env in weights.envs) and (not weights.seeds or seed in weights.seeds)

    def _probe(self, seed: int) -> Iterator[Step]:
        said = self.study.audits[PROBE]
        model = self._model(said.model, seed, "audits.probe.model")
        of_env: list[Arg] = ["--env", self.env]
        data: list[Arg] = ["--dataset", self._file(seed, "collect", STATES)]
        args: list[Arg] = [*of_env, "--model_path", model, "--out", self._probe_file(seed, STATES)]
        yield self._probe_step(
            "collect",
            self._told(f"{PROBE}.collect", args, said.collect, judges=True),
            seed,
            workers=("--workers", _number(f"{PROBE}.collect", said.collect, "num_envs", 32)),
            work=Work(rolled=_collected(said.collect)),
        )
        fitted = Place(f"{self.out}/seed{seed}/probes/hazard_probe_metrics.json")
        args = [*of_env, *data, "--model_path", model, "--metrics_out", fitted]
        args = [*self._told(f"{PROBE}.fit", args, said.fit), "--out", self._probe_file(seed, FITTED)]
        yield self._probe_step("fit", args, seed)
        probe: list[Arg] = ["--probe_path", self._file(seed, "fit", FITTED)]
        yield self._probe_step("export", [*probe, "--out", self._probe_file(seed, DIRECTION)], seed)
        for other in [said.model, *said.models]:
            uri, edited = self._model(other, seed, "audits.probe.models"), self._is_edited(other)
            metrics = Place(f"{self.out}/seed{seed}/probes/{_word(other)}_probe_eval.json")
            if other != said.model:
                args = [*probe, *data, "--model_path", uri, "--metrics_out", metrics]
                yield self._probe_step(f"eval {other}", [*args, *(["--use_editor_features"] if edited else [])], seed)
            if other == said.model or edited:
                metrics = Place(f"{self.out}/seed{seed}/probes/{_word(other)}_action_control.json")
                args = [*of_env, *data, "--model_path", uri, "--metrics_out", metrics]
                name = f"probe/action-control {other}"
                yield self._step(PROBE, name, ["action-control", *args], seed)

    def _probe_step(self, name: str, args: Sequence[Arg], seed: int, **more: Any) -> Step:
        command = name.partition(" ")[0]
        return self._step(PROBE, f"probe/{name}", [PROBE, command, *args], seed, **more)

    def _select(self, method: str) -> Step:
        said, seeds = self.study.audits[SELECT], self.study.seeds
        training = self._named(method, "audits.select.methods")
        if training.edits:
            raise ValueError(f"audits.select.methods: {method} edits a frozen policy; leave it out.")
        args: list[Arg] = ["select", "--env", self.env, "--method", method, "--seed", *map(str, seeds)]
        args += ["--run", *(RunOf(self._name_of(training, seed)) for seed in seeds)]
        args += ["--out", Place(f"{self.out}/select_{method}-{{digest}}")]
        episodes = _number(SELECT, said.options, "episodes", 50)
        work = Work(rolled=len(seeds) * len(training.save_points) * episodes * EPISODE_STEPS)
        args = self._told(SELECT, args, said.options, judges=True)
        return self._step(SELECT, f"select/{method}", args, None, workers=("--workers", episodes), work=work)

    def _evaluate(self) -> Step:
        said, seeds = self.study.audits[EVALUATE], self.study.seeds
        models = [self._at(t, s, u) for t in self.trainings for s in seeds for u in t.save_points]
        args: list[Arg] = ["evaluate", "--env", self.env, "--models", *models, "--seed", *map(str, seeds)]
        if len(seeds) == 1 and UNSAFE in self._names():
            args += ["--unsafe_model", self._model(UNSAFE, seeds[0], EVALUATE)]
        args = self._told(EVALUATE, [*args, *self._into(EVALUATE)], said.options, judges=True)
        episodes = _number(EVALUATE, said.options, "episodes", 50)
        work = Work(rolled=len(models) * episodes * EPISODE_STEPS)
        return self._step(EVALUATE, EVALUATE, args, None, workers=("--workers", episodes), work=work)

    def _relearn(self, seed: int) -> Iterator[Step]:
        said = self.study.audits[RELEARN]
        updates, horizon = (_number(RELEARN, said.options, *of) for of in (("max_updates", 100), ("horizon", 1024)))
        for model in said.models:
            subject = RANDOM if model == RANDOM else self._model(model, seed, "audits.relearn.models")
            args: list[Arg] = ["relearn", "--env", self.env, "--model_path", subject, "--seed", str(seed)]
            args += [*self._unsafe(seed), *self._into(f"seed{seed}/relearn_{_word(model)}")]
            args = self._told(RELEARN, args, said.options, judges=True)
            work = Work(rolled=2 * updates * EPISODE_STEPS, alone=updates * horizon)
            yield self._step(RELEARN, f"relearn/{model}", args, seed, work=work)

    def _shifts(self, seed: int) -> Iterator[Step]:
        said, probe = self.study.audits[SHIFT], self.study.audits.get(PROBE)
        if probe is None:
            raise ValueError("audits.latent-shift needs the states of the probe: add audits.probe.")
        reference = self._model(probe.model, seed, "audits.probe.model")
        about: list[Arg] = ["--env", self.env, "--dataset", self._file(seed, "collect", STATES)]
        about += ["--ref_model_path", reference]
        asked = [(model, False) for model in said.models] + [(model, True) for model in said.raw_models]
        for model, raw in asked:
            compared = self._model(model, seed, "audits.latent-shift.models")
            args: list[Arg] = [
                "latent-shift",
                *about,
                "--cmp_model_path",
                compared,
                *(["--raw_features"] if raw else []),
            ]
            args = self._told(SHIFT, [*args, "--out", Place(f"{self.out}/seed{seed}")], said.options)
            yield self._step(SHIFT, f"latent-shift/{model}{' raw' if raw else ''}", args, seed)

    def _report(self, after: Sequence[str]) -> Step:
        args: list[Arg] = ["report", "--env", self.env, "--seed", *map(str, self.study.seeds)]
        if EVALUATE in self.study.audits:
            args += ["--eval_id", NameOf(f"{self.env}/{EVALUATE}", _EVAL_ID)]
        said = self.study.audits[REPORT].options
        args = self._told(REPORT, [*args, "--out", Place(f"{self.out}/report")], said)
        episodes, drivers = _number(REPORT, said, "map_episodes", 20), sum(len(t.save_points) for t in self.trainings)
        work = Work(rolled=len(self.study.seeds) * drivers * episodes * EPISODE_STEPS)
        workers = ("--workers", max(1, episodes))
        return self._step(REPORT, REPORT, args, None, after=tuple(after), workers=workers, work=work)

    def _step(
        self,
        stage: str,
        what: str,
        args: Sequence[Arg],
        seed: int | None,
        facts: str = "",
        updates: Any = (),
        **more: Any,
    ) -> Step:
        name = f"{self.env}/{what}" if seed is None else f"{self.env}/seed{seed}/{what}"
        return Step(name, stage, what, self.env, tuple(args), facts, updates=tuple(updates), **more)

    def _model(self, model: str, seed: int, where: str) -> ModelOf:
        """A save point of a method of this study."""
        method, update = model_name(model)
        training = self._named(method, where)
        if update is not None and update not in training.save_points:
            points = ", ".join(map(str, training.save_points))
            raise ValueError(f"{where}: {model} is no save point of {method} in {self.env}: use one of {points}.")
        return self._at(training, seed, update or max(training.save_points))

    def _at(self, training: Training, seed: int, update: int) -> ModelOf:
        return ModelOf(self._name_of(training, seed), update)

    def _named(self, method: str, where: str) -> Training:
        require_known(where, method, self._names())
        return next(t for t in self.trainings if t.name == method)

    def _name_of(self, training: Training, seed: int) -> str:
        return f"{self.env}/seed{seed}/{training.name}"

    def _unsafe(self, seed: int) -> list[Arg]:
        return ["--unsafe_model", self._model(UNSAFE, seed, UNSAFE)] if UNSAFE in self._names() else []

    def _told(self, audit: str, args: Sequence[Arg], said: Mapping[str, Any], *, judges: bool = False) -> list[Arg]:
        """An audit's command with the options of the file, none of which may undo what the study needs it to do."""
        for key in said:
            if f"--{key}" in (*args, *_OF_THE_STUDY):
                raise ValueError(f"audits.{audit}: {key} is set by the study itself: leave it out.")
        return [*args, *(self._concept(audit, said) if judges else []), *options(said)]

    def _concept(self, audit: str, said: Mapping[str, Any]) -> list[Arg]:
        """The option by which an audit judges as the trainings do, unless it is told something else."""
        named = {training.concept for training in self.trainings} - {AUTO}
        if said.get("concept") is not None or not named:
            return []
        if len(named) > 1:
            raise ValueError(
                f"audits.{audit}: the methods in {self.env} forget different things ({', '.join(sorted(named))}): say "
                "which the audit is about, by its option concept."
            )
        return ["--concept", *named]

    def _is_edited(self, model: str) -> bool:
        return any(t.edits for t in self.trainings if t.name == model_name(model)[0])

    def _names(self) -> list[str]:
        return [training.name for training in self.trainings]

    def _probe_file(self, seed: int, name: str) -> Place:
        return Place(f"{self.out}/seed{seed}/probes/{name}")

    def _file(self, seed: int, step: str, name: str) -> FileOf:
        return FileOf(f"{self.env}/seed{seed}/probe/{step}", self._probe_file(seed, name).path)

    def _into(self, folder: str) -> list[Arg]:
        """Where an audit writes; each variant of it has a place of its own."""
        place = f"{folder}-{{digest}}"
        return ["--out", Place(f"{self.out}/{place}"), "--eval_id", Place(place.replace("/", "-"))]


def options(said: Mapping[str, Any]) -> list[Arg]:
    """Options as a command line has them: `record_videos: true` is a bare switch, a list follows its option."""
    args: list[Arg] = []
    for key, value in said.items():
        if value is not False and value is not None:
            values = value if isinstance(value, list) else [value]
            args += [f"--{key}", *([] if value is True else map(_word_of, values))]
    return args


def _word_of(value: Any) -> str:
    """As a command line has it; a class and its arguments as JSON."""
    return json.dumps(value) if isinstance(value, Mapping) else str(value)


def _collected(said: Mapping[str, Any]) -> int:
    """Environment steps of a probe's collection: about one in twenty shows the concept."""
    where = f"{PROBE}.collect"
    return min(_number(where, said, "max_env_steps", 400_000), 20 * _number(where, said, "n_per_class", 10_000))


def _require_reached(training: Training) -> None:
    """Refuse save points beyond the last update, before the expert is trained."""
    if beyond := [point for point in training.save_points if not 1 <= point <= training.updates]:
        raise ValueError(
            f"methods: {training.name}: save point {beyond[0]} is not among its {training.updates} updates: give "
            "save_points, too."
        )


def _number(audit: str, said: Mapping[str, Any], option: str, otherwise: int) -> int:
    value = said.get(option)
    if not isinstance(value, int | None):
        raise ValueError(f"audits.{audit}: {option}: {value!r} is not possible: use a whole number.")
    return otherwise if value is None else value


def _word(model: str) -> str:
    return model.replace("@", "_")
