import numpy as np

from lightning_unlearn import seeds


def test_a_child_is_the_one_that_spawn_gives_whatever_was_spawned_before():
    stream = seeds.SeedStreams.of(7).environments
    before = [seeds.child(stream, index).generate_state(4) for index in (0, 3)]
    spawned = stream.spawn(4)
    after = [seeds.child(stream, index).generate_state(4) for index in (0, 3)]
    np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(before, [spawned[index].generate_state(4) for index in (0, 3)])
