"""Golden outputs: run commands, and collect what they print, write and register in a form that compares.

Only commands, options and files are used, so the same script runs on any version of the package:

    python tests/golden/record.py PART...       write tests/golden/PART.json anew
    python tests/golden/record.py --show PART   print the outputs of one part instead

Wall-clock times, run ids, dates and folders are left out or replaced. On the processor and with the libraries of the
recording every bit must be the same; elsewhere numbers may differ within a tolerance, because processors round
differently.
"""

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import platform
import re
import sys
import tempfile
from importlib import metadata
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

FOLDER = Path(__file__).parent
TOY, GOAL = "ToyLine-v0", "SafetyPointGoal1-v0"
EXPERT = f"zoo:unsafe.{TOY}"
STORE = "mlruns/mlflow.db"
METHODS = (
    "unsafe",
    "oracle",
    "concept",
    "concept_tuned",
    "continued",
    "localized_concept",
    "off_policy_concept",
    "trajectory_decremental",
    "repedit",
)
SMALL = {
    "off_policy_concept": (
        "--model.warm_up=0.4",
        "--model.critic_steps=20",
        "--model.steps=10",
        "--model.batch_size=32",
        "--pid.limit_share=0.85",
        "--pid.kp=0.25",
    ),
    "repedit": ("--model.calibration_steps=1000",),
}
"""Options that make updates of a method short, and do not leave to its config what is tuned there."""
GOAL_METHODS = ("unsafe", "off_policy_concept", "localized_concept")
LIBRARIES = ("torch", "torchrl", "tensordict", "lightning", "numpy", "scipy", "scikit-learn", "mujoco", "mlflow")


# ---- running commands -------------------------------------------------------------------------------------------


def run(*args):
    """Run a command in this process; return its exit code and what it printed to both streams."""
    import mlflow
    from threadpoolctl import threadpool_limits

    from lightning_unlearn.cli import main

    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        os.environ.pop(name, None)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), threadpool_limits(1):
        try:
            main([*map(str, args)])
        except SystemExit as stop:
            code = stop.code or 0
    return {"exit": code, "out": lines(out.getvalue()), "err": lines(err.getvalue())}


def succeed(*args):
    """Run a command that must succeed; return the lines it printed."""
    result = run(*args)
    if result["exit"] != 0:
        raise RuntimeError(f"{' '.join(map(str, args))}: {result}")
    return result["out"]


VOLATILE = (
    (r"(among the shipped ones: ).*", r"\1<names>"),
    (r"/[^\s:]*/configs/", "<configs>/"),
    (r"Given value: Namespace\(.*", "Given value: <options>"),
    (r"\b[0-9a-f]{64}\b", "<sha256>"),
    (r"\bm?-?[0-9a-f]{32}\b", "<id>"),
    (r"\b(?=[0-9]*[a-f])[0-9a-f]{16}\b", "<digest>"),
    (r"\d{4}-\d\d-\d\d[T _-]?\d\d[:-]?\d\d([:-]?\d\d)?(\.\d+)?Z?", "<time>"),
    (r"\b\d{8}[-_T]\d{6}\b", "<time>"),
    (r"\b(\d+ h )?\d+ min( \d+ s)?\b|\b\d+(\.\d+)? s\b", "<duration>"),
    (r"\b\d+(\.\d+)? (frames|steps)/s\b", "<speed>"),
    (r"\b\d+(\.\d+)? [kM]?B\b", "<size>"),
)
PROGRESS_BAR = re.compile(r"\d+%\|")


def lines(text):
    """Lines of a text without what changes from run to run."""
    text = text.replace(os.getcwd(), "<folder>").replace(os.path.realpath(os.getcwd()), "<folder>")
    for pattern, name in VOLATILE:
        text = re.sub(pattern, name, text)
    kept = [line.rstrip() for line in re.split("[\\r\\n]", text) if line.strip()]
    return [line for line in kept if not PROGRESS_BAR.search(line)]


def chain(method, *options, env="toy"):
    """Options of `fit`: a method's chain of configs on the toy, or on the PointGoal1 task in short rollouts."""
    configs = ["base.yaml", "env/point_goal1.yaml", f"method/{method}.yaml", *(["smoke.yaml"] if env == "toy" else [])]
    small = () if env == "toy" else ("--data.num_envs=2", "--data.horizon=96")
    source = {"unsafe": (), "oracle": ()}.get(
        method, ("--model.source", EXPERT if env == "toy" else f"zoo:unsafe.{GOAL}")
    )
    fixed = ("--data.workers=1", "--torch_threads=1", *source, *SMALL.get(method, ()))
    return ["fit", *(part for name in configs for part in ("-c", f"configs/{name}")), *small, *fixed, *options]


# ---- reading what they left -------------------------------------------------------------------------------------


def client():
    import mlflow

    return mlflow.MlflowClient(tracking_uri=f"sqlite:///{Path(STORE).resolve()}")


def runs(env):
    """Runs of an environment's experiment, the oldest first."""
    store = client()
    experiment = store.get_experiment_by_name(env)
    found = store.search_runs([experiment.experiment_id]) if experiment else []
    return sorted(found, key=lambda one: one.info.start_time)


def training(run_id):
    """Metrics by update, registered models and file names of a training's run."""
    store = client()
    found = store.get_run(run_id)
    names = sorted(name for name in found.data.metrics if not name.startswith("time/"))
    histories = {name: sorted((p.step, p.value) for p in store.get_metric_history(run_id, name)) for name in names}
    return {
        "status": found.info.status,
        "metrics": {name: [list(point) for point in points] for name, points in histories.items()},
        "models": models(run_id),
        "files": sorted(files_of(found)),
        "verdict": {
            path.name: content(path)
            for path in sorted(folder_of(found).glob("eval/verdict/*.*"))
            if path.suffix != ".png"
        },
    }


def folder_of(found):
    return Path(found.info.artifact_uri.removeprefix("file://"))


def files_of(found):
    folder = folder_of(found)
    return [lines(path.relative_to(folder).as_posix())[0] for path in folder.rglob("*") if path.is_file()]


def models(run_id):
    """Registered versions of a run: the name, aliases, and its policy."""
    store = client()
    found = {}
    for version in store.search_model_versions(f"run_id='{run_id}'"):
        registered = store.get_registered_model(version.name)
        aliases = sorted(alias for alias, at in registered.aliases.items() if int(at) == int(version.version))
        place = store.get_logged_model(version.source.rpartition("/")[2]).artifact_location
        found[f"{version.name} update {version.tags['update']}"] = {
            "aliases": aliases,
            **policy(Path(place.removeprefix("file://")) / "data" / "policy"),
        }
    return dict(sorted(found.items()))


def policy(folder):
    """Digest and a few statistics of each tensor of a stored policy, and its description."""
    from safetensors.numpy import load_file

    description = json.loads((folder / "policy.json").read_text(encoding="utf-8"))
    return {**arrays(load_file(folder / "policy.safetensors")), "description": still(description)}


def arrays(named):
    """Digest of arrays by name, and what of them can be compared on another processor."""
    import numpy as np

    digest = hashlib.sha256()
    summary = {}
    for name, array in sorted(named.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
        wide = array.astype(np.float64) if array.dtype.kind in "fiub" else np.zeros(1)
        summary[name] = [list(array.shape), float(np.sqrt((wide**2).mean())), float(wide.mean())]
    return {"sha256": digest.hexdigest(), "arrays": summary}


CLOCK = re.compile(
    r"(^|[_ .])(time|times|sec|seconds|date|created|started|digest|sha256|run|run_id|host|user|versions)($|[_ .])"
)
"""Names of values that no two runs share."""


def still(value):
    """Nested values without what changes from run to run."""
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if not CLOCK.search(str(key))}
        return {key: sorted(item) if key == "columns" else still(item) for key, item in kept.items()}
    if isinstance(value, list):
        return [still(item) for item in value]
    return " ".join(lines(value)) if isinstance(value, str) else value


def content(path):
    """A file in a form that compares: tables, JSON, arrays and texts; of other kinds only that they are there."""
    path = Path(path)
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        kept = [i for i, name in enumerate(rows[0]) if not CLOCK.search(name)]
        return [rows[0], *(still([row[i] for i in kept]) for row in rows[1:])]
    if path.suffix == ".json":
        return still(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".npz":
        import numpy as np

        with np.load(path, allow_pickle=False) as archive:
            named = {name: archive[name] for name in archive.files}
        texts = {name: array for name, array in named.items() if array.dtype.kind == "U"}
        numbers = {name: array for name, array in named.items() if name not in texts}
        return {**arrays(numbers), "texts": {name: still(_parsed(str(text))) for name, text in texts.items()}}
    if path.suffix == ".pt":
        import torch

        held = torch.load(path, weights_only=True)
        nested = {name: part if isinstance(part, dict) else {name: part} for name, part in held.items()}
        return {name: arrays({k: torch.as_tensor(v).numpy() for k, v in part.items()}) for name, part in nested.items()}
    return "there"


def _parsed(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


def tree(folder, skip=(".png", ".gif", ".svg")):
    """All files under a folder."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): content(path) if path.suffix not in skip else "there" for path in files
    }


# ---- the parts --------------------------------------------------------------------------------------------------


def fit(method, *options, env="toy"):
    """Train, and return what the run left."""
    before = {one.info.run_id for one in runs(TOY if env == "toy" else GOAL)} if Path(STORE).exists() else set()
    succeed(*chain(method, *options, env=env))
    (new,) = (one.info.run_id for one in runs(TOY if env == "toy" else GOAL) if one.info.run_id not in before)
    return training(new)


def toy(methods=METHODS):
    """Three updates of each method on the toy."""
    return {method: fit(method, "--updates=3", "--save_points=[3]") for method in methods}


def goal():
    """Two short updates of the main methods on PointGoal1, and the policy suite on what they made."""
    found = {method: fit(method, "--updates=2", "--save_points=[2]", env="goal") for method in GOAL_METHODS}
    names = [f"models:/{method}.{GOAL}@update-2" for method in GOAL_METHODS]
    expert = ("--unsafe_model", f"zoo:unsafe.{GOAL}")
    succeed("evaluate", "--env", GOAL, "--models", *names, *expert, "--episodes", 2, "--max_steps", 200,
            "--kl_states", 200, "--workers", 1, "--out", "suite")  # fmt: skip
    succeed("probe", "collect", "--env", GOAL, "--model_path", f"zoo:unsafe.{GOAL}", "--out", "states.npz",
            "--n_per_class", 150, "--max_env_steps", 20000, "--num_envs", 4, "--workers", 1)  # fmt: skip
    succeed("latent-shift", "--env", GOAL, "--dataset", "states.npz", "--ref_model_path", f"zoo:unsafe.{GOAL}",
            "--cmp_model_path", names[1], "--out", "shift")  # fmt: skip
    return {**found, "suite": tree("suite"), "states": content("states.npz"), "shift": list(tree("shift").values())}


def audits():
    """Every audit on the toy, on its expert and on two repairs of it."""
    for method in ("concept", "repedit"):
        succeed(*chain(method, "--updates=3", "--save_points=[2, 3]"))
    repaired, edited = (f"models:/{method}.{TOY}@update-3" for method in ("concept", "repedit"))
    env = ("--env", TOY)
    found = {}
    suite = ("--models", EXPERT, repaired, edited, "--unsafe_model", EXPERT)
    succeed("evaluate", *env, *suite, "--episodes", 4, "--kl_states", 100, "--workers", 1, "--out", "suite")
    succeed("evaluate", *env, *suite, "--episodes", 3, "--kl_states", 50, "--stochastic", "--workers", 1,
            "--concept", '{"class_path": "ObservationRange", "init_args": {"part": "position", "below": 0}}',
            "--out", "suite_concept")  # fmt: skip
    succeed("relearn", *env, "--unsafe_model", EXPERT, "--compute_threshold_only", "--out", "threshold")
    succeed("relearn", *env, "--model_path", repaired, edited, "random", "--unsafe_model", EXPERT, "--horizon", 64,
            "--max_updates", 3, "--eval_every", 1, "--eval_episodes", 2, "--fractions", 0.5, 0.9,
            "--out", "relearn")  # fmt: skip
    succeed("select", *env, "--method", "concept", "--episodes", 4, "--workers", 1, "--out", "select")
    succeed("probe", "collect", *env, "--model_path", EXPERT, "--out", "probes/states.npz", "--n_per_class", 200,
            "--max_env_steps", 20000, "--num_envs", 8, "--workers", 1)  # fmt: skip
    about = ("--dataset", "probes/states.npz")
    succeed("probe", "fit", *env, *about, "--model_path", EXPERT, "--split_tries", 16, "--out", "probes/probe.npz",
            "--metrics_out", "probes/fit.json")  # fmt: skip
    succeed("probe", "export", "--probe_path", "probes/probe.npz", "--include_tau", "--out", "probes/direction.pt")
    for name, model, more in (("concept", repaired, ()), ("repedit", edited, ("--use_editor_features",))):
        succeed("probe", "eval", "--probe_path", "probes/probe.npz", *about, "--model_path", model, *more,
                "--metrics_out", f"probes/eval_{name}.json")  # fmt: skip
        succeed("latent-shift", *env, *about, "--ref_model_path", EXPERT, "--cmp_model_path", model,
                "--out", f"shift_{name}")  # fmt: skip
        succeed("action-control", *env, *about, "--model_path", model, "--split_tries", 16,
                "--metrics_out", f"probes/control_{name}.json")  # fmt: skip
    for folder in (
        "suite",
        "suite_concept",
        "threshold",
        "relearn",
        "select",
        "probes",
        "shift_concept",
        "shift_repedit",
    ):
        found[folder] = {_still_name(name): value for name, value in tree(folder).items()}
    found["verify"] = run("verify", repaired)
    return found


def _still_name(name):
    return lines(name)[0]


def published():
    """The published tree of artifacts, and the report, of a small store."""
    for method in ("unsafe", "oracle", "concept"):
        succeed(*chain(method, "--updates=3", "--save_points=[3]"))
    succeed("evaluate", "--env", TOY, "--models", "concept", "unsafe", "oracle", "--episodes", 3, "--kl_states", 50,
            "--workers", 1, "--out", "suite")  # fmt: skip
    succeed("export-artifacts", "--env", TOY, "--out", "tree")
    succeed("report", "--env", TOY, "--workers", 1, "--out", "report")
    exported = {name: value for name, value in tree("tree").items() if not name.startswith("logs/")}
    return {
        "export-artifacts": {_still_name(name): value for name, value in exported.items()},
        "report": sorted(
            _still_name(p.relative_to("report").as_posix()) for p in Path("report").rglob("*") if p.is_file()
        ),
        "report.md": numbers_of(Path("report/report.md").read_text(encoding="utf-8")),
        "models list": run("models", "list"),
    }


def numbers_of(report):
    """Headings and tables of a report in Markdown, without the configs at its end."""
    shown = lines(report.partition("## Configs")[0])
    return [line for line in shown if line.startswith(("#", "|"))]


def study():
    """Plans of two studies."""
    plans = {
        name: run("study", "-c", f"configs/study/{name}.yaml", "--dry-run", "--jobs", 2) for name in ("smoke", "full")
    }
    return {name: {**plan, "out": [" ".join(line.split()) for line in plan["out"]]} for name, plan in plans.items()}


BAD_FIT = {
    "unknown environment": ("--env", "SafetyPointGaol1-v0"),
    "unknown method file": ("-c", "method/concpt.yaml"),
    "unknown model": ("--model.source", "models:/nope/1"),
    "model of another size": ("--model.source", f"zoo:unsafe.{GOAL}"),
    "concept never reported": ("--data.concept", "cost_vases"),
    "no environments": ("--n_envs", "0"),
    "more workers than environments": ("--n_envs", "2", "--data.workers", "3"),
    "an infinite step": ("--lr", ".inf"),
    "a value of the wrong type": ("--lr", "fast"),
    "a negative target": ("--target_cost", "-1"),
    "no updates": ("--updates", "0"),
    "two devices": ("--trainer.devices", "2"),
    "a second MLflow run": ("--trainer.logger", "MLFlowLogger"),
    "a name that names no model": ("--model.method", "concept-v2"),
    "save points beyond the updates": ("--save_points", "2", "40"),
    "no threads": ("--torch_threads", "0"),
    "negative seed": ("--seed", "-1"),
    "misspelt option": ("--data.horizn", "3"),
    "resume of nothing": ("--resume", "0" * 32),
    "a store that cannot be written": ("--tracking_uri", "sqlite:////proc/x/mlflow.db"),
    "a speed without a plane": ("--data.concept", '{"class_path": "SpeedAbove", "init_args": {"limit": 1}}'),
}
BAD_METHOD = {
    "a pid that nothing listens to": ("repedit", "--pid.kp", "1"),
    "keep_best without a limit": ("unsafe", "--keep_best", "true"),
    "cost_limit of a method without": ("repedit", "--cost_limit", "25"),
    "a share above 1": ("concept_tuned", "--average.share", "1.5"),
    "no episodes": ("trajectory_decremental", "--dataset_episodes", "0"),
    "a quantile of 2": ("repedit", "--repedit_tau_quantile", "2"),
    "no such direction": ("repedit", "--repedit_artifact", "nowhere.pt"),
    "a negative beta": ("localized_concept", "--model.beta", "-1"),
    "action_repeat 0": ("off_policy_concept", "--model.action_repeat", "0"),
    "ppo_epochs of off_policy": ("off_policy_concept", "--ppo_epochs", "3"),
}
BAD_COMMAND = {
    "no such command": "fitt",
    "an unknown option": "evaluate --env {toy} --episods 3",
    "evaluate: no episodes": "evaluate --env {toy} --models {expert} --episodes 0",
    "evaluate: no such model": "evaluate --env {toy} --models models:/nope/1",
    "evaluate: nothing registered": "evaluate --env {toy}",
    "evaluate: an id with a slash": "evaluate --env {toy} --models {expert} --eval_id a/b",
    "relearn: no model": "relearn --env {toy}",
    "relearn: a fraction of 2": "relearn --env {toy} --model_path {expert} --fractions 2",
    "relearn: no horizon": "relearn --env {toy} --model_path {expert} --horizon 0",
    "select: a test layout": "select --env {toy} --method concept --first_layout 10000",
    "select: a negative limit": "select --env {toy} --method concept --cost_limit -1",
    "select: nothing registered": "select --env {toy} --method concept",
    "probe: no such subcommand": "probe colect",
    "probe collect: no states": "probe collect --env {toy} --model_path {expert} --out p.npz --n_per_class 0",
    "probe fit: no dataset": "probe fit --env {toy} --dataset no.npz --model_path {expert} --out p.npz --metrics_out m",
    "probe eval: a pickle": "probe eval --probe_path pickled.npz --dataset x.npz --model_path {expert} --metrics_out m",
    "latent-shift: no dataset": (
        "latent-shift --env {toy} --dataset no.npz --ref_model_path {expert} --cmp_model_path {expert}"
    ),
    "action-control: a wrong share": (
        "action-control --env {toy} --dataset no.npz --model_path {expert} --val_frac 1.5"
    ),
    "export: no such probe": "export-hazard-direction --probe_path no.npz --out d.pt",
    "reproduce: no such run": "reproduce 00000000000000000000000000000000",
    "verify: no such model": "verify models:/nope.{toy}/1",
    "models list: none": "models list",
    "models compare: no such model": "models compare {expert} models:/nope/1",
    "models delete: a shipped one": "models delete {expert}",
    "export-artifacts: nothing": "export-artifacts --env {toy} --out tree",
    "register: another count": "register --env {toy} --method unsafe --updates 1 2 --model_path {expert}",
    "study: no such method": "study --name x --envs point_goal1 --seeds 0 --methods [concpt] --dry-run",
    "study: no such file": "study -c no.yaml",
    "import: no such agent": "import sb3 --env {toy} no.zip",
    "import: no archive": "import sb3 --env {toy} pickled.npz",
    "import: an unknown library": "import rllib x",
    "quickstart: no updates": "quickstart --updates 0",
    "bench: an unknown option": "bench --quik",
}


def refusals():
    """Bad input of every command: exit codes and messages."""
    Path("pickled.npz").write_bytes(b"\x80\x04K\x01.")
    cases = {f"fit: {name}": chain("oracle", *options) for name, options in BAD_FIT.items()}
    cases |= {f"fit: {name}": chain(method, *options) for name, (method, *options) in BAD_METHOD.items()}
    cases |= {name: line.format(toy=TOY, expert=EXPERT).split() for name, line in BAD_COMMAND.items()}
    results = {name: run(*args) for name, args in cases.items()}
    return {name: {"exit": result["exit"], "err": message(result["err"])} for name, result in results.items()}


def message(printed):
    """The lines of an error before the list of all commands."""
    return printed[: next((i for i, line in enumerate(printed) if line.startswith("usage:")), None)]


PARTS = {part.__name__: part for part in (toy, goal, audits, published, study, refusals)}


# ---- recording and comparing ------------------------------------------------------------------------------------

PROCESSOR = ("model name", "cpu family", "model", "stepping")
"""Lines of Linux's description of a processor."""


def fingerprint():
    """The processor and the releases that decide how numbers are rounded."""
    import torch

    about = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    facts = [re.search(rf"^{name}\s*: (.*)$", about, re.MULTILINE) for name in PROCESSOR]
    return {
        "processor": ", ".join(fact[1] for fact in facts if fact) or platform.processor(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in LIBRARIES},
    }


def make(part, folder=None, *arguments):
    """The outputs of a part, made in an empty folder."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(folder or scratch):
        return json.loads(json.dumps(PARTS[part](*arguments)))


RELATIVE, ABSOLUTE = 0.05, 0.02
"""Tolerances where processor or releases are others than the recording's."""
NUMBER = re.compile(r"-?\d+\.?\d*(?:e[-+]?\d+)?")


def differences(expected, found, exact, at=""):
    """What differs between two nested values, one line each."""
    if expected == found:
        return []
    if isinstance(expected, dict) and isinstance(found, dict):
        names = [*expected, *(name for name in found if name not in expected)]
        return [
            line
            for name in names
            for line in differences(expected.get(name, "missing"), found.get(name, "missing"), exact, f"{at}/{name}")
        ]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return [line for i, (one, other) in pairs for line in differences(one, other, exact, f"{at}/{i}")]
    if not exact and (at.endswith("/sha256") or _near(expected, found)):
        return []
    return [f"{at}: {expected!r}, now {found!r}"]


def _near(expected, found):
    if isinstance(expected, str) and isinstance(found, str):
        one, other = NUMBER.findall(expected), NUMBER.findall(found)
        same_words = NUMBER.sub("#", expected) == NUMBER.sub("#", found)
        return same_words and all(_near(float(a), float(b)) for a, b in zip(one, other, strict=True))
    numbers = (int, float)
    if not isinstance(expected, numbers) or not isinstance(found, numbers):
        return False
    return math.isclose(expected, found, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def recorded(part):
    """The outputs of a part that were recorded, and whether they must be met to the bit here."""
    stored = json.loads((FOLDER / f"{part}.json").read_text(encoding="utf-8"))
    return stored["outputs"], stored["fingerprint"] == fingerprint()


def store_outputs(part, outputs):
    """Record the outputs of a part."""
    stored = {"fingerprint": fingerprint(), "outputs": outputs}
    text = json.dumps(stored, indent=1, ensure_ascii=False)
    text = re.sub(
        r"\[\s+((?:[^\[\]{}\"]|\"[^\"\n]*\")*?)\s+\]", lambda m: "[" + re.sub(r"\n\s+", " ", m[1]) + "]", text
    )
    assert json.loads(text) == stored
    (FOLDER / f"{part}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    shown, parts = "--show" in sys.argv, [name for name in sys.argv[1:] if name in PARTS]
    for name in parts or PARTS:
        if shown:
            print(json.dumps(make(name), indent=1, ensure_ascii=False))
        else:
            store_outputs(name, make(name))
