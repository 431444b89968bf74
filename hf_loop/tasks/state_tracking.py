"""State tracking as text: a start, a list of moves, and the state they lead to.

The answer needs every move, in order, so a model with few layer calls cannot give it. That makes these tasks a test of
depth: see "The Illusion of State" (https://huggingface.co/papers/2404.08819).

A row of the shell game, where the ball is under cup 2 and cups 1 and 2, then 2 and 3 change places:

    text        <bos>  ball:2  1<->2  2<->3  ball:1
    labels      -100   -100    ball:2 ball:1 ball:1

`text` is the prompt and the answer. The labels are aligned as transformers has them: the label at a position is
predicted from the positions before it. They ask for the state after *every* move, and the states in the middle appear
in the labels only, never in the text: where `labels` and `input_ids` differ, the model is asked but not told. So the
state cannot be copied from an earlier answer, each prefix of a prompt is an example too, and the last label is the
answer that `generate` gives.
"""

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerFast

from .counts import plain_counts, whole_number
from .tokenizer import BOS_TOKEN, IGNORE_INDEX, word_tokenizer


# one game in so many is a test game
TEST_SHARE = 8
MANY_GAMES = 10_000

# the state a game starts in, and its moves
Game = tuple[int, list[str]]


@dataclass(frozen=True)
class StateTracking:
    """A machine with a few states, moved from one to another by the words of a text.

    Args:
        states (`tuple[str, ...]`): the word for each state, in a prompt (where the machine starts) and as the answer
            (where it ends).
        moves (`dict[str, tuple[int, ...]]`): for each move, by its word, the index of the state that each state turns
            into.
    """

    states: tuple[str, ...]
    moves: dict[str, tuple[int, ...]]

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer that the rows are made with; to be saved beside the model."""
        return word_tokenizer([*self.states, *self.moves])

    def play(self, start: int, moves: Sequence[str]) -> list[int]:
        """The state before the first move and after each one, `len(moves) + 1` indices."""
        trace = [start]
        for move in moves:
            trace.append(self.moves[move][trace[-1]])
        return trace

    @plain_counts
    def splits(
        self, num_train: int, num_test: int, num_moves: int, curriculum: float = 0.0, seed: int = 0
    ) -> DatasetDict:
        """Draw training and test games.

        Whether a game of `num_moves` moves is for training or for testing depends on the game alone. So no test game
        is in a training split, whatever the seeds of the two are. But a shorter one may be the beginning of a training
        game, whose states are asked for: what is trained with so many moves must not be tested with fewer. Training
        games are drawn with repetition, as many as wanted; test games are distinct.

        Args:
            num_train (`int`): rows of the split `"train"`.
            num_test (`int`): rows of the split `"test"`.
            num_moves (`int`): moves of a game.
            curriculum (`float`): the share of the training rows, from the first on, over which games are cut short:
                the length grows evenly from one move to `num_moves`. To take effect the rows must be read in order,
                with `TrainingArguments(train_sampling_strategy="sequential")`. Test games are never cut.
            seed (`int`): seed of the draw; the same seed gives the same rows.

        Returns:
            `DatasetDict`: columns `prompt` and `answer` (text), `input_ids` and `labels` (of one length in a row,
            `-100` where there is no label), and `difficulty` (the number of moves).

        Raises:
            ValueError: if an argument is out of range, or there are not so many games for a split.
        """
        _check_sizes(num_train, num_test, num_moves, curriculum)
        rng = random.Random(seed)
        train = self._draw("train", num_train, num_moves, rng)
        test = self._draw("test", num_test, num_moves, rng)
        train = [
            (start, moves[: _length(i / num_train, num_moves, curriculum)]) for i, (start, moves) in enumerate(train)
        ]
        return DatasetDict({"train": self._dataset(train), "test": self._dataset(test)})

    def _draw(self, split: str, num_games: int, num_moves: int, rng: random.Random) -> list[Game]:
        """Random games of one split; those for testing are distinct."""
        num_states, words = len(self.states), list(self.moves)
        # a game as one number: its digits are the moves, and what is left is the start
        num_codes = num_states * len(words) ** num_moves
        is_test = split == "test"
        needed = num_games if is_test else 1
        # among many more games than needed there are enough for sure; few can be counted
        if num_codes < max(MANY_GAMES, 2 * TEST_SHARE * needed):
            available = sum(_is_test_game(code) == is_test for code in range(num_codes))
            if available < needed:
                raise ValueError(
                    f"num_{split} must be at most {available}, the number of games of {num_moves} moves for it, "
                    f"got {num_games}"
                )
        codes: list[int] = []
        seen: set[int] = set()
        while len(codes) < num_games:
            code = rng.randrange(num_codes)
            if _is_test_game(code) == is_test and code not in seen:
                codes.append(code)
                if is_test:
                    seen.add(code)
        games = []
        for code in codes:
            moves = []
            for _ in range(num_moves):
                code, move = divmod(code, len(words))
                moves.append(words[move])
            games.append((code, moves))
        return games

    def _dataset(self, games: list[Game]) -> Dataset:
        vocabulary = self.tokenizer().get_vocab()
        rows: dict[str, list] = {name: [] for name in ("prompt", "answer", "input_ids", "labels", "difficulty")}
        for start, moves in games:
            trace = [self.states[state] for state in self.play(start, moves)]
            words = [BOS_TOKEN, trace[0], *moves, trace[-1]]
            rows["prompt"].append(" ".join(words[1:-1]))
            rows["answer"].append(words[-1])
            rows["input_ids"].append([vocabulary[word] for word in words])
            # nothing is asked of `<bos>` and the start; the state before the first move is asked after the start
            rows["labels"].append([IGNORE_INDEX, IGNORE_INDEX, *(vocabulary[word] for word in trace)])
            rows["difficulty"].append(len(moves))
        return Dataset.from_dict(rows)


def _is_test_game(code: int) -> bool:
    # a checksum rather than the code's remainder, which would tie the split to single moves
    return zlib.crc32(str(code).encode()) % TEST_SHARE == 0


def _length(progress: float, num_moves: int, curriculum: float) -> int:
    """Count the moves of a training game at `progress` (0 to 1) through the training rows."""
    if progress >= curriculum:
        return num_moves
    return 1 + int((num_moves - 1) * progress / curriculum)


def _check_sizes(num_train: int, num_test: int, num_moves: int, curriculum: float) -> None:
    for name, value in (("num_train", num_train), ("num_test", num_test), ("num_moves", num_moves)):
        if whole_number(value) is None or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    if not 0 <= curriculum <= 1:
        raise ValueError(f"curriculum must be between 0 and 1, got {curriculum!r}")
