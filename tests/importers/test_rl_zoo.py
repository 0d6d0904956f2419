"""Agents in the folders that rl-zoo3 makes."""

import pytest

from lightning_unlearn.importers.sb3 import StableBaselines3

find = StableBaselines3.find


ARGS = "!!python/object/apply:collections.OrderedDict\n- - - algo\n    - ppo\n  - - env\n    - Line-v0\n"
CONFIG = "!!python/object/apply:collections.OrderedDict\n- - - n_steps\n    - 256\n  - - normalize\n    - true\n"


@pytest.fixture
def folder(tmp_path):
    """As `rl_zoo3.train` leaves it."""
    inner = tmp_path / "Line-v0_1" / "Line-v0"
    inner.mkdir(parents=True)
    for file in ("Line-v0.zip", "best_model.zip", "0.monitor.csv", "evaluations.npz", "Line-v0/vecnormalize.pkl"):
        (inner.parent / file).touch()
    (inner / "args.yml").write_text(ARGS)
    (inner / "config.yml").write_text(CONFIG)
    return inner.parent


def test_the_final_agent_of_a_folder_and_its_statistics_are_found(folder):
    expected = folder / "Line-v0.zip", folder / "Line-v0" / "vecnormalize.pkl"
    assert find(folder) == find(folder / "Line-v0.zip") == expected
    assert find(folder / "best_model") == (folder / "best_model.zip", expected[1])


@pytest.mark.parametrize("inner", ["args.yml", "config.yml", "vecnormalize.pkl"])
def test_the_best_agent_of_a_folder_without_a_final_one(folder, inner):
    (folder / "Line-v0.zip").unlink()
    for file in (folder / "Line-v0").iterdir():
        if file.name != inner:
            file.unlink()
    statistics = folder / "Line-v0" / "vecnormalize.pkl" if inner == "vecnormalize.pkl" else None
    assert find(folder) == (folder / "best_model.zip", statistics)


def test_an_ending_may_be_left_out(tmp_path):
    (tmp_path / "ppo.v1.zip").touch()
    (tmp_path / "vecnormalize.pkl").touch()
    assert find(tmp_path / "ppo.v1") == (tmp_path / "ppo.v1.zip", None)
    assert find(tmp_path / "ppo.v2") == (tmp_path / "ppo.v2", None)
    assert find(tmp_path) == (tmp_path / "ppo.v1.zip", tmp_path / "vecnormalize.pkl")


WRAPPERS = {
    "env_wrapper": "rl_zoo3.wrappers.TimeFeatureWrapper",
    "frame_stack": "4",
    "vec_env_wrapper": "{mine.Wrapper: {scale: 2.0}}",
}


@pytest.mark.parametrize(("name", "value"), WRAPPERS.items())
def test_an_agent_behind_a_wrapper_is_refused_by_name(folder, name, value):
    (folder / "Line-v0" / "config.yml").write_text(f"{CONFIG}  - - {name}\n    - {value}\n")
    with pytest.raises(ValueError, match=f"config.yml has {name}"):
        find(folder)


@pytest.mark.parametrize("content", ["[1, 2", "text", "- 1", "!!python/object/apply:os.system [touch sprung]"])
def test_another_configuration_is_refused_and_nothing_of_it_is_run(folder, content, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "Line-v0" / "config.yml").write_text(content)
    with pytest.raises(ValueError, match="no configuration of rl-zoo3"):
        find(folder)
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize("agents", [[], ["a.zip", "b.zip"]])
def test_a_folder_with_none_or_several_agents_is_refused(tmp_path, agents):
    for agent in agents:
        (tmp_path / agent).touch()
    with pytest.raises(ValueError, match=f"holds {len(agents)} agents"):
        find(tmp_path)
