"""`probe export`, also known as `export-hazard-direction`: a probe's direction in latent space, for the gated edit."""

from collections.abc import Sequence
from dataclasses import replace

from lightning_unlearn.audits.probes import load_probe
from lightning_unlearn.audits.records import output_file
from lightning_unlearn.options import CommandParser
from lightning_unlearn.policies.latent_editor import save_direction
from lightning_unlearn.tracking import runs
from lightning_unlearn.tracking.store import TRACKING_URI_HELP, open_store, require_active_experiment


def main(args: Sequence[str], command: str = "export-hazard-direction") -> None:
    """Run the command."""
    options = _parser(command).parse_args(args)
    stored = load_probe(options.probe_path)
    direction = stored.probe.direction()
    out = output_file("out", options.out)
    open_store(options.tracking_uri)
    require_active_experiment(stored.metadata["env"])
    save_direction(out, direction if options.include_tau else replace(direction, tau=None))
    params = {"probe_path": options.probe_path, "include_tau": options.include_tau}
    run = runs.record_audit(stored.metadata["env"], "probe-export", params, {"tau": direction.tau}, {out: "probes"})  # type: ignore[dict-item]
    kept = "stored with it" if options.include_tau else "left out; --include_tau stores it"
    print(f"Unit direction of {stored.probe.size} latent components, tau {direction.tau:.4f} ({kept}).")
    print(f"Direction: {out.resolve()}\nMLflow run: {run}")


def _parser(command: str) -> CommandParser:
    parser = CommandParser(prog=f"lightning-unlearn {command}", description=__doc__)
    parser.add_argument("--probe_path", type=str, required=True, help="a fitted probe (.npz)")
    parser.add_argument("--out", type=str, required=True, help="the direction's file (.pt)")
    parser.add_argument("--include_tau", action="store_true", help="store the probe's threshold too")
    parser.add_argument("--tracking_uri", type=str | None, default=None, help=TRACKING_URI_HELP)
    return parser
