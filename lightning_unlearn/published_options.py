"""Option names of the published scripts, and the options that they stand for. No other module names them."""

FIT_OPTIONS = {
    "env": "data.env",
    "seed": "seed_everything",
    "n_envs": "data.num_envs",
    "horizon": "data.horizon",
    "updates": "trainer.max_epochs",
    "unsafe_updates": "model.unsafe_updates",
    "lr": "model.lr",
    "ent_coef": "model.ent_coef",
    "ppo_epochs": "model.ppo_epochs",
    "dataset_episodes": "model.dataset_episodes",
    "decremental_epochs_per_update": "model.decremental_epochs_per_update",
    "decremental_bc_coef": "model.decremental_bc_coef",
    "decremental_value_coef": "model.decremental_value_coef",
    "decremental_ent_coef": "model.decremental_ent_coef",
    "recollect_every": "model.recollect_every",
    "batch_size": "model.batch_size",
    "kp": "pid.kp",
    "ki": "pid.ki",
    "kd": "pid.kd",
    "lambda_init": "pid.lambda_init",
    "lambda_max": "pid.lambda_max",
    "integral_max": "pid.integral_max",
    "target_cost": "pid.target_cost",
    "cost_limit": "pid.cost_limit",
    "repedit_artifact": "model.repedit_artifact",
    "repedit_alpha": "model.repedit_alpha",
    "repedit_beta": "model.repedit_beta",
    "repedit_tau": "model.repedit_tau",
    "repedit_use_artifact_tau": "model.repedit_use_artifact_tau",
    "repedit_tau_quantile": "model.repedit_tau_quantile",
}
"""Published name of a training option → option of `fit`. `cost_limit` is ours, beside the published `target_cost`."""
SWITCHES = ("model.repedit_use_artifact_tau",)
"""Options of `fit` that may be given without a value, which means `true`."""
WITHOUT_EFFECT = {
    "RepEdit": ("lr", "ent_coef", "ppo_epochs", "batch_size"),
    "TrajectoryDecremental": ("ent_coef", "ppo_epochs"),
}
"""Class of a method → options of its published script that change nothing. They are accepted with a remark."""
MODEL_OPTIONS = {
    "--model_path": "--model",
    "--cmp_model_path": "--model",
    "--ref_model_path": "--reference",
    "--unsafe_model": "--expert",
    "--oracle_ref_path": "--oracle",
}
"""Published spelling of an option that names a model → its name in all commands; both are taken.

What is recorded keeps the published names. An option that takes several models is `--models`.
"""
