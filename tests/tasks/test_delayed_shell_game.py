"""The delayed shell game, read back from its text."""

import time

import pytest

from hf_loop.tasks import delayed_shell_game

from .test_state_tracking import play_shell_game


def parts(prompt):
    """Ball, filler and swaps of a prompt."""
    ball, *words = prompt.split()
    swaps = [word for word in words if "<->" in word]
    return ball, words[: len(words) - len(swaps)], swaps


@pytest.mark.parametrize("curriculum", [0.0, 0.5])
@pytest.mark.parametrize(("num_swaps", "num_cups", "block_size"), [(8, 3, 8), (3, 5, 4), (6, 4, 9)])
def test_the_ball_is_in_the_first_block_and_the_swaps_are_in_the_last(num_swaps, num_cups, block_size, curriculum):
    splits, tokenizer = delayed_shell_game(
        40, 9, num_swaps, num_cups=num_cups, block_size=block_size, group_size=4, curriculum=curriculum
    )
    for row in [*splits["train"], *splits["test"]]:
        ball, filler, swaps = parts(row["prompt"])
        # with <bos> and the ball, whole blocks of which the swaps see nothing
        before = len(filler) + 2
        assert before % block_size == 0 and 1 <= before // block_size <= 3
        assert row["prompt"].split() == [ball, *filler, *swaps]
        assert all(word.startswith("n") for word in filler)
        places = play_shell_game(" ".join([ball, *swaps]))
        assert row["answer"] == places[-1]
        assert row["input_ids"] == tokenizer(f"{row['prompt']} {row['answer']}")["input_ids"]
        assert tokenizer.unk_token_id not in row["input_ids"]
        assert len(row["labels"]) == len(row["input_ids"])
        assert row["labels"][:before] == [-100] * before
        assert tokenizer.convert_ids_to_tokens(row["labels"][before:]) == places


def test_splits_by_number_of_blocks():
    splits, _ = delayed_shell_game(8, 5, 3, max_blocks=4, block_size=16, test_blocks=(2, 32))
    assert set(splits) == {"train", "test", "test_2", "test_32"}
    for name, count in [("test", 4), ("test_2", 2), ("test_32", 32)]:
        assert {len(row) for row in splits[name]["input_ids"]} == {16 * (count - 1) + 3 + 1}
        assert len(set(splits[name]["prompt"])) == 5


def test_batches_of_a_group_need_no_padding_and_games_grow():
    splits, _ = delayed_shell_game(640, 4, 8, max_blocks=5, group_size=16, curriculum=0.5)
    sizes = [(len(filler) + 2, len(swaps)) for _, filler, swaps in map(parts, splits["train"]["prompt"])]
    assert all(len(set(sizes[start : start + 16])) == 1 for start in range(0, 640, 16))
    assert sizes[:16] == [(8, 1)] * 16
    swaps = [count for _, count in sizes]
    assert swaps == sorted(swaps) and set(swaps[320:]) == {8}
    assert {fill for fill, _ in sizes[320:]} == {8, 16, 24, 32}
    assert {(len(filler) + 2, len(swaps)) for _, filler, swaps in map(parts, splits["test"]["prompt"])} == {(32, 8)}


def test_seed_determines_the_rows_and_games_never_meet():
    train, test = set(), set()
    for seed in range(4):
        splits, again = (delayed_shell_game(60, 15, 5, seed=seed)[0] for _ in range(2))
        assert splits["train"].to_list() == again["train"].to_list()
        for split, games in (("train", train), ("test", test)):
            drawn = {(ball, *swaps) for ball, _, swaps in map(parts, splits[split]["prompt"])}
            assert split == "train" or len(drawn) == 15
            games.update(drawn)
    assert len(train) > 60 and len(test) > 15  # more than one seed draws
    assert not train & test


def test_answers_are_balanced():
    answers = delayed_shell_game(3000, 10)[0]["train"]["answer"]
    for cup in ("ball:1", "ball:2", "ball:3"):
        assert 0.3 < answers.count(cup) / 3000 < 0.37


def test_generation_is_fast():
    start = time.perf_counter()
    delayed_shell_game(64_000, 64, curriculum=0.5)
    assert time.perf_counter() - start < 20  # about a second, on a machine that does nothing else


@pytest.mark.parametrize("value", [0, 2.5, True, "x"])
@pytest.mark.parametrize(
    "name", ["num_train", "num_test", "num_swaps", "num_cups", "block_size", "min_blocks", "max_blocks", "group_size"]
)
def test_sizes_that_make_no_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        delayed_shell_game(**{"num_train": 4, "num_test": 4, name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_blocks": 1}, "min_blocks must be an integer of at least 2, got 1"),
        ({"min_blocks": 4, "max_blocks": 3}, "max_blocks must be at least min_blocks=4, got 3"),
        ({"num_cups": 2}, "num_cups must be an integer of at least 3, got 2"),
        ({"num_swaps": 9}, "block_size must be at least num_swaps=9, got 8"),
        ({"test_blocks": (2, 1)}, r"test_blocks\[1\] must be an integer of at least 2, got 1"),
        ({"curriculum": 1.5}, "curriculum must be between 0 and 1, got 1.5"),
        ({"num_test": 27, "num_swaps": 2}, "num_test must be at most"),
        ({"num_swaps": 64, "block_size": 64}, "num_swaps must be lower"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        delayed_shell_game(**{"num_train": 4, "num_test": 4, **options})
