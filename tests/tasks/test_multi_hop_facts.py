"""Questions, answered again from the facts among the training rows."""

import pytest

from hf_loop.tasks import multi_hop_facts
from hf_loop.tasks.multi_hop_facts import facts_row


SIZES = {"num_entities": 20, "num_relations": 6, "num_held_out": 2}


def read_facts(rows):
    """The facts among the rows, by entity and relation."""
    facts = {}
    for prompt, answer, difficulty in zip(rows["prompt"], rows["answer"], rows["difficulty"]):
        if difficulty == 1:
            entity, relation = prompt.split()
            assert facts.setdefault((entity, relation), answer) == answer
    return facts


def follow(facts, prompt):
    """The entities on the way and the facts that are used."""
    entity, *relations = prompt.split()
    path, used = [], []
    for relation in relations:
        used.append((entity, relation))
        entity = facts[entity, relation]
        path.append(entity)
    return path, used


def test_answers_follow_from_the_facts_and_splits_keep_facts_apart():
    splits, tokenizer = multi_hop_facts(2000, 60, 3, **SIZES, test_difficulties=[2, 3, 6], seed=1)
    facts = read_facts(splits["train"])
    # all of them, and each relation leads to every entity
    assert len(facts) == 20 * 6
    for relation in range(6):
        assert len({target for (_, name), target in facts.items() if name == f"r{relation}"}) == 20
    used = {}
    for name, rows in splits.items():
        used[name] = set()
        for row in rows:
            path, steps = follow(facts, row["prompt"])
            assert row["answer"] == path[-1] and row["thoughts"].split() == path[:-1]
            assert row["difficulty"] == len(path)
            assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["<bos>", *row["prompt"].split(), path[-1]]
            assert row["labels"] == [-100] * (len(path) + 2) + row["input_ids"][-1:]
            if len(path) > 1:
                used[name].update(steps)
    # training composes four facts of each entity, and the systematic test the two others
    assert len(used["train"]) == 20 * 4 and used["test"] <= used["train"]
    assert not used["test_systematic"] & used["train"] and len(used["test_systematic"]) <= 20 * 2
    assert splits["test"]["difficulty"] == splits["test_systematic"]["difficulty"] == [2] * 20 + [3] * 20 + [6] * 20
    assert len(set(splits["test_systematic"]["prompt"])) == 60
    assert set(splits["train"]["difficulty"]) == {1, 2, 3}


def test_seeds_of_facts_and_rows():
    def draw(**options):
        return multi_hop_facts(400, 20, 2, **SIZES, **options)[0]

    first, again, other_rows, other_facts = draw(), draw(), draw(seed=1), draw(facts_seed=1)
    for name in first:
        assert first[name].to_list() == again[name].to_list()
    assert read_facts(first["train"]) == read_facts(other_rows["train"]) != read_facts(other_facts["train"])
    assert first["train"]["prompt"] != other_rows["train"]["prompt"]


def test_splits_are_disjoint_for_all_seeds():
    train, test = set(), set()
    # few different rows, so that the splits would meet if they could: 12 entities, two facts of each to compose
    for seed in range(4):
        sizes = {"num_entities": 12, "num_relations": 3, "num_held_out": 1, "seed": seed}
        splits, _ = multi_hop_facts(300, 4, 2, **sizes)
        train.update(splits["train"]["prompt"])
        test.update(splits["test"]["prompt"])
    assert len(train) > 60 and len(test) >= 4
    assert not train & test


def test_a_row_known_by_hand():
    # r0 leads from e0 to e1 to e2 to e0, r1 back
    targets = [[1, 2], [2, 0], [0, 1]]
    row = facts_row(targets, 0, [0, 0, 1])
    assert row.prompt == ["e0", "r0", "r0", "r1"] and row.answer == ["e1"] and row.thoughts == ["e1", "e2"]


def test_a_later_stage_has_no_facts():
    splits, _ = multi_hop_facts(50, 20, 3, **SIZES, min_difficulty=3)
    assert set(splits["train"]["difficulty"]) == set(splits["test"]["difficulty"]) == {3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_held_out": 6}, "num_held_out must be below num_relations=6, got 6"),
        ({"num_held_out": 0}, "num_held_out must be an integer of at least 1, got 0"),
        ({"num_entities": 1}, "num_entities must be an integer of at least 2, got 1"),
        ({"difficulty": 1}, "difficulty must be an integer of at least 2, got 1"),
        ({"test_difficulties": [2, 1]}, r"test_difficulties\[1\] must be an integer of at least 2, got 1"),
        ({"num_train": 100}, "num_train must be higher: of 100 rows .* have one hop, and there are 120 facts"),
        ({"num_held_out": 1, "num_test": 30}, "num_test must be lower: there are fewer than 30 compositions of 2"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        multi_hop_facts(**{"num_train": 500, "num_test": 8} | SIZES | options)
