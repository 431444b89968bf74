from collections import Counter

import pytest

from hf_loop.tasks import fact_recall


def test_training_and_test_ask_for_the_same_facts():
    splits, tokenizer = fact_recall(4000, 45, 3, num_facts=15, seed=1)
    facts = dict(zip(splits["train"]["prompt"], splits["train"]["answer"]))
    # a key has one value
    assert len(facts) == len(set(zip(splits["train"]["prompt"], splits["train"]["answer"]))) == 15 + 30 + 60
    assert all(facts[row["prompt"]] == row["answer"] for row in splits["test"])
    assert len(set(splits["test"]["prompt"])) == 45
    row = splits["test"][0]
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["<bos>", *row["prompt"].split(), row["answer"]]
    assert row["labels"] == [-100] * 4 + row["input_ids"][-1:]


def test_a_fact_is_half_as_frequent_as_one_that_is_easier():
    rows = fact_recall(6000, 3, 3, num_facts=10)[0]["train"]
    counts = {level: Counter() for level in (1, 2, 3)}
    for prompt, level in zip(rows["prompt"], rows["difficulty"]):
        counts[level][prompt] += 1
    assert [len(counts[level]) for level in (1, 2, 3)] == [10, 20, 40]
    for level, times in ((1, 200), (2, 100), (3, 50)):
        assert abs(sum(counts[level].values()) / len(counts[level]) / times - 1) < 0.1


def test_facts_have_a_seed_of_their_own_and_do_not_depend_on_other_difficulties():
    first, second = (fact_recall(2000, 3, 3, num_facts=8, seed=seed)[0]["train"] for seed in (1, 2))
    facts = set(zip(first["prompt"], first["answer"], first["difficulty"]))
    assert facts == set(zip(second["prompt"], second["answer"], second["difficulty"]))
    easy = fact_recall(2000, 2, 2, num_facts=8)[0]["train"]
    assert set(zip(easy["prompt"], easy["answer"], easy["difficulty"])) == {fact for fact in facts if fact[2] < 3}
    other = fact_recall(2000, 3, 3, num_facts=8, facts_seed=1)[0]["train"]
    assert set(zip(other["prompt"], other["answer"], other["difficulty"])) != facts


def test_keys_can_all_be_facts_and_no_more():
    # 8 keys: 1 + 2 + 4 facts
    splits, _ = fact_recall(200, 4, 3, num_facts=1, num_words=2, min_difficulty=3)
    assert len(set(splits["test"]["prompt"])) == 4
    with pytest.raises(ValueError, match="^difficulty must be at most 3, got 4"):
        fact_recall(4, 4, 4, num_facts=1, num_words=2)
    with pytest.raises(ValueError, match="^num_test must be lower"):
        fact_recall(4, 5, 3, num_facts=1, num_words=2, min_difficulty=3)


@pytest.mark.parametrize(
    ("name", "value"), [("num_facts", 0), ("key_length", 0), ("num_words", 1), ("num_values", 1), ("num_words", 200)]
)
def test_sizes_that_make_no_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name}"):
        fact_recall(4, 4, 2, **{name: value})
