import pytest

from hf_loop.tasks import p_hop
from hf_loop.tasks.p_hop import hop


def naive_hops(symbols, num_hops):
    """The same by a table: for every place the place that one hop leads to."""
    leads_to = []
    for place in range(len(symbols)):
        earlier = [other + 1 for other in range(place) if symbols[other] == symbols[place]]
        leads_to.append(max(earlier, default=None))
    place, visited = len(symbols) - 1, []
    for _ in range(num_hops):
        place = None if place is None else leads_to[place]
        visited.append(None if place is None else symbols[place])
    return visited


def words_of(tokenizer, labels):
    return [None if label == -100 else tokenizer.convert_ids_to_tokens(label) for label in labels]


def test_hops_known_by_hand():
    assert hop("abcabcb", 2) == ["c", "a"]
    # the third finds no earlier `a` behind the one at the start
    assert hop("abcabcb", 4) == ["c", "a", "b"]
    assert hop("abc", 1) == []


@pytest.mark.parametrize(("alphabet_size", "sequence_length"), [(3, 24), (4, 64), (26, 200)])
def test_answers_agree_with_a_naive_implementation(alphabet_size, sequence_length):
    options = {"alphabet_size": alphabet_size, "sequence_length": sequence_length, "test_difficulties": [2, 7]}
    splits, tokenizer = p_hop(80, 20, 5, seed=2, **options)
    for row in [*splits["train"], *splits["test"]]:
        words = row["prompt"].split()
        marks, symbols = words[: row["difficulty"]], words[row["difficulty"] :]
        assert set(marks) == {">"} and ">" not in symbols
        assert len(symbols) == sequence_length
        assert all(left != right for left, right in zip(symbols, symbols[1:]))
        visited = naive_hops(symbols, len(marks))
        assert (row["answer"], row["thoughts"].split()) == (visited[-1], visited[:-1])
        assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["<bos>", *words, visited[-1]]
        # the same is asked of every symbol that has so many hops behind it
        asked = [naive_hops(symbols[: end + 1], len(marks)) for end in range(len(symbols))]
        expected = [None] * (2 + len(marks)) + [hops[-1] for hops in asked]
        assert words_of(tokenizer, row["labels"]) == expected


def test_answers_are_balanced():
    answers = p_hop(3000, 10, 6, min_difficulty=6, sequence_length=48)[0]["train"]["answer"]
    assert all(0.2 < answers.count(symbol) / 3000 < 0.3 for symbol in "abcd")


def test_sequences_too_short_for_the_hops_are_refused():
    with pytest.raises(ValueError, match="^sequence_length must be higher for 9 hops"):
        p_hop(4, 4, 9, min_difficulty=9, sequence_length=10)


@pytest.mark.parametrize(("name", "value"), [("sequence_length", 2), ("alphabet_size", 2), ("alphabet_size", 27)])
def test_sizes_that_make_no_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name}"):
        p_hop(4, 4, 2, **{name: value})
