import pytest

from lightning_unlearn.envs.workers import Workers


def test_an_exception_in_any_thread_reaches_the_caller():
    workers, done = Workers(3), []

    def function(row):
        if row == 5:
            raise KeyError("five")
        done.append(row)

    with pytest.raises(KeyError, match="five"):
        workers.each(function, 20)
    workers.each(done.append, 3)
    workers.close()
    assert set(range(5)) <= set(done)
