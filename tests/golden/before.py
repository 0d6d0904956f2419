"""Make `before.zip`: a store, checkpoints and models as this version of the package writes them.

    python tests/golden/before.py FOLDER

Files in MLflow's database name the folder that they were made in, so choose one that can be named in public. What runs
that were interrupted have to end as goes to `before.json`.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import record

LEFT = (
    '{"class_path": "lightning_unlearn.envs.concepts.ObservationRange", "init_args": {"part": "position", "below": 0}}'
)
UNSAFE = f"models:/unsafe.{record.TOY}@update-3"
UPDATES = ("--updates=6", "--save_points=[3, 6]", "--data.horizon=512", "--model.source", UNSAFE)
INTERRUPTED = {
    "concept_tuned": (*UPDATES, "--data.concept", LEFT),
    "off_policy_concept": (*UPDATES, "--keep_best=false", "--model.steps=200", "--model.critic_sizes=[16, 16]"),
}
"""Method → options of its run."""
ENDED_AFTER = {"concept_tuned": 2, "off_policy_concept": 4}
"""Method → update after which its run is ended."""
SUITE = ("--episodes", 3, "--kl_states", 50, "--workers", 1, "--unsafe_model", UNSAFE)


def finished():
    """Runs and files that are complete."""
    record.succeed(*record.chain("unsafe", "--updates=3", "--save_points=[3]", "--model.hidden_sizes=[16, 8]"))
    record.succeed(*record.chain("repedit", "--updates=2", "--save_points=[2]", "--model.source", UNSAFE,
                                 "--data.concept", LEFT))  # fmt: skip
    env = ("--env", record.TOY)
    record.succeed("probe", "collect", *env, "--model_path", UNSAFE, "--out", "files/states.npz", "--n_per_class", 300,
                   "--max_env_steps", 20000, "--num_envs", 8, "--workers", 1)  # fmt: skip
    record.succeed("probe", "fit", *env, "--dataset", "files/states.npz", "--model_path", UNSAFE, "--split_tries", 16,
                   "--out", "files/probe.npz", "--metrics_out", "files/fit.json")  # fmt: skip
    record.succeed("probe", "export", "--probe_path", "files/probe.npz", "--include_tau", "--out", "files/direction.pt")
    record.succeed("export-artifacts", *env, "--out", "published")


def interrupt(method):
    """Start a training in a process of its own, and end it after one of its updates; return its run's id."""
    command = [sys.executable, "-m", "lightning_unlearn", *record.chain(method, *INTERRUPTED[method])]
    process = subprocess.Popen(command)
    known = {path.parent.name for path in Path("mlruns/checkpoints").glob("*/*")}
    while process.poll() is None:
        for path in Path("mlruns/checkpoints").glob(f"*/update-{ENDED_AFTER[method]}.*.ckpt"):
            if path.parent.name not in known:
                process.send_signal(signal.SIGTERM)
                process.wait()
                return path.parent.name
        time.sleep(0.002)
    raise RuntimeError(f"{method} ended by itself")


def models(ids):
    """What the finished models and files have to give in any later version."""
    names = [UNSAFE, f"models:/repedit.{record.TOY}@update-2"]
    record.succeed("evaluate", "--env", record.TOY, "--models", *names, *SUITE, "--out", "suite")
    record.succeed(
        "evaluate", "--env", record.TOY, "--models", names[1], *SUITE, "--concept", "recorded", "--out", "own"
    )
    record.succeed("probe", "eval", "--probe_path", "files/probe.npz", "--dataset", "files/states.npz", "--model_path",
                   names[1], "--use_editor_features", "--metrics_out", "eval.json")  # fmt: skip
    return {
        "suite": record.tree("suite"),
        "own": record.tree("own"),
        "probe": record.content("eval.json"),
        "verify": [record.run("verify", name) for name in names],
        "policies": {run_id: record.models(run_id) for run_id in ids},
    }


def pack(path, ids):
    """Zip the store, with the checkpoints that runs go on from, and without pictures."""
    newest = {max(Path("mlruns/checkpoints", run_id).glob("*.ckpt"), key=lambda file: file.name) for run_id in ids}
    left_out = (".png", ".svg", ".gif", ".log", ".pkl", ".lock")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for file in sorted(file for file in Path().rglob("*") if file.is_file()):
            twice = file.parts[:2] == ("published", "probes")
            if file in newest or not (twice or file.suffix in (".ckpt", *left_out)):
                archive.write(file)


def write(folder):
    """Make both files."""
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "store").mkdir(parents=True)
    with record.contextlib.chdir(folder / "store"):
        finished()
        ids = {method: interrupt(method) for method in INTERRUPTED}
        done = [one.info.run_id for one in record.runs(record.TOY) if one.info.status == "FINISHED"]
        pack(record.FOLDER / "before.zip", ids.values())
        outputs = {
            "interrupted": ids,
            "finished": models([run_id for run_id in done if record.models(run_id)]),
            "ended": {},
        }
        for method, options in INTERRUPTED.items():
            before = {one.info.run_id for one in record.runs(record.TOY)}
            record.succeed(*record.chain(method, *options))
            (whole,) = (one.info.run_id for one in record.runs(record.TOY) if one.info.run_id not in before)
            outputs["ended"][method] = record.training(whole)
    record.store_outputs("before", json.loads(json.dumps(outputs)))
    shutil.rmtree(folder)


if __name__ == "__main__":
    write(sys.argv[1])
