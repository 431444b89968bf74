"""Tasks take numpy's and torch's whole numbers."""

import numpy as np
import pytest
import torch

from hf_loop import tasks
from hf_loop.tasks.counts import plain_counts


def test_arguments_of_a_function():
    @plain_counts
    def rows(count: int, *, lengths: list[int] | None = None, share: float = 0.5, flag: bool = False):
        return count, lengths, share, flag

    assert rows(np.int64(2), lengths=[np.int64(3), 4]) == (2, [3, 4], 0.5, False)
    assert [type(value) for value in (rows(torch.tensor(2))[0], rows(2, flag=True)[3])] == [int, bool]
    with pytest.raises(TypeError, match="missing a required argument: 'count'"):
        rows()


@pytest.mark.parametrize("kind", [np.int64, torch.tensor])
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("coin_flips", {"num_train": 8, "num_test": 4, "num_moves": 4}),
        ("shell_game", {"num_train": 8, "num_test": 4, "num_swaps": 3, "num_cups": 3}),
        ("delayed_shell_game", {"num_train": 8, "num_test": 4, "num_swaps": 3}),
        ("sudoku", {"num_train": 2, "num_test": 1, "size": 4}),
        ("maze", {"num_train": 2, "num_test": 1, "size": 7}),
        ("passkey", {"num_train": 8, "num_test": 4}),
        ("rule_110", {"num_train": 8, "num_test": 4}),
        ("successor", {"num_train": 8, "num_test": 4}),
        ("associative_recall", {"num_train": 8, "num_test": 4}),
    ],
)
def test_a_task_of_such_numbers_is_the_same(name, sizes, kind):
    make = getattr(tasks, name)
    rows, _ = make(**{key: kind(value) for key, value in sizes.items()}, seed=kind(3))
    expected, _ = make(**sizes, seed=3)
    assert rows["train"][:] == expected["train"][:]
    for bad in (True, 8.0):
        with pytest.raises(ValueError, match="num_train"):
            make(**sizes | {"num_train": bad})
