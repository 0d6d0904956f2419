"""The `verify` command: check a model's files against the digests that were recorded when it was stored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from lightning_unlearn.options import CommandParser
from lightning_unlearn.policies.files import DESCRIPTION_FILE, WEIGHTS_FILE, load_policy, read_description
from lightning_unlearn.safe_files import read_bytes, read_json
from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking.model_files import (
    LOADER,
    POLICY,
    fetched_model,
    file_digests,
    recorded_digests,
)
from lightning_unlearn.tracking.store import TRACKING_URI_HELP, open_store

PROVENANCE = "provenance.json"
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Verification:
    """The result of comparing a model's files with their digests."""

    record: str
    """Place where the digests were recorded."""
    verdicts: dict[str, str]
    """File → `equal`, `CHANGED`, `MISSING` or `UNKNOWN` (it has no digest)."""
    faults: list[str]
    """Anything else that is wrong with the model."""

    @property
    def is_sound(self) -> bool:
        """True if every file is equal and nothing else is wrong."""
        return not self.faults and all(verdict == "equal" for verdict in self.verdicts.values())


def main(args: Sequence[str]) -> None:
    """Check a model; ends with exit code 1 if a file is not the one that was recorded."""
    parser = CommandParser(prog="lightning-unlearn verify", description=__doc__)
    parser.add_argument("model", type=str, help="URI (models:, runs:, zoo:) or folder")
    parser.add_argument("--tracking_uri", type=str | None, default=None, help=TRACKING_URI_HELP)
    options = parser.parse_args(args)
    if options.model.startswith(("models:", "runs:")):
        open_store(options.tracking_uri)
    found = verify(options.model)
    print(f"{options.model}: digests {found.record}")
    print("\n".join(f"  {verdict:<8} {file}" for file, verdict in found.verdicts.items()))
    print("\n".join([*found.faults, f"{'Verified' if found.is_sound else 'NOT verified'}: {options.model}"]))
    if not found.is_sound:
        raise SystemExit(1)


def verify(uri: str) -> Verification:
    """Compare a model's files with their recorded digests.

    Raises:
        ValueError: There is no such model, or no digest was recorded.
    """
    if registry.is_shipped(uri):
        folder = registry.zoo_folder(uri)
        recorded = read_json(folder / PROVENANCE, _MAX_BYTES).get("sha256", {})
        found = {name: digest for name, digest in file_digests(folder).items() if name != PROVENANCE}
        place = f"recorded in the package's {PROVENANCE}"
        return Verification(place, compare(recorded, found), _unreadable(folder))
    if uri.startswith(("models:", "runs:")):
        return _of_version(uri)
    path = Path(uri)
    folder = path if path.is_dir() else path.parent
    if path.suffix == ".pt" or not (folder / DESCRIPTION_FILE).is_file():
        raise ValueError(f"model {path} has no recorded digests: only a folder with {DESCRIPTION_FILE} can have them.")
    weights = read_description(folder / DESCRIPTION_FILE).weights_sha256
    if weights is None:
        raise ValueError(f"model {path} has no recorded digests: it was stored by an older version.")
    found = {name: digest for name, digest in file_digests(folder).items() if name == WEIGHTS_FILE}
    place = f"recorded in {DESCRIPTION_FILE} beside it (who changes both files is not found out)"
    return Verification(place, compare({WEIGHTS_FILE: weights}, found), _unreadable(folder))


def _of_version(uri: str) -> Verification:
    version = registry.registered_version(uri)
    name = f"models:/{version.name}/{version.version}"
    recorded = recorded_digests(version)
    if not recorded:
        raise ValueError(f"model {uri} has no recorded digests: it was registered by an older version, or elsewhere.")
    with fetched_model(name) as folder:
        verdicts = compare(recorded, file_digests(folder))
        faults = [*_foreign_loader(folder / "MLmodel"), *_unreadable(folder / POLICY)]
    return Verification(f"of {name}, recorded in its tags when it was registered", verdicts, faults)


def compare(recorded: Mapping[str, str], found: Mapping[str, str]) -> dict[str, str]:
    """Return file → verdict, of all files that exist or should exist."""
    verdicts = {}
    for name in sorted({*recorded, *found}):
        if name not in found:
            verdicts[name] = "MISSING"
        elif name not in recorded:
            verdicts[name] = "UNKNOWN"
        else:
            verdicts[name] = "equal" if recorded[name] == found[name] else "CHANGED"
    return verdicts


def _unreadable(folder: Path) -> list[str]:
    try:
        load_policy(folder)
    except (ValueError, FileNotFoundError) as error:
        return [f"It is no policy that can be read: {error}"]
    return []


def _foreign_loader(model_file: Path) -> list[str]:
    """MLflow imports the loader that this file names: only this package's is accepted, with no code beside it."""
    try:
        flavors = yaml.safe_load(read_bytes(model_file, _MAX_BYTES))["flavors"]
        flavor = flavors["python_function"]
        ours = list(flavors) == ["python_function"] and flavor["loader_module"] == LOADER and not flavor.get("code")
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, RecursionError, yaml.YAMLError):
        ours = False
    return [] if ours else [f"MLmodel names other code than {LOADER}, which mlflow.pyfunc.load_model would run."]
