import numpy as np

from lightning_unlearn import seeding


def test_a_child_is_the_one_that_spawn_gives_whatever_was_spawned_before():
    stream = seeding.SeedStreams.of(7).environments
    before = [seeding.child(stream, index).generate_state(4) for index in (0, 3)]
    spawned = stream.spawn(4)
    after = [seeding.child(stream, index).generate_state(4) for index in (0, 3)]
    np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(before, [spawned[index].generate_state(4) for index in (0, 3)])


def test_runs_of_different_seeds_share_no_stream_and_none_with_evaluation():
    names = list(seeding.SeedStreams.of(0).described())
    runs = [seeding.SeedStreams.of(seed) for seed in range(20)]
    streams = [getattr(run, name) for run in runs for name in names]
    streams += [seeding.child(run.environments, index) for run in runs for index in range(15)]  # of collections
    states = {tuple(stream.generate_state(4)) for stream in streams}
    assert len(states) == len(streams)
    environments = [seed for run in runs for seed in seeding.training_seeds(run.environments, 8)]
    assert len(set(environments)) == len(environments)
    assert min(environments) >= seeding.TRAINING_SEED_FLOOR > max(seeding.evaluation_layouts(1000))
