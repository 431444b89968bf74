"""Probes on states of which is known what can be read of them."""

import json

import pytest
import torch

from hf_loop.analysis import NodeProbes, loop_states, node_table, probe_nodes
from hf_loop.analysis.probe import logistic_probe, ridge_probe
from hf_loop.tasks.computation_graph import ComputationGraph

from .constructed import NUM_NODES, chase, make_constructed, make_row


ROWS, LOOPS, SIZE, VALUES = 300, 4, 24, 3


def draws(seed=0, rows=ROWS, values=VALUES):
    return torch.randint(0, values, (rows,), generator=torch.Generator().manual_seed(seed))


def noise(*shape, seed=7):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def staircase():
    """Node i is in the state from loop i on, in a direction for each of its values; the rest is noise."""
    values = {f"node {index}": draws(index) for index in (1, 2, 3)}
    states = noise(ROWS, LOOPS, SIZE)
    for index, found in enumerate(values.values(), 1):
        directions = noise(VALUES, SIZE, seed=100 + index)
        states[:, index - 1 :] += 3 * directions[found][:, None]
    return states, {name: found.tolist() for name, found in values.items()}


def test_a_node_is_readable_from_the_loop_that_writes_it():
    states, values = staircase()
    depths = {"node 1": 1, "node 2": 2, "node 3": 3}
    # given in any order, nodes come by depth
    probes = probe_nodes(states, dict(reversed(values.items())), list(range(ROWS)), depths=depths)
    assert probes.nodes == ["node 1", "node 2", "node 3"]
    assert [probes.readable_loop(node) for node in probes.nodes] == [1, 2, 3]
    assert (probes.num_train, probes.num_test) == (ROWS // 2, ROWS // 2)
    for index, node in enumerate(probes.nodes):
        before, after = probes.accuracy_of(node)[:index], probes.accuracy_of(node)[index:]
        assert all(found < 0.5 for found in before) and all(found > 0.9 for found in after)


def test_random_states_give_chance():
    values = {"node": draws().tolist()}
    probes = probe_nodes(noise(ROWS, LOOPS, SIZE), values, values["node"])
    assert probes.readable_loop("node") is None
    assert probes.accuracy_of("node") == pytest.approx([1 / VALUES] * LOOPS, abs=0.12)
    assert probes.chance[0] == pytest.approx(1 / VALUES, abs=0.08)


@pytest.mark.parametrize("shape", [(ROWS, LOOPS, SIZE), (ROWS, LOOPS, 2, SIZE)])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_is_read_of_a_state_that_overflowed(shape, value):
    states = noise(*shape)
    states[5, 2:] = value
    with pytest.raises(ValueError, match="states of node 'a' must be finite numbers, and are not from loop 3 on"):
        probe_nodes(states, {"a": draws().tolist()}, list(range(ROWS)))


def test_chance_is_the_most_frequent_value_and_a_constant_needs_no_reading():
    mostly = [int(index % 10 == 0) for index in range(ROWS)]
    probes = probe_nodes(noise(ROWS, 1, SIZE), {"mostly": mostly, "always": [5] * ROWS}, mostly)
    assert probes.chance == [pytest.approx(0.9, abs=0.04), 1.0]
    assert probes.readable_loop("mostly") is None
    with pytest.raises(ValueError, match="'always' has one value only"):
        probes.readable_loop("always")


def test_a_node_that_becomes_unreadable_again_is_readable_from_its_last_rise_on():
    probes = NodeProbes(["a"], [0], [0, 1, 2, 3], [0.5], [[0.9, 0.5, 0.8, 0.76]], [[0.5] * 4], 10, 10)
    assert probes.readable_loop("a") == 2
    assert probes.readable_loop("a", share=0.6) is None
    assert probes.readable_loop("a", share=0.6, stays=False) == 0
    assert probes.selectivity("a") == pytest.approx([0.4, 0.0, 0.3, 0.26])
    with pytest.raises(ValueError, match="share must be above 0 and at most 1, got 0"):
        probes.readable_loop("a", share=0)
    with pytest.raises(ValueError, match="'b' was not probed; there are a"):
        probes.readable_loop("b")


def test_the_control_tells_a_probe_that_computes_from_one_that_reads():
    first, second = draws(1), draws(2)
    result = (first + second) % VALUES
    types = list(zip(first.tolist(), second.tolist(), strict=True))
    pair = torch.nn.functional.one_hot(VALUES * first + second, VALUES**2).float()
    written = torch.nn.functional.one_hot(result, VALUES).float()
    # every pair of inputs has a direction of its own in the first state: any function of them can be read
    states = torch.stack([torch.cat([pair, 0 * written], 1), torch.cat([0 * pair, written], 1)], dim=1)
    probes = probe_nodes(states, {"sum": result.tolist()}, {"sum": types})
    assert probes.accuracy_of("sum") == [1, 1]
    computing, reading = probes.selectivity("sum")
    assert computing == 0
    assert reading > 0.2


def test_the_best_of_several_positions_is_read():
    states, values = staircase()
    elsewhere = noise(ROWS, LOOPS, 3, SIZE, seed=9)
    elsewhere[:, :, 1] = states
    probes = probe_nodes(elsewhere, {"node 2": values["node 2"]}, list(range(ROWS)))
    assert probes.readable_loop("node 2") == 2
    assert probes.positions[0][1:] == [1, 1, 1]


def test_each_node_may_have_states_of_its_own():
    states, values = staircase()
    by_node = {"node 1": states[:, :2], "node 2": noise(ROWS, 2, SIZE)}
    probes = probe_nodes(by_node, {name: values[name] for name in by_node}, list(range(ROWS)), first_loop=0)
    assert probes.loops == [0, 1]
    assert (probes.readable_loop("node 1"), probes.readable_loop("node 2")) == (0, None)
    assert NodeProbes.from_dict(json.loads(json.dumps(probes.to_dict()))) == probes


@pytest.mark.parametrize("fit", [ridge_probe, logistic_probe])
def test_a_probe_learns_classes_that_a_plane_separates(fit):
    features = noise(200, 5)
    labels = (features[:, 0] - 2 * features[:, 3] > 0).long()
    weight, bias = fit(features, labels, 2)
    assert ((features @ weight + bias).argmax(-1) == labels).float().mean() > 0.96


def test_a_logistic_probe_reads_values_along_a_line_of_which_least_squares_miss_the_middle():
    place = torch.linspace(-1.7, 1.7, 300)
    labels = torch.arange(300) // 60
    weight, bias = logistic_probe(place[:, None], labels, 5)
    assert ((place[:, None] @ weight + bias).argmax(-1) == labels).float().mean() > 0.9
    weight, bias = ridge_probe(place[:, None], labels, 5)
    assert ((place[:, None] @ weight + bias).argmax(-1) == labels).float().mean() < 0.7


def test_the_table_of_a_data_set_of_graphs():
    graphs = []
    for a, b in ((1, 2), (3, 4), (1, 5)):
        graph = ComputationGraph()
        graph.add_input("a", a)
        graph.add_input("b", b)
        graph.add("sum", "add", "a", "b")
        graph.add("tens", "carry", "sum")
        graphs.append(graph)
    graphs[1].add("more", "add", "a", "sum")
    table = node_table(graphs)
    # what is not in all graphs, and what is the same in all, is left out
    assert table.values == {"a": [1, 3, 1], "b": [2, 4, 5], "sum": [3, 7, 6]}
    assert table.types == {"a": [1, 3, 1], "b": [2, 4, 5], "sum": [("add", 1, 2), ("add", 3, 4), ("add", 1, 5)]}
    assert table.depths == {"a": 0, "b": 0, "sum": 1}
    with pytest.raises(ValueError, match="must share nodes of more than one value"):
        node_table(graphs[:1])


def test_sizes_that_do_not_fit_are_named():
    states = noise(6, 2, 4)
    with pytest.raises(ValueError, match="values is empty"):
        probe_nodes(states, {}, [])
    with pytest.raises(ValueError, match="in each of 6 rows, got 5 values, 6 types"):
        probe_nodes(states, {"a": [0] * 5}, [0] * 6)
    with pytest.raises(ValueError, match=r"must be of shape \[6, 2, D\] or \[6, 2, P, D\], got \[6, 3, 4\]"):
        probe_nodes({"a": states, "b": noise(6, 3, 4)}, {"a": [0] * 6, "b": [0] * 6}, [0] * 6)
    with pytest.raises(ValueError, match="2 rows to fit to and 1 to measure, got 6 and 0"):
        probe_nodes(states, {"a": [0] * 6}, [0] * 6, train_share=1.0)


def test_in_a_machine_of_one_step_a_loop_the_rth_value_is_readable_after_loop_r():
    """The pointer after r steps, of a model whose weights are set by hand to follow it one step a loop."""
    num_loops = 4
    generator = torch.Generator().manual_seed(0)
    rows, values, types = [], {f"step {step}": [] for step in range(num_loops + 1)}, {}
    for seed in range(400):
        # permutations, since a random function falls into a short cycle soon
        successors = torch.randperm(NUM_NODES, generator=generator).tolist()
        start = int(torch.randint(0, NUM_NODES, (1,), generator=generator))
        rows.append(make_row(successors, [start], seed)[0])
        for step, pointer in enumerate(chase(successors, start, num_loops)):
            values[f"step {step}"].append(pointer)
    steps = list(values)
    types = {name: values[steps[max(0, step - 1)]] for step, name in enumerate(steps)}
    depths = {name: step for step, name in enumerate(steps)}
    states = loop_states(make_constructed(), rows, -1, num_loops=num_loops, include_start=True)
    probes = probe_nodes(states, values, types, depths=depths, first_loop=0)
    for step, name in enumerate(steps):
        accuracy = probes.accuracy_of(name)
        # only then: the machine overwrites the pointer at every step
        assert accuracy[step] == 1
        assert max(accuracy[:step] + accuracy[step + 1 :], default=0) < 0.75
        assert probes.readable_loop(name, share=0.9, stays=False) == step
        assert probes.readable_loop(name, share=0.9) == (num_loops if step == num_loops else None)
