from collections import Counter
from itertools import product

import pytest

from hf_loop.tasks import approximate_counting
from hf_loop.tasks.approximate_counting import satisfying_assignments


def satisfies(prompt, assignment):
    """Whether an assignment, a list of bits, satisfies a formula."""
    clauses = prompt.split("|")
    assert clauses.pop() == ""
    return any(
        all(assignment[int(literal.strip("!x"))] != literal.startswith("!") for literal in clause.split())
        for clause in clauses
    )


def test_a_count_known_by_hand():
    # x1 and not x3, or x0 and x2 and x3
    clauses = [{1: False, 3: True}, {0: False, 2: False, 3: False}]
    assert satisfying_assignments(clauses, 4).bit_count() == 6
    # x0 alone: the odd numbers
    assert satisfying_assignments([{0: False}], 2) == 0b1010
    assert satisfying_assignments([{1: True}], 2) == 0b0011


def test_shares_and_samples_agree_with_enumeration():
    options = {"num_variables": 5, "num_samples": 6}
    splits, tokenizer = approximate_counting(60, 12, 5, min_difficulty=2, test_difficulties=[3, 8], seed=1, **options)
    for row in [*splits["train"], *splits["test"]]:
        assignments = list(product([False, True], repeat=5))
        share = sum(satisfies(row["prompt"], assignment) for assignment in assignments) / 32
        assert row["share"] == share
        low = int(row["answer"].removesuffix("%"))
        assert low <= 100 * share < low + 10 or (low, share) == (90, 1)
        assert row["prompt"].split().count("|") == row["difficulty"]
        thoughts = row["thoughts"].split()
        assert len(thoughts) == 36
        for start in range(0, 36, 6):
            *bits, verdict = thoughts[start : start + 6]
            assert (verdict == "yes") == satisfies(row["prompt"], [bit == "1" for bit in bits])
            assert set(bits) <= {"0", "1"} and verdict in ("yes", "no")
        assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["<bos>", *row["prompt"].split(), row["answer"]]


@pytest.mark.parametrize("num_clauses", [3, 12])
def test_shares_are_about_uniform(num_clauses):
    rows = approximate_counting(1000, 1, num_clauses, min_difficulty=num_clauses)[0]["train"]
    counts = Counter(rows["answer"])
    assert len(counts) == 10
    assert max(counts.values()) < 140 and min(counts.values()) > 60


@pytest.mark.parametrize(("name", "value"), [("num_variables", 1), ("num_variables", 17), ("num_samples", 0)])
def test_sizes_that_make_no_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name}"):
        approximate_counting(4, 8, 4, **{name: value})
