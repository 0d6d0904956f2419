from pathlib import Path

import mlflow
import pytest
import torch
from tensordict import TensorDict

from lightning_unlearn import fit, keys, seeding
from lightning_unlearn.collectors import trajectories
from lightning_unlearn.collectors.data import RolloutData
from lightning_unlearn.collectors.trajectories import Trajectories
from lightning_unlearn.methods.trajectory_decremental import TrajectoryDecremental
from lightning_unlearn.policies.files import ModelCard, save_policy
from lightning_unlearn.tracking import registry

CONFIGS = ("base", "env/point_goal1", "method/trajectory_decremental", "smoke")
CHAIN = [part for name in CONFIGS for part in ("-c", f"configs/{name}.yaml")]
EXPERT = "zoo:unsafe.ToyLine-v0"


def prepared(**options):
    method = TrajectoryDecremental("trajectory_decremental", EXPERT, **options)
    method.build(RolloutData("ToyLine-v0", num_envs=2, horizon=8))
    return method


def chain(*more):
    cli = fit.FitCLI([*CHAIN, *more])
    cli.build()
    return cli


def collected(monkeypatch):
    """Every collection from here on, as (layout seeds, trajectories)."""
    seen, original = [], trajectories.collect

    def collect(make, policy, layouts, *more, **options):
        seen.append((layouts, original(make, policy, layouts, *more, **options)))
        return seen[-1][1]

    monkeypatch.setattr(trajectories, "collect", collect)
    return seen


def test_returns_are_bootstrapped_where_an_episode_was_cut_and_only_there():
    method = prepared(gamma=0.5)
    final = torch.tensor([[0.1, 1.0], [0.2, 1.0], [0.3, 1.0]])
    flags = torch.tensor([[False], [True], [False]]), torch.tensor([[False], [False], [True]])
    table = {keys.FINAL_OBSERVATION: final, keys.TERMINATED: flags[0], keys.FAILED: flags[1]}
    steps = {
        keys.REWARD: torch.tensor([[1.0], [2.0], [4.0], [8.0]]),
        keys.DONE: torch.tensor([[False], [True], [True], [True]]),
        keys.EPISODE: torch.tensor([[0], [0], [1], [2]]),
    }
    returns = method.returns(Trajectories(TensorDict(steps, [4]), TensorDict(table, [3])))
    value = method.expert(final[:1]).reward_value.item()
    # cut: 2 + v/2, before it 1 + (2 + v/2)/2; terminated: 4; the simulator failed: 8
    expected = [2.0 + value / 4, 2.0 + value / 2, 4.0, 8.0]
    assert returns.shape == (4, 1)
    assert returns[:, 0].tolist() == pytest.approx(expected)


def test_what_is_learnt_from_is_what_was_retained(monkeypatch):
    seen = collected(monkeypatch)
    method = prepared()
    ((_, made),) = seen
    assert len(made.episodes) == 200
    assert 0 < made.kept < 200
    assert len(method._demonstrations) == 32 * made.kept
    assert (method._demonstrations[keys.OBSERVATION][:, 0] <= 0.5).all()
    assert method._counts["decremental/episodes_retained"] == made.kept
    # the first return of the first retained episode, summed plainly
    reward = made.transitions[keys.REWARD][:32, 0].double()
    final = made.episodes[keys.FINAL_OBSERVATION][made.transitions[keys.EPISODE][0, 0]]
    value = method.expert(final).reward_value.item()
    plain = sum(0.99**t * reward[t].item() for t in range(32)) + 0.99**32 * value
    assert method._demonstrations[keys.DISCOUNTED_RETURN][0, 0].item() == pytest.approx(plain, rel=1e-5)


def test_a_pass_sees_every_retained_transition_once_and_cloning_raises_their_likelihood():
    method = prepared(decremental_epochs_per_update=3, batch_size=64)
    method.lr = 1e-3
    method.configure_optimizers()
    untrained = method.policy.cost_value.weight.clone()
    seen, descend = [], method._descend

    def count(optimizer, loss, *rest):
        descend(optimizer, loss, *rest)
        seen.append(loss)

    method._descend = count
    batch = method._demonstrations
    losses = method.update(batch)
    assert len(losses) == len(seen) == 3 * -(-len(batch) // 64)
    assert losses[-1].cloning < losses[0].cloning
    assert torch.equal(method.policy.cost_value.weight, untrained)


def test_recollection_uses_new_layouts_and_never_one_of_evaluation(store, monkeypatch):
    seen = collected(monkeypatch)
    cli = chain("--recollect_every", "2", "--dataset_episodes", "60", "--updates", "5", "--save_points", "5")
    assert len(seen) == 1  # before the run exists
    cli.trainer.fit(cli.model, cli.datamodule)
    layouts = [seed for made, _ in seen for seed in made]
    assert [len(made) for made, _ in seen] == [60, 60, 60]
    assert len(set(layouts)) == 180
    assert min(layouts) >= seeding.TRAINING_SEED_FLOOR
    assert not set(layouts) & set(seeding.training_seeds(seeding.SeedStreams.of(0).environments, 4))
    first, second = (made.episodes[keys.EPISODE_COST] for _, made in seen[:2])
    assert not torch.equal(first, second)
    saved = registry.load_policy(cli.save_points.saved[5])
    assert saved.card.env_steps == 300 * 4 * 64 + 3 * 60 * 32


def test_the_seed_decides():
    first, again, other = (prepared(seed=seed, dataset_episodes=60)._demonstrations for seed in (0, 0, 1))
    assert (first == again).all()
    assert not torch.equal(first[keys.OBSERVATION][0], other[keys.OBSERVATION][0])


def test_collections_are_found_again_by_a_later_run(store, tmp_path, monkeypatch):
    seen = collected(monkeypatch)
    given = ["--model.dataset_dir", str(tmp_path / "sets"), "--recollect_every", "2"]
    runs = []
    for times in (2, 2):  # both collections are made by the first run
        run = fit.train([*CHAIN, *given])
        assert len(seen) == times
        runs.append(registry.load_policy(run.saved[4]))
    weights = [stored.policy.state_dict() for stored in runs]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert runs[0].card.env_steps == runs[1].card.env_steps
    with pytest.raises(ValueError, match=r"collection_0.safetensors was made with seed=0, but this run has seed=1"):
        fit.train([*CHAIN, *given, "--seed", "1"])


def test_no_retained_episode_is_refused_before_a_run_exists(store):
    expert = registry.load_policy(EXPERT).policy
    expert.action_mean.bias.data.fill_(9.0)  # always to the right, into the hazard
    save_policy(Path("right"), expert, ModelCard())
    with pytest.raises(ValueError, match=r"70 episodes were collected with right .*Raise model.dataset_episodes"):
        fit.train([*CHAIN, "--model.source", "right", "--dataset_episodes", "70"])
    assert mlflow.search_experiments(filter_string="name = 'ToyLine-v0'") == []


def test_names_of_the_published_script_are_understood(store, capsys):
    published = (
        "--env ToyLine-v0 --seed 3 --updates 15 --unsafe_updates 30 --lr 3e-3 --ent_coef 0.02 --ppo_epochs 5 "
        "--batch_size 128 --dataset_episodes 20 --decremental_epochs_per_update 2 --decremental_bc_coef 1.5 "
        "--decremental_value_coef 0.6 --decremental_ent_coef 0.02 --recollect_every 4 --save_points 5 10 15"
    )
    parsed = fit.FitCLI([*CHAIN, *published.split(" ")]).config
    idle = "--ent_coef, --ppo_epochs: without effect on the method TrajectoryDecremental, left out."
    assert idle in capsys.readouterr().out
    options = parsed.model.init_args
    assert (options.dataset_episodes, options.decremental_epochs_per_update, options.recollect_every) == (20, 2, 4)
    weights = options.decremental_bc_coef, options.decremental_value_coef, options.decremental_ent_coef
    assert weights == (1.5, 0.6, 0.02)
    assert (options.lr, options.batch_size, options.seed, parsed.save_points) == (3e-3, 128, 3, [5, 10, 15])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset_episodes": 0}, "model.dataset_episodes=0"),
        ({"recollect_every": 0}, "model.recollect_every=0"),
        ({"decremental_epochs_per_update": 0}, "model.decremental_epochs_per_update=0"),
        ({"decremental_bc_coef": -1.0}, "model.decremental_bc_coef=-1.0"),
        ({"gamma": 1.5}, "model.gamma=1.5"),
        ({"source": None}, "model.source=null"),
    ],
)
def test_impossible_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        TrajectoryDecremental("trajectory_decremental", **options)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"model.dataset_dir=.*file/sets cannot be written"):
        prepared(dataset_dir=str(tmp_path / "file" / "sets"))
