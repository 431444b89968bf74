"""Programs in the prompt: a Post machine with two tapes, its instructions, an input, and what it leaves on a tape.

The machine of "Ask, and it shall be given: On the Turing completeness of prompting"
(https://huggingface.co/papers/2411.01992), for which one transformer is constructed that runs every program it is
prompted with, by writing the executed instructions as its thoughts. Here a model is to learn that:

    text        <bos>  AR A?+2 A1 # AL B0 $ 1 0 1 :     1 1 0
    labels      -100   ... -100                         1 1 0

The instructions of tape A are `AL` and `AR` (move the head), `A0` and `A1` (write), `A!+2` (go two instructions on if
the head is over a 0; `A!-2`: back) and `A?+2` (if it is over a 1); those of tape B begin with B; `#` halts. All cells
are 0 but those of the input, which begins under the head of tape A; the answer is read from that head on, rightwards.
"""

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from datasets import DatasetDict
from transformers import PreTrainedTokenizerFast

from .blocks import check_integers
from .counts import plain_counts
from .rows import MAX_TRIES, TaskRow, task_splits
from .tokenizer import word_tokenizer


HALT = "#"
TAPES = ("A", "B")
ACTIONS = ("L", "R", "0", "1")
CONDITIONS = ("!", "?")
TAKEN, NOT_TAKEN = "=", "/"
# how often a random instruction is of tape A, and how often it is a jump
TAPE_A_SHARE = 0.7
JUMP_SHARE = 0.3
INSTRUCTION = re.compile(rf"[AB][LR01]|[AB][!?][+-][0-9]+|{HALT}")

# On an input in pairs, 1 and a bit, so that a 0 in place of the 1 is its end. The cell under the head of tape B is 1
# in the end if an odd number of the bits are 1
PARITY_PROGRAM = ("A!+9", "AR", "A!+5", "B?+3", "B1", "A?+2", "B0", "AR", "A?-7", HALT)
# The same form of input, 0 for an opening and 1 for a closing bracket. The cell under the head of tape A is 1 in the
# end if they match; tape B counts those that are open
BRACKETS_PROGRAM = (
    *("A!+11", "AR", "A?+4", "BR", "B1", "A!+4", "B!+8", "B0", "BL", "AR", "A?-9"),
    *("B?+2", "A1", HALT, "A0", HALT),
)


class PostMachine:
    """Two tapes with their heads, of which instructions change and read the cells.

    Args:
        bits (`Sequence[int]`): the input, from the head of tape A to the right.
    """

    def __init__(self, bits: Sequence[int]) -> None:
        self.heads = dict.fromkeys(TAPES, 0)
        # the places of the cells that are 1
        self.ones: dict[str, set[int]] = {"A": {i for i, bit in enumerate(bits) if bit}, "B": set()}

    def holds(self, jump: str) -> bool:
        """Tell whether a jump would be taken."""
        return (self.heads[jump[0]] in self.ones[jump[0]]) == (jump[1] == "?")

    def execute(self, instruction: str) -> int:
        """Execute an instruction other than `#`, and return how far on the next one is."""
        tape, action = instruction[0], instruction[1]
        head, ones = self.heads[tape], self.ones[tape]
        if action in CONDITIONS:
            return int(instruction[2:]) if self.holds(instruction) else 1
        if action == "1":
            ones.add(head)
        elif action == "0":
            ones.discard(head)
        else:
            self.heads[tape] = head + (1 if action == "R" else -1)
        return 1

    def read(self, tape: str, num_cells: int) -> list[int]:
        """Return the bits of a tape from its head to the right."""
        head = self.heads[tape]
        return [int(place in self.ones[tape]) for place in range(head, head + num_cells)]


class ProgramRun(NamedTuple):
    """What a program did.

    Args:
        machine (`PostMachine`): the tapes in the end.
        executed (`list[int]`): the places in the program of the executed instructions, in turn, without the halt.
        thoughts (`list[str]`): these instructions, behind each jump `=` if it was taken and `/` if not.
    """

    machine: PostMachine
    executed: list[int]
    thoughts: list[str]


def run_program(program: Sequence[str], bits: Sequence[int], max_steps: int = 10_000) -> ProgramRun:
    """Run a program until it halts: the reference that the answers are made with.

    Args:
        program (`Sequence[str]`): the instructions.
        bits (`Sequence[int]`): the input.
        max_steps (`int`, *optional*, defaults to 10000): the most instructions that are executed.

    Raises:
        ValueError: if there is no such instruction, the program leaves its instructions, or does not halt in time.
    """
    for instruction in program:
        if not INSTRUCTION.fullmatch(instruction):
            raise ValueError(f"program must be of instructions such as AL, B1, A?+2 and #, got {instruction!r}")
    run = ProgramRun(PostMachine(bits), [], [])
    place = 0
    while True:
        if not 0 <= place < len(program):
            raise ValueError(f"program must not leave its {len(program)} instructions, it goes to {place}")
        if program[place] == HALT:
            return run
        if len(run.executed) == max_steps:
            raise ValueError(f"program must halt within max_steps={max_steps}")
        run.executed.append(place)
        run.thoughts.append(program[place])
        if program[place][1] in CONDITIONS:
            run.thoughts.append(TAKEN if run.machine.holds(program[place]) else NOT_TAKEN)
        place += run.machine.execute(program[place])


@plain_counts
def post_machine(
    num_train: int,
    num_test: int,
    difficulty: int = 8,
    *,
    num_instructions: int = 16,
    num_bits: int = 4,
    min_difficulty: int = 3,
    test_difficulties: Sequence[int] | None = None,
    curriculum: float = 0.0,
    group_size: int = 1,
    seed: int = 0,
) -> tuple[DatasetDict, PreTrainedTokenizerFast]:
    """Generate programs with inputs: `"AR A?+2 A1 # AL B0 $ 1 0 1 :"` is answered by `"1 1 0"`.

    The difficulty is the number of executed instructions, without the halt. Of random programs few execute as many as
    they have, or more by loops: a difficulty that is not much below `num_instructions` is slow to draw. The
    instructions that a test row executes are those of no training row, with any input.

    Args:
        num_train, num_test, difficulty, min_difficulty, test_difficulties, curriculum, group_size, seed: see
            [`task_splits`].
        num_instructions (`int`): instructions of each program, executed or not.
        num_bits (`int`): bits of the input, and of the answer.

    Returns:
        `tuple[DatasetDict, PreTrainedTokenizerFast]`: the splits `"train"` and `"test"` with the columns of
        `rows.py`, and the tokenizer they are made with. The `thoughts` are the executed instructions, behind each jump
        `=` if it is taken and `/` if not.

    Raises:
        ValueError: if an argument is out of range, or no programs are found that execute so many instructions.
    """
    check_integers({"num_instructions": num_instructions}, low=3)
    check_integers({"num_bits": num_bits}, low=1)

    def draw_row(num_steps: int, rng: random.Random) -> TaskRow:
        for _ in range(MAX_TRIES):
            bits = rng.choices((0, 1), k=num_bits)
            program = draw_program(num_steps, num_instructions, bits, rng)
            if program is not None:
                return post_machine_row(program, bits)
        raise ValueError(
            f"num_instructions must be higher, or the difficulties lower: no program of {num_instructions} was found "
            f"that executes {num_steps}"
        )

    offsets = [f"{sign}{k}" for sign in "+-" for k in range(1, num_instructions)]
    actions = [tape + action for tape in TAPES for action in ACTIONS]
    jumps = [tape + condition + offset for tape in TAPES for condition in CONDITIONS for offset in offsets]
    tokenizer = word_tokenizer(["0", "1", "$", ":", TAKEN, NOT_TAKEN, HALT, *actions, *jumps])
    splits = task_splits(
        draw_row,
        tokenizer,
        num_train,
        num_test,
        difficulty,
        min_difficulty=min_difficulty,
        test_difficulties=test_difficulties,
        curriculum=curriculum,
        group_size=group_size,
        seed=seed,
    )
    return splits, tokenizer


def post_machine_row(program: Sequence[str], bits: Sequence[int]) -> TaskRow:
    """The row of a program and an input; as many cells are read as the input has."""
    run = run_program(program, bits)
    executed = set(run.executed)
    return TaskRow(
        [*program, "$", *map(str, bits), ":"],
        [str(bit) for bit in run.machine.read("A", len(bits))],
        thoughts=run.thoughts,
        # instructions that are not executed make no other program
        key=" ".join(instruction if i in executed else "." for i, instruction in enumerate(program)),
    )


def draw_program(
    num_steps: int, num_instructions: int, bits: Sequence[int], rng: random.Random
) -> tuple[str, ...] | None:
    """Draw a program that halts after so many instructions on an input, or return `None` if the draw leads to none.

    An instruction is drawn when it is first executed; the first that would be executed one step too late is the halt.

    Args:
        num_steps (`int`): instructions to execute.
        num_instructions (`int`): instructions of the program.
        bits (`Sequence[int]`): the input.
        rng (`random.Random`): source of the draw.
    """
    program: dict[int, str] = {}
    machine = PostMachine(bits)
    place = 0
    for _ in range(num_steps):
        if place == num_instructions:
            return None
        if place not in program:
            program[place] = _draw_instruction(place, num_instructions, rng)
        place += machine.execute(program[place])
    if place == num_instructions or place in program:
        return None
    program[place] = HALT
    for i in range(num_instructions):
        if i not in program:
            program[i] = _draw_instruction(i, num_instructions, rng)
    return tuple(program[i] for i in range(num_instructions))


def _draw_instruction(place: int, num_instructions: int, rng: random.Random) -> str:
    tape = "A" if rng.random() < TAPE_A_SHARE else "B"
    if rng.random() >= JUMP_SHARE:
        return tape + rng.choice(ACTIONS)
    # not to itself, which would never end, nor to the next one, which comes anyway
    target = rng.choice([i for i in range(num_instructions) if i not in (place, place + 1)])
    return f"{tape}{rng.choice(CONDITIONS)}{target - place:+d}"
