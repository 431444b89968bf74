"""Successors on a ring, followed again edge by edge."""

import numpy as np
import pytest

from hf_loop.tasks import successor, successor_accuracy


def follow(words, edge_tokens):
    """The answers to the questions behind the edges, and their hops; and how many nodes there are."""
    edges = [word for word in words[:edge_tokens] if word != "."]
    # what fills up comes first, and an edge is never cut in two
    assert words[edge_tokens - len(edges) : edge_tokens] == edges
    following = dict(zip(edges[::2], edges[1::2], strict=True))
    assert len(following) == len(edges) // 2 and set(following) == set(following.values())
    start = node = edges[0]
    for count in range(1, len(following) + 1):  # one ring, not several
        node = following[node]
        assert (node == start) == (count == len(following))
    answers, hops = [], []
    questions = words[edge_tokens:]
    for hop, first in zip(questions[::3], questions[1::3], strict=True):
        node = first
        for _ in range(int(hop)):
            node = following[node]
        answers.append(node)
        hops.append(int(hop))
    assert questions[2::3] == answers
    return answers, hops, len(following)


def test_answers_agree_with_the_edges():
    splits, tokenizer = successor(60, 30, 5, min_nodes=3, max_nodes=7, num_edge_blocks=3, block_size=6, seed=1)
    sizes, asked, order = set(), set(), set()
    for row in [*splits["train"], *splits["test"]]:
        words = tokenizer.convert_ids_to_tokens(row["input_ids"])
        answers, hops, size = follow(words, 18)
        assert row["hops"] == hops
        assert tokenizer.convert_ids_to_tokens([label for label in row["labels"] if label != -100]) == answers
        assert all(label in (-100, token) for label, token in zip(row["labels"], row["input_ids"]))
        sizes.add(size)
        asked.update(hops)
        # are neighbours in the text neighbours on the ring?
        edges = [word for word in words[:18] if word != "."]
        order.add(all(edges[i + 1] == edges[i + 2] for i in range(0, len(edges) - 2, 2)))
    assert sizes == {3, 4, 5, 6, 7} and asked == {1, 2, 3, 4, 5}
    assert False in order


def test_seed_determines_the_rows_and_splits_are_disjoint():
    train, test = set(), set()
    # few different rows, so that the splits would meet if they could
    options = {"min_nodes": 2, "max_nodes": 2, "num_edge_blocks": 1, "block_size": 4, "num_queries": 1, "num_names": 4}
    for seed in range(4):
        splits, again = (successor(80, 8, 2, **options, seed=seed)[0] for _ in range(2))
        assert splits["train"].to_list() == again["train"].to_list()
        train.update(map(tuple, splits["train"]["input_ids"]))
        test.update(map(tuple, splits["test"]["input_ids"]))
    assert len(train) > 30 and len(test) > 3
    assert not train & test


def test_accuracy_by_hops():
    rows = successor(1, 100, 3)[0]["test"]
    hops = np.array(rows["hops"])
    labels = np.array([[label for label in row if label != -100] for row in rows["labels"]])
    table = successor_accuracy(np.where(hops == 2, labels + 1, labels), rows)
    assert [(entry["hops"], entry["accuracy"]) for entry in table] == [(1, 1.0), (2, 0.0), (3, 1.0)]
    assert sum(entry["num_questions"] for entry in table) == 200
    with pytest.raises(ValueError, match=r"predictions must have the shape \(100, 2\)"):
        successor_accuracy(labels[:, 1:], rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_hops": 0}, "max_hops must be an integer of at least 1, got 0"),
        ({"min_nodes": 1}, "min_nodes must be an integer of at least 2, got 1"),
        ({"min_nodes": 17}, "max_nodes must be at least min_nodes=17, got 16"),
        ({"max_nodes": 17}, "max_nodes must be at most 16, .* got 17"),
        ({"num_names": 15}, "num_names must be at least max_nodes=16, got 15"),
        ({"num_queries": 3}, "block_size must be at least 9 for 3 questions, got 8"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        successor(4, 4, **options)
