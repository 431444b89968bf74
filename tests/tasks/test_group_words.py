from itertools import product

import pytest

from hf_loop.tasks import group_words
from hf_loop.tasks.group_words import GENERATORS, group_elements, multiply


ORDERS = {"S3": 6, "S5": 120, "A5": 60, "Z60": 60}


def rearranged(prompt):
    """The orders of things after each letter, told with a row of things."""
    things = "12345"
    for letter in prompt.split():
        things = [things[int(place) - 1] for place in letter]
        yield "".join(things)


@pytest.mark.parametrize("group", ORDERS)
def test_products_follow_the_letters(group):
    splits, tokenizer = group_words(60, 10, 10, min_difficulty=7, group=group, seed=1, test_difficulties=[10, 12])
    for row in [*splits["train"], *splits["test"]]:
        letters = row["prompt"].split()
        if group == "Z60":
            states = [str(sum(map(int, letters[: i + 1])) % 60) for i in range(len(letters))]
        else:
            states = list(rearranged(row["prompt"]))
        assert row["difficulty"] == len(letters)
        assert row["answer"] == states[-1]
        assert row["thoughts"].split() == states[:-1]
        assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["<bos>", *letters, states[-1]]
        assert row["labels"][:2] == [-100, -100]
        assert tokenizer.convert_ids_to_tokens(row["labels"][2:]) == states


@pytest.mark.parametrize("group", ORDERS)
def test_elements_are_a_group_that_the_generators_generate(group):
    elements = group_elements(group)
    assert len(set(elements)) == len(elements) == ORDERS[group]
    assert {multiply(group, left, right) for left, right in product(elements, GENERATORS[group])} == set(elements)
    reached = {GENERATORS[group][0]}
    while True:
        further = reached | {multiply(group, left, right) for left, right in product(reached, GENERATORS[group])}
        if further == reached:
            break
        reached = further
    assert reached == set(elements)


def test_a_product_known_by_hand_depends_on_the_order():
    # abc: the first letter lets a and b change places, which gives bac; the second makes acb of it
    assert multiply("S3", "213", "231") == "132"
    assert multiply("S3", "231", "213") == "321"
    assert multiply("Z60", "45", "20") == "5"


@pytest.mark.parametrize(
    ("group", "letters", "count"),
    [
        ("S3", None, 6),
        ("S5", None, 2),
        ("A5", None, 2),
        ("Z60", None, 60),
        ("Z60", "generators", 3),
        ("A5", "all", 60),
    ],
)
def test_letters_are_all_elements_or_generators(group, letters, count):
    splits, tokenizer = group_words(200, 1, 12, min_difficulty=12, group=group, letters=letters)
    assert len({letter for prompt in splits["train"]["prompt"] for letter in prompt.split()}) == count
    # the tokenizer has a word for every product
    assert len(tokenizer) == 4 + ORDERS[group]


@pytest.mark.parametrize("value", ["S4", 5, None])
def test_other_groups_are_refused(value):
    with pytest.raises(ValueError, match="^group must be one of S3, S5, A5, Z60, got"):
        group_words(4, 4, 4, group=value)


def test_other_letters_are_refused():
    with pytest.raises(ValueError, match="^letters must be one of all, generators"):
        group_words(4, 4, 4, letters="some")


@pytest.mark.parametrize(("group", "letters", "length"), [("A5", None, 10), ("Z60", "generators", 7), ("S3", None, 4)])
def test_the_first_letters_decide_what_is_tested(group, letters, length):
    options = {"group": group, "letters": letters, "test_difficulties": [length, length + 3]}
    splits, _ = group_words(2000, 20, length + 3, min_difficulty=1, **options)
    begins = {name: {" ".join(row.split()[:length]) for row in splits[name]["prompt"]} for name in splits}
    assert not begins["train"] & begins["test"]
    # words that do not tell are for training
    assert set(splits["train"]["difficulty"]) == set(range(1, length + 4))
    with pytest.raises(ValueError, match=f"^num_test must be lower, or test_difficulties without {length - 1}"):
        group_words(1, 1, length - 1, min_difficulty=1, **options | {"test_difficulties": [length - 1]})
