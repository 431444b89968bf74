"""Programs whose results are known, and rows whose programs are run again by other means."""

from itertools import product

import pytest

from hf_loop.tasks import post_machine, run_program
from hf_loop.tasks.post_machine import BRACKETS_PROGRAM, PARITY_PROGRAM, PostMachine, post_machine_row


def pairs(bits):
    """Bits as pairs, 1 and the bit."""
    return [cell for bit in bits for cell in (1, bit)]


def interpret(program, bits):
    """Another interpreter: tapes as lists with room on both sides, and the text of what was executed."""
    room = 200
    tapes = {"A": [0] * room + list(bits) + [0] * room, "B": [0] * 2 * room}
    heads = {"A": room, "B": room}
    place, executed = 0, []
    while (word := program[place]) != "#":
        tape, kind, rest = word[0], word[1], word[2:]
        cell = tapes[tape][heads[tape]]
        executed.append(word)
        if kind in "!?":
            taken = cell == "!?".index(kind)
            executed.append("=" if taken else "/")
            place += int(rest) if taken else 1
            continue
        if kind in "LR":
            heads[tape] += {"L": -1, "R": 1}[kind]
        else:
            tapes[tape][heads[tape]] = int(kind)
        place += 1
    return tapes["A"][heads["A"] : heads["A"] + len(bits)], executed


def test_parity():
    for length in range(6):
        for bits in product((0, 1), repeat=length):
            assert run_program(PARITY_PROGRAM, pairs(bits)).machine.read("B", 1) == [sum(bits) % 2]


def test_brackets():
    for length in range(9):
        for bits in product((0, 1), repeat=length):
            open_brackets, matches = 0, True
            for bit in bits:
                open_brackets += -1 if bit else 1
                matches = matches and open_brackets >= 0
            result = run_program(BRACKETS_PROGRAM, pairs(bits)).machine.read("A", 1)
            assert result == [int(matches and open_brackets == 0)], bits


@pytest.mark.parametrize(
    ("instruction", "offset", "cells_a", "cells_b"),
    [
        ("A1", 1, [1, 1], [0, 0]),
        ("A0", 1, [0, 1], [0, 0]),
        ("AR", 1, [1, 0], [0, 0]),
        ("AL", 1, [0, 1], [0, 0]),
        ("B1", 1, [1, 1], [1, 0]),
        ("BR", 1, [1, 1], [0, 0]),
        ("A?-3", -3, [1, 1], [0, 0]),
        ("A!-3", 1, [1, 1], [0, 0]),
        ("B?+2", 1, [1, 1], [0, 0]),
        ("B!+2", 2, [1, 1], [0, 0]),
    ],
)
def test_instructions(instruction, offset, cells_a, cells_b):
    machine = PostMachine([1, 1])
    assert machine.execute(instruction) == offset
    assert (machine.read("A", 2), machine.read("B", 2)) == (cells_a, cells_b)


def test_a_row_known_by_hand():
    row = post_machine_row(["AR", "A?+2", "A1", "#", "AL", "B0"], [1, 0, 1])
    assert " ".join(row.prompt) == "AR A?+2 A1 # AL B0 $ 1 0 1 :"
    # the second cell is 0, so the jump is not taken, and becomes 1; it is read first
    assert row.answer == ["1", "1", "0"]
    assert row.thoughts == ["AR", "A?+2", "/", "A1"]
    assert row.key == "AR A?+2 A1 . . ."
    # a loop: the head goes on from 1 to 1
    run = run_program(["AR", "A?-1", "#"], [1, 1, 1])
    assert run.thoughts == ["AR", "A?-1", "="] * 2 + ["AR", "A?-1", "/"] and run.executed == [0, 1] * 3


def test_rows_agree_with_another_interpreter():
    splits, tokenizer = post_machine(150, 30, 6, test_difficulties=[4, 9, 12], seed=1)
    for row in [*splits["train"], *splits["test"]]:
        program, bits = (part.split() for part in row["prompt"].removesuffix(" :").split(" $ "))
        cells, executed = interpret(program, [int(bit) for bit in bits])
        assert len(program) == 16 and len(bits) == 4
        assert row["answer"].split() == [str(cell) for cell in cells]
        assert row["thoughts"].split() == executed
        assert row["difficulty"] == sum(word not in "=/" for word in executed)
        words = ["<bos>", *row["prompt"].split(), *row["answer"].split()]
        assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == words
        assert row["labels"] == [-100] * (len(words) - 4) + row["input_ids"][-4:]
        assert tokenizer.unk_token_id not in tokenizer(row["thoughts"])["input_ids"]
    assert set(splits["train"]["difficulty"]) == {3, 4, 5, 6}
    assert splits["test"]["difficulty"] == [4] * 10 + [9] * 10 + [12] * 10
    # some programs go back
    assert any("-" in word for thoughts in splits["train"]["thoughts"] for word in thoughts.split())
    assert len(set(splits["train"]["answer"])) > 8


def test_programs_longer_than_their_instructions_have_loops():
    splits, _ = post_machine(5, 4, 8, num_instructions=7, min_difficulty=8)
    for thoughts in splits["train"]["thoughts"]:
        executed = [word for word in thoughts.split() if word not in "=/"]
        assert len(executed) == 8 and "-" in "".join(executed)


def test_seed_determines_the_rows_and_test_programs_are_new():
    def executed(rows):
        """The executed parts of programs, by their places."""
        found = set()
        for prompt in rows["prompt"]:
            program, bits = (part.split() for part in prompt.removesuffix(" :").split(" $ "))
            places = set(run_program(program, [int(bit) for bit in bits]).executed)
            found.add(tuple(word if i in places else None for i, word in enumerate(program)))
        return found

    train, test = set(), set()
    # few different programs, so that the splits would meet if they could
    for seed in range(3):
        options = {"min_difficulty": 1, "num_instructions": 4, "num_bits": 1, "seed": seed}
        splits, again = (post_machine(150, 4, 2, **options)[0] for _ in range(2))
        assert splits["train"].to_list() == again["train"].to_list()
        train |= executed(splits["train"])
        test |= executed(splits["test"])
    assert len(train) > 50 and len(test) > 4
    assert not train & test


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (["AR", "A?-1", "B2"], "program must be of instructions such as .* got 'B2'"),
        (["A!2", "#"], "got 'A!2'"),
        (["AR"], "program must not leave its 1 instructions, it goes to 1"),
        (["A!-1", "#"], "program must not leave its 2 instructions, it goes to -1"),
        (["AR", "A!-1", "#"], "program must halt within max_steps=50"),
    ],
)
def test_programs_that_do_not_run_are_refused(program, message):
    with pytest.raises(ValueError, match=message):
        run_program(program, [0], max_steps=50)


def test_a_program_may_take_all_steps():
    assert len(run_program(["AR", "AR", "#"], [], max_steps=2).executed) == 2
    with pytest.raises(ValueError, match="within max_steps=1"):
        run_program(["AR", "AR", "#"], [], max_steps=1)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="num_instructions must be an integer of at least 3, got 2"):
        post_machine(4, 4, num_instructions=2)
    with pytest.raises(ValueError, match="num_bits must be an integer of at least 1, got 0"):
        post_machine(4, 4, num_bits=0)
    with pytest.raises(ValueError, match="no program of 3 was found that executes 40"):
        post_machine(4, 4, 40, min_difficulty=40, num_instructions=3, num_bits=1)
