"""The `envs` command: `envs list` shows tasks, their costs, how they are stepped, and which ones are refused."""

from collections.abc import Iterator, Sequence

from lightning_unlearn.envs.compat import make_task, navigation_tasks, refused_ids, velocity_ids
from lightning_unlearn.envs.concepts import COST_SUM, READY_CONCEPTS, InfoKey, InPlane
from lightning_unlearn.envs.rules import cost_names
from lightning_unlearn.envs.toy import ToySimulator
from lightning_unlearn.options import CommandParser, choose

_AS_A_BATCH, _ONE_BY_ONE = "all environments are stepped as one batch", "environments are stepped one by one"


def main(args: Sequence[str]) -> None:
    """Run `envs list`, the only subcommand."""
    _, args = choose("envs", ["list"], args)
    parser = CommandParser(
        prog="lightning-unlearn envs list",
        description="List tasks with the steps of an episode, their costs and how they are stepped; and the tasks that "
        "are refused, with the reason.",
    )
    parser.add_argument(
        "--env",
        type=str | None,
        default=None,
        help="only this task, with its observation, actions and concepts; also one of your own, module:Id-v0",
    )
    env = parser.parse_args(args).env
    print("\n".join(every_task() if env is None else one_task(env)))


def every_task() -> Iterator[str]:
    """Lines about all tasks, by family: steps and costs, then the tasks that are refused."""
    yield f"Navigation ({_AS_A_BATCH}); AGENT is Point, Car, Racecar, Doggo or Ant"
    for task, ids in navigation_tasks().items():
        built = make_task(ids[0])
        yield _row(f"SafetyAGENT{task}-v0", built.num_steps, cost_names(built))
    yield f"\nVelocity ({_ONE_BY_ONE})"
    for env_id in velocity_ids():
        yield _row(env_id, 1000, [COST_SUM])
    yield f"\nFor tests ({_AS_A_BATCH})"
    yield _row(ToySimulator.env_id, ToySimulator.max_episode_steps, ToySimulator.cost_keys)
    yield f"\nYour own ({_ONE_BY_ONE})"
    yield '  any environment of Gymnasium, Id-v0 or module:Id-v0, whose steps report info["cost"]'
    yield "\nRefused"
    for reason, ids in refused_ids().items():
        yield f"  {ids[0]}{f' and {len(ids) - 1} others' if len(ids) > 1 else ''}: {reason}"
    yield (
        "\n--data.concept is auto, one of a task's costs, or a class:\n"
        f"  {_classes(in_plane=False)} in every task, {_classes(in_plane=True)} in navigation tasks.\n"
        "lightning-unlearn envs list --env ID shows one task."
    )


def _row(env_id: str, steps: int, costs: Sequence[str]) -> str:
    return f"  {env_id:<32} {steps:>5} steps   {', '.join(costs)}"


def _classes(*, in_plane: bool) -> str:
    classes = [cls for cls in READY_CONCEPTS if cls is not InfoKey and issubclass(cls, InPlane) == in_plane]
    return ", ".join(cls.__name__ for cls in classes)


def one_task(env_id: str) -> Iterator[str]:
    """Lines about one task: observation, action, costs, concepts.

    Raises:
        ValueError: The task is unknown or refused.
    """
    from lightning_unlearn.envs.batched import make_env  # torch waits until a task is built

    env = make_env(env_id, 1)
    sim = env.simulator
    parts = [f"{name} [{part.start}, {part.stop}]" for name, part in sim.observation_layout.items()]
    bounds = [f"[{low:g}, {high:g}]" for low, high in zip(sim.action_low, sim.action_high, strict=True)]
    classes = _classes(in_plane=False) + (f", {_classes(in_plane=True)}" if sim.in_plane else "")
    yield f"{env_id}: {sim.max_episode_steps} steps an episode; {_ONE_BY_ONE if sim.late_costs else _AS_A_BATCH}"
    yield f"observation  {sim.observation_size} numbers: {', '.join(parts)}"
    yield f"action       {len(bounds)} numbers: {', '.join(bounds)}"
    yield f"costs        {', '.join(sim.cost_keys)}{', and others that a step reports later' * sim.late_costs}"
    yield f"concepts     auto ({env.concept}), the costs, {classes}"
    env.close()
