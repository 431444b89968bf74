"""Information gains of distributions small enough to compute them by hand."""

from itertools import product

import numpy as np
import pytest

from hf_loop.evaluation import information_gains, relative_information_gain
from hf_loop.tasks import ComputationGraph
from hf_loop.tasks.addition import addition_row


def test_gains_known_by_hand():
    x, y = np.array(list(product((0, 1), (0, 1)))).T
    both = np.column_stack([x, y])
    # one bit determines itself, tells nothing of the exclusive or, and both determine that
    assert relative_information_gain(x, both[:, :1]) == pytest.approx(1)
    assert relative_information_gain(x ^ y, both[:, :1]) == pytest.approx(0)
    assert relative_information_gain(x ^ y, both) == pytest.approx(1)
    # "and" is 1 in a quarter of the rows: H = 2 - 3/4 log2(3) bits; of x = 1 one bit remains in half of the rows
    total = 2 - 0.75 * np.log2(3)
    assert relative_information_gain(x & y, both[:, :1]) == pytest.approx((total - 0.5) / total)


def test_digits_of_sums():
    # all sums of two digits
    rows = [addition_row(operands, num_digits=1, reverse_digits=True) for operands in product(range(10), repeat=2)]
    graphs = [ComputationGraph.from_json(row.columns["graph"]) for row in rows]
    gains = information_gains(graphs, [row.columns["answer_nodes"] for row in rows], max_inputs=2)
    by_inputs = {(entry.position, entry.inputs): entry for entry in gains}
    # one operand tells nothing of the last digit, both all
    assert by_inputs[0, ("x0.0",)].gain == pytest.approx(0)
    assert by_inputs[0, ("x0.0", "x1.0")].gain == pytest.approx(1)
    # the carry is 1 in 45 of 100 sums, and in d of 10 where one operand is d

    def entropy(share):
        return -sum(p * np.log(p) for p in (share, 1 - share) if p)

    remaining = np.mean([entropy(digit / 10) for digit in range(10)])
    carry = by_inputs[1, ("x1.0",)]
    assert carry.gain == pytest.approx(1 - remaining / entropy(0.45))
    # a hundred rows of ten values and two: some gain by chance, far below the true one
    assert 0 < carry.chance < 0.15 < carry.gain
    assert by_inputs[1, ("x0.0", "x1.0")].chance > carry.chance
    assert [(entry.position, len(entry.inputs)) for entry in gains] == [
        *[(0, 1), (0, 1), (0, 2)],
        *[(1, 1), (1, 1), (1, 2)],
    ]


def test_a_higher_gain_comes_first_and_constant_words_are_left_out():
    graphs = []
    for a, b in product((0, 1), repeat=2):
        graph = ComputationGraph()
        graph.add_input("a", a)
        graph.add_input("b", b)
        graph.add("nothing", "subtract", "b", "b")
        graph.add("copy", "add", "b")
        graphs.append(graph)
    gains = information_gains(graphs, [["nothing", "copy"]] * 4)
    assert [(entry.position, entry.inputs) for entry in gains] == [(1, ("b",)), (1, ("a",))]
    assert [entry.gain for entry in gains] == pytest.approx([1, 0])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="outputs must have at least two values"):
        relative_information_gain(np.ones(3, dtype=int), np.arange(3)[:, None])
    with pytest.raises(ValueError, match=r"got \(3,\) and \(3,\)"):
        relative_information_gain(np.arange(3), np.arange(3))
    rows = [addition_row(operands, num_digits=1, reverse_digits=True) for operands in ([1, 2], [1, 2, 3])]
    graphs = [ComputationGraph.from_json(row.columns["graph"]) for row in rows]
    with pytest.raises(ValueError, match="got others in row 1"):
        information_gains(graphs, [row.columns["answer_nodes"] for row in rows])
    with pytest.raises(ValueError, match="must be at least 1, got 1 and 0"):
        information_gains([], [])
