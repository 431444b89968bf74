import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_loop.tasks import coin_flips, shell_game


TASKS = [(shell_game, 5), (coin_flips, 7)]


def play_shell_game(prompt):
    """The places of the ball, told with a row of cups, which shares nothing with the table of moves under test."""
    start, *swaps = prompt.split()
    cups = ["empty"] * 9
    cups[int(start.removeprefix("ball:")) - 1] = "ball"
    places = [start]
    for swap in swaps:
        left, right = (int(cup) - 1 for cup in swap.split("<->"))
        cups[left], cups[right] = cups[right], cups[left]
        places.append(f"ball:{cups.index('ball') + 1}")
    return places


def play_coin_flips(prompt):
    """The sides of the coin, told by the parity of the flips so far."""
    start, *moves = prompt.split()
    sides = ["heads", "tails"]
    return [sides[(sides.index(start) + moves[:count].count("flip")) % 2] for count in range(len(moves) + 1)]


PLAYERS = {shell_game: play_shell_game, coin_flips: play_coin_flips}


@pytest.mark.parametrize(("task", "num_moves"), TASKS)
@pytest.mark.parametrize("curriculum", [0.0, 0.5])
def test_text_labels_and_answers_agree_with_an_independent_game(task, num_moves, curriculum):
    splits, tokenizer = task(60, 15, num_moves, curriculum=curriculum, seed=3)
    for row in [*splits["train"], *splits["test"]]:
        states = PLAYERS[task](row["prompt"])
        assert row["answer"] == states[-1]
        # the text is the prompt and the answer, so `generate` continues the prompt with the last label
        assert row["input_ids"] == tokenizer(f"{row['prompt']} {row['answer']}")["input_ids"]
        assert row["input_ids"][:-1] == tokenizer(row["prompt"])["input_ids"]
        assert row["labels"][:2] == [-100, -100]
        assert tokenizer.convert_ids_to_tokens(row["labels"][2:]) == states
        assert len(row["labels"]) == len(row["input_ids"])
        # states in the middle are asked and never told
        assert not set(row["input_ids"][2:-1]) & set(row["labels"])


@settings(max_examples=20, deadline=None)
@given(
    num_cups=st.integers(3, 6), num_swaps=st.integers(4, 12), num_train=st.integers(1, 8), seed=st.integers(0, 2**40)
)
def test_shell_game_of_any_size(num_cups, num_swaps, num_train, seed):
    splits, tokenizer = shell_game(num_train, 1, num_swaps, num_cups=num_cups, seed=seed)
    assert len(splits["train"]) == num_train
    for row in splits["train"]:
        assert len(row["prompt"].split()) == num_swaps + 1
        assert tokenizer.unk_token_id not in row["input_ids"]
        assert row["answer"] == play_shell_game(row["prompt"])[-1]


@pytest.mark.parametrize(("task", "num_moves"), TASKS)
def test_seed_determines_the_rows(task, num_moves):
    first, again, other = (task(40, 10, num_moves, seed=seed)[0] for seed in (5, 5, 6))
    for split in ("train", "test"):
        assert first[split].to_list() == again[split].to_list()
        assert first[split]["prompt"] != other[split]["prompt"]


def test_rows_are_equal_in_another_process():
    code = "from hf_loop.tasks import shell_game; print(shell_game(5, 5, 6, seed=1)[0]['test'].to_list())"
    # another hash seed: nothing may depend on the order of a set
    environment = {"PYTHONHASHSEED": "123", "PYTHONPATH": ":".join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert run.stdout.strip() == str(shell_game(5, 5, 6, seed=1)[0]["test"].to_list())


@pytest.mark.parametrize(("task", "num_moves"), TASKS)
def test_splits_are_disjoint_whatever_the_seeds(task, num_moves):
    train, test = set(), set()
    for seed in range(4):
        splits, _ = task(60, 15, num_moves, seed=seed)
        for split, games in (("train", train), ("test", test)):
            games.update(splits[split]["prompt"])
        assert len(set(splits["test"]["prompt"])) == len(splits["test"])
    assert not train & test


def test_the_splits_share_out_all_games_and_training_games_repeat():
    # 3 starts and 3 swaps, twice: 27 games
    with pytest.raises(ValueError, match="num_test must be at most") as error:
        shell_game(1, 27, 2)
    num_test = int(str(error.value).split("at most ")[1].split(",")[0])
    splits, _ = shell_game(2000, num_test, 2)
    train, test = (set(splits[split]["prompt"]) for split in ("train", "test"))
    assert (len(train), len(test)) == (27 - num_test, num_test)
    with pytest.raises(ValueError, match=f"num_test must be at most {num_test}"):
        shell_game(1, num_test + 1, 2)


def test_answers_are_balanced():
    answers = shell_game(3000, 10, 8)[0]["train"]["answer"]
    for cup in ("ball:1", "ball:2", "ball:3"):
        assert 0.3 < answers.count(cup) / 3000 < 0.37


def test_curriculum_grows_from_one_move_over_its_share_of_the_training_rows():
    splits, _ = coin_flips(100, 20, 8, curriculum=0.4)
    lengths = [len(prompt.split()) - 1 for prompt in splits["train"]["prompt"]]
    assert lengths[0] == 1
    assert lengths == sorted(lengths)
    assert lengths[39] == 7
    assert set(lengths[40:]) == {8}
    assert {len(prompt.split()) - 1 for prompt in splits["test"]["prompt"]} == {8}


def test_a_curriculum_keeps_the_games_and_cuts_them():
    whole, cut = (shell_game(50, 10, 6, curriculum=share)[0] for share in (0.0, 1.0))
    assert whole["test"].to_list() == cut["test"].to_list()
    assert all(a.startswith(b) for a, b in zip(whole["train"]["prompt"], cut["train"]["prompt"], strict=True))


@pytest.mark.parametrize("value", [0, -1, 2.5, "x", True, None])
@pytest.mark.parametrize("name", ["num_train", "num_test", "num_moves"])
def test_sizes_that_make_no_sense_are_refused(name, value):
    sizes = {"num_train": 4, "num_test": 4, "num_moves": 8, name: value}
    with pytest.raises(ValueError, match=name):
        coin_flips(**sizes)


@pytest.mark.parametrize("value", [0, 2, 3.0, True])
def test_too_few_cups_are_refused(value):
    with pytest.raises(ValueError, match="num_cups"):
        shell_game(4, 4, 8, num_cups=value)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_curriculum_outside_zero_to_one_is_refused(value):
    with pytest.raises(ValueError, match="curriculum"):
        coin_flips(4, 4, 8, curriculum=value)


def test_tasks_stand_alone():
    # they must work without the rest of the library
    code = (
        "import sys; import hf_loop.tasks; "
        "print([name for name in sys.modules if name.startswith('hf_loop.') and 'tasks' not in name])"
    )
    # as the installed command, which keeps `import hf_loop` from registering the models
    program = f"import sys, sysconfig; sys.argv = [sysconfig.get_path('scripts') + '/hf-loop']; {code}"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
