"""Questions of reasoning-gym as rows; skipped where the package is not installed."""

import sys

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from hf_loop.tasks import reasoning_gym_task


@pytest.fixture(scope="module")
def tokenizer():
    """Every byte is a token."""
    alphabet = sorted(ByteLevel.alphabet())
    model = BPE({"<bos>": 0} | {byte: i for i, byte in enumerate(alphabet, start=1)}, [])
    backend = Tokenizer(model)
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>")


def make(tokenizer, name="chain_sum", num_train=30, num_test=8, difficulty_key="num_terms", **options):
    pytest.importorskip("reasoning_gym")
    return reasoning_gym_task(name, tokenizer, num_train, num_test, difficulty_key=difficulty_key, **options)


def test_rows_are_questions_with_their_answers(tokenizer):
    splits = make(tokenizer, settings={"min_terms": 2, "max_terms": 5})
    assert splits.num_rows == {"train": 30, "test": 8}
    for row in [*splits["train"], *splits["test"]]:
        expression = row["prompt"].split(": ")[1].removesuffix(" =")
        terms = expression.replace("- ", "+ -").split(" + ")
        assert row["answer"] == str(sum(map(int, terms))) and row["difficulty"] == len(terms)
        characters = len(row["prompt"]) + 1
        assert row["input_ids"][0] == tokenizer.bos_token_id
        ids = tokenizer(f"{row['prompt']}\n{row['answer']}", add_special_tokens=False)["input_ids"]
        assert row["input_ids"][1:] == ids
        assert row["labels"] == [-100] * (characters + 1) + ids[characters:]
    assert set(splits["train"]["difficulty"]) == {2, 3, 4, 5}
    assert list(splits["test"]["difficulty"]) == sorted(splits["test"]["difficulty"])


def test_seed_determines_the_rows_and_splits_are_disjoint(tokenizer):
    train, test = set(), set()
    # few different questions, so that the splits would meet if they could
    settings = {"max_terms": 2, "max_digits": 1}
    for seed in range(3):
        splits, again = (make(tokenizer, num_train=80, num_test=8, settings=settings, seed=seed) for _ in range(2))
        assert splits["train"].to_list() == again["train"].to_list()
        assert len(set(splits["test"]["prompt"])) == 8
        train.update(splits["train"]["prompt"])
        test.update(splits["test"]["prompt"])
    assert len(train) > 60 and len(test) > 8
    assert not train & test


def test_neighbouring_seeds_have_other_questions(tokenizer):
    first, second = (set(make(tokenizer, seed=seed)["train"]["prompt"]) for seed in (0, 1))
    assert len(first & second) < 5


def test_what_does_not_fit_is_refused(tokenizer):
    with pytest.raises(ValueError, match="num_train must be an integer of at least 1, got 0"):
        make(tokenizer, num_train=0)
    with pytest.raises(ValueError, match="got 'chain_sums'"):
        make(tokenizer, name="chain_sums")
    with pytest.raises(ValueError, match="settings must be those .* got 'chain_sum' and .*'terms': 3.*: .*'terms'"):
        make(tokenizer, settings={"terms": 3})
    with pytest.raises(ValueError, match="such as num_terms, num_digits, got 'depth'"):
        make(tokenizer, difficulty_key="depth")
    with pytest.raises(ValueError, match="questions have one answer, got 'propositional_logic', answer None"):
        make(tokenizer, name="propositional_logic", difficulty_key="complexity")
    with pytest.raises(ValueError, match="num_test must be at most [0-9]+, .* got 100"):
        make(tokenizer, num_train=1, num_test=100, settings={"max_terms": 2, "max_digits": 1})


def test_without_the_package_it_says_what_to_install(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match=r"install it with `pip install 'hf-loop\[reasoning\]'`"):
        reasoning_gym_task("chain_sum", tokenizer, 4, 4, difficulty_key="num_terms")
