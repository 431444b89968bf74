"""The constructed model is the machine: loop r of it is step r, whatever the function, the order of its edges and the
layers around it, and a rule of halting stops at the step after which nothing changes."""

import pytest
import torch

from .constructed import NUM_NODES, chase, make_constructed, make_constructed_tokenizer, make_row, node_token


# a chain a > b > c > d > d, and a cycle of two
CHAIN = [1, 2, 3, 3, 5, 4]
LAYERS = {
    "one layer": {},
    "two layers": {"num_core_layers": 2},
    "prelude and coda": {"num_prelude_layers": 1, "num_coda_layers": 2},
}


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("seed", range(3))
def test_loop_r_is_step_r(layers, seed):
    generator = torch.Generator().manual_seed(seed)
    successors = torch.randint(NUM_NODES, (NUM_NODES,), generator=generator).tolist()
    queries = list(range(NUM_NODES))
    model = make_constructed(**LAYERS[layers], num_loops=8)
    with torch.no_grad():
        output = model(make_row(successors, queries, seed), output_loop_logits=True)
    for step, logits in enumerate(output.loop_logits, start=1):
        probabilities = logits[0, -NUM_NODES:].softmax(-1)
        for query in queries:
            answer = node_token(chase(successors, query, step)[-1])
            assert probabilities[query, answer] > 1 - 1e-5


def test_edges_and_bos_never_change():
    model = make_constructed(num_loops=5)
    row = make_row(CHAIN, [0, 4])
    with torch.no_grad():
        states = model.model(row, output_loop_states=True).loop_states
    for state in states:
        # some processors leave 1e-44 of an attention weight that others round to zero
        torch.testing.assert_close(state[0, :-2], model.get_input_embeddings()(row)[0, :-2], rtol=0, atol=1e-30)


@pytest.mark.parametrize("rule", ["stable_argmax", "state_change"])
def test_halting_stops_after_the_step_that_changes_nothing(rule):
    # d is where chains end: a reaches it in 3 steps, c in 1, d in 0
    model = make_constructed(num_loops=9)
    with torch.no_grad():
        exit_loops = model(make_row(CHAIN, [0, 2, 3]), exit_criterion=rule).exit_loops[0, -3:]
    # step n + 1 is the first that changes nothing. Equal answers can be seen of two loops only, the first of them
    # after one step
    expected = [4, 2, 1] if rule == "state_change" else [4, 2, 2]
    assert exit_loops.tolist() == expected


def test_a_cycle_never_halts():
    model = make_constructed(num_loops=9)
    with torch.no_grad():
        exit_loops = model(make_row(CHAIN, [4]), exit_criterion="state_change").exit_loops[0, -1]
    assert exit_loops == 9


def test_the_tokenizer_writes_the_row():
    tokenizer = make_constructed_tokenizer()
    row = make_row(CHAIN, [0])
    assert tokenizer.decode(row[0, -1:]) == "a"
    text = " ".join(tokenizer.convert_ids_to_tokens(row[0, 1:]))
    assert torch.equal(tokenizer(text, return_tensors="pt").input_ids, row)
