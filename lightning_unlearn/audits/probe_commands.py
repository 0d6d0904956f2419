"""The `probe` command: collect labelled states, fit a probe on a model's latents, export it, evaluate it on another."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lightning_unlearn.audits import export_direction, probe_fit
from lightning_unlearn.audits.data_runs import record_on_data, tell
from lightning_unlearn.audits.features import require_env
from lightning_unlearn.audits.probe_data import ProbeData, save_data
from lightning_unlearn.audits.records import output_file
from lightning_unlearn.envs.concept_config import add_concept_option, parse_with_concept, resolve_concept
from lightning_unlearn.options import CommandParser, choose
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking.store import TRACKING_URI_HELP, open_store, require_active_experiment


def main(args: Sequence[str]) -> None:
    """Run one subcommand."""
    subcommands = {"collect": _collect, "fit": probe_fit.fit, "export": _export, "eval": probe_fit.evaluate}
    name, options = choose("probe", list(subcommands), args)
    subcommands[name](options)


def _collect(args: Sequence[str]) -> None:
    from lightning_unlearn.audits.probe_collect import collect  # the simulator waits until it is needed

    options, wanted = read_collect_options(args)
    out = output_file("out", options.out)
    open_store(options.tracking_uri)
    require_active_experiment(wanted.env)
    stored = registry.load_policy(wanted.model_path)
    require_env("model_path", wanted.model_path, stored.card, wanted.env)
    data = collect(
        stored.policy, replace(wanted, concept=resolve_concept(wanted.concept, [stored.card.concept])), "collecting"
    )
    files = out, save_data(out, data)
    run = record_on_data("probe-collect", options, {}, data, out, dict.fromkeys(files, "probes"))
    _tell_collected(data, wanted.n_per_class)
    tell(run, files)


def read_collect_options(args: Sequence[str]) -> tuple[Any, Any]:
    """The options of `probe collect`, and the `Collection` that they ask for.

    Raises:
        ValueError: One is unknown or impossible.
    """
    from lightning_unlearn.audits.probe_collect import Collection

    options, concept = parse_with_concept(_collect_parser(), args)
    asked = {name: value for name, value in vars(options).items() if name not in ("out", "tracking_uri")}
    return options, Collection(**asked | {"concept": concept})


def _export(args: Sequence[str]) -> None:
    export_direction.main(args, "probe export")


def _tell_collected(data: ProbeData, wanted: int) -> None:
    episodes = data.metadata["episodes"]
    for name, count in data.counts.items():
        short = "" if count == wanted else f", fewer than the {wanted} asked for: raise --max_env_steps"
        print(f"{count} {name} states from {episodes[name]} episodes{short}")
    print(f"{data.metadata['env_steps']} environment steps; hazard distance: {data.metadata['hazard_distance']}")


def _collect_parser() -> CommandParser:
    parser = CommandParser(prog="lightning-unlearn probe collect", description="Roll a model and keep labelled states.")
    parser.add_argument("--env", type=str, required=True, help="the task")
    parser.add_argument("--model_path", type=str, required=True, help="the model that acts, deterministically")
    parser.add_argument("--out", type=str, required=True, help="the dataset's file (.npz)")
    parser.add_argument("--n_per_class", type=int, default=10_000, help="states of each class")
    parser.add_argument("--max_env_steps", type=int, default=400_000, help="environment steps, at most")
    parser.add_argument("--max_per_episode", type=int | None, default=None, help="states of a class from one episode")
    parser.add_argument("--num_envs", type=int, default=32, help="environments stepped together")
    parser.add_argument(
        "--workers", type=int, default=2, help="processes that step the environments; results do not depend on it"
    )
    add_concept_option(parser, ", or recorded, what the models record")
    parser.add_argument("--seed", type=int, default=42, help="seed of the environments")
    parser.add_argument("--tracking_uri", type=str | None, default=None, help=TRACKING_URI_HELP)
    return parser
