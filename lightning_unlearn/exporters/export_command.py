"""The `export` command: one model in the format of another library or program, or as a folder to publish."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning_unlearn.audits.outputs import add_store_option, output_file
from lightning_unlearn.exporters import model_folder
from lightning_unlearn.exporters.agent_zip import save_into
from lightning_unlearn.exporters.onnx_graph import INPUT, save_graph
from lightning_unlearn.exporters.torch_program import save_program
from lightning_unlearn.importers.sb3 import StableBaselines3
from lightning_unlearn.options import CommandParser, choose
from lightning_unlearn.policies.actor_critic import ActorCritic
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking.store import use_existing_store

FOLDER = "folder"


def main(args: Sequence[str]) -> None:
    """Run the `export` command."""
    kind, rest = choose("export", (*FORMATS, FOLDER), args)
    if kind == FOLDER:
        model_folder.main(rest)
        return
    (ending, write), options = FORMATS[kind], _parser(kind).parse_args(rest)
    out = Path(options.out)
    if out.suffix != ending:
        raise ValueError(f"--out {options.out} is not possible: name a file that ends with {ending}.")
    if out.exists():
        raise ValueError(f"--out {options.out} exists already: name another file, or remove it.")
    if options.model.startswith(("models:", "runs:")):
        use_existing_store(options.tracking_uri)
    policy = registry.load_policy(options.model).policy
    print(write(policy, output_file("out", options.out), options))


def write_program(policy: ActorCritic, out: Path, _: Any) -> str:
    """Write the model for `torch.export.load`; return how to use it."""
    save_program(out, policy)
    return f'{out}: {shapes(policy)} by\n  torch.export.load("{out}").module()(observation)'


def write_graph(policy: ActorCritic, out: Path, _: Any) -> str:
    """Write the model for ONNX Runtime; return how to use it, and how well it agrees."""
    difference = save_graph(out, policy)
    run = f'onnxruntime.InferenceSession("{out}").run(None, {{"{INPUT}": observation}})[0]'
    return f"{out}: largest difference of an action {difference:.1e}; {shapes(policy)} by\n  {run}"


def write_agent(policy: ActorCritic, out: Path, options: Any) -> str:
    """Write the model into its agent's zip; return how to use it, and how well it agrees."""
    original = StableBaselines3(Path(options.into), options.normalizer)
    difference = save_into(policy, original, out)
    behind = f', behind VecNormalize.load("{original.statistics}", …)' if original.normaliser else ""
    algorithm = original.library.partition("(")[2].rstrip(")")
    return f'{out}: largest difference of an action {difference:.1e}\n  {algorithm}.load("{out}"){behind}'


def shapes(policy: ActorCritic) -> str:
    """Say what an exported action takes and gives."""
    config, dtype = policy.config, str(policy.observation_dtype).removeprefix("torch.")
    return f"takes (rows, {config.observation_size}) {dtype} and gives (rows, {config.action_size}) float32"


FORMATS: dict[str, tuple[str, Callable[[ActorCritic, Path, Any], str]]] = {
    "sb3": (".zip", write_agent),
    "pt2": (".pt2", write_program),
    "onnx": (".onnx", write_graph),
}
"""Format → ending of its file, and the function that writes it."""


def _parser(kind: str) -> CommandParser:
    parser = CommandParser(prog=f"lightning-unlearn export {kind}", description=__doc__)
    add = parser.add_argument
    add("model", type=str, help="URI, folder or file of the model")
    add("--out", type=str, required=True, help=f"the new file, {FORMATS[kind][0]}")
    if kind == "sb3":
        add("--into", type=str, required=True, help="zip of the agent that the model was repaired from")
        add("--normalizer", type=str | None, default=None, help="file of its observation statistics, or `none`")
    add_store_option(parser)
    return parser
