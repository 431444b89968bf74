"""What a look inside the loops of a model at one prompt found, and the file that keeps it."""

import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..field_values import build
from ..files import read_json, write_text


INSPECTION_FILE = "inspect.json"
# the lens of the model's own readout, through the layers after the loops
ANSWER = "answer"


@dataclass
class Inspection:
    """The most probable next token after every loop, and how the state moves, at the last tokens of a prompt.

    `R` is the number of loops and `N` that of the tokens. A number that is not known is `None`: of a step, where the
    state before it is not; all, where the state has overflowed.

    Args:
        label (`str`): the model, as the figure names it.
        prompt (`str`): the prompt.
        readout (`str`): what was read: `"answer"`, the model's own answer after every loop, or `"layer 3"`, the output
            of that layer in every loop, through the final norm and the head.
        trained_loops (`int`): the loops of the model's configuration.
        positions (`list[int]`): the positions of the tokens in the prompt, from 0.
        tokens (`list[str]`): the tokens.
        top (`list[list[str]]`): the most probable next token, `R` lists of `N`.
        probability (`list[list[float]]`): its probability.
        step_norm (`list[float]`): the norm of every loop's step over that of the state, mean over the tokens, `R`;
            so are the next three, of the tokens that moved.
        cosine (`list[float]`): the cosine of a step and the one before.
        acceleration (`list[float]`): the norm of the difference of these steps.
        distance_to_final (`list[float]`): distance of the state after a loop to the last, over the norm of the last.
        periods (`list[int]`): of every token, the period of the cycle that its state has reached; 1 for a fixed point,
            0 for none.
        since (`list[int]`): of every token, the loops after which its state is first in this cycle.
        followed (`str`, *optional*): a token that was followed.
        followed_rank (`list[list[int]]`, *optional*): the number of tokens that are more probable, `R` lists of `N`.
        followed_probability (`list[list[float]]`, *optional*): its probability.

    Raises:
        ValueError: if a field has another number of loops or tokens than the others.
    """

    label: str
    prompt: str
    readout: str
    trained_loops: int
    positions: list[int]
    tokens: list[str]
    top: list[list[str]]
    probability: list[list[float | None]]
    step_norm: list[float | None]
    cosine: list[float | None]
    acceleration: list[float | None]
    distance_to_final: list[float | None]
    periods: list[int]
    since: list[int]
    followed: str | None = None
    followed_rank: list[list[int]] | None = None
    followed_probability: list[list[float | None]] | None = None

    def __post_init__(self) -> None:
        num_loops, num_tokens = len(self.top), len(self.tokens)
        if not num_loops or not num_tokens:
            raise ValueError(f"an inspection needs loops and tokens, got {num_loops} loops and {num_tokens} tokens")
        for name in ("step_norm", "cosine", "acceleration", "distance_to_final", "probability"):
            if len(getattr(self, name)) != num_loops:
                raise ValueError(f"`{name}` must have {num_loops} loops, got {len(getattr(self, name))}")
        tables = [self.top, self.probability, self.followed_rank or [], self.followed_probability or []]
        rows: list[Any] = [self.positions, self.periods, self.since, *(row for table in tables for row in table)]
        for row in rows:
            if len(row) != num_tokens:
                raise ValueError(f"an inspection of {num_tokens} tokens must have as many entries, got {len(row)}")

    @property
    def num_loops(self) -> int:
        """Number of loops."""
        return len(self.top)

    def settled(self, column: int = -1) -> int:
        """Return the number of loops from which on the most probable token is the last one, at a token."""
        answers = [row[column] for row in self.top]
        last = next((loop for loop in range(len(answers), 0, -1) if answers[loop - 1] != answers[-1]), 0)
        return last + 1

    def save(self, path: str | Path) -> None:
        """Write the inspection to a JSON file, whole or not at all."""
        write_text(path, json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Inspection":
        """Read an inspection that [`~Inspection.save`] wrote.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it does not hold an inspection; the message names it.
        """
        return build(cls, read_json(path), f"the inspection {path}")


def to_markdown(inspection: Inspection, figure: str, level: int = 2) -> str:
    """Return a section of a model card: the figure and what it shows, in two sentences.

    Args:
        inspection (`Inspection`): what was found.
        figure (`str`): the figure's file, from the card.
        level (`int`, *optional*, defaults to 2): the level of the heading.
    """
    count, last = inspection.num_loops, inspection.tokens[-1]
    what = "answer" if inspection.readout == ANSWER else f"logit lens of {inspection.readout}"
    share = probability_text(inspection.probability[-1][-1])
    answer = (
        f"The {what} after every loop at the end of the prompt {_code(inspection.prompt)}: after {_code(last)} it is "
        f"{_code(inspection.top[-1][-1])} (probability {share}) at {count} loops, "
        f"{'at once' if inspection.settled() == 1 else f'from loop {inspection.settled()} on'}."
    )
    steps = [(loop, step) for loop, step in enumerate(inspection.step_norm, start=1) if step is not None]
    moves = "How far the state moves in a loop is not known."
    if steps:
        (first, start), (final, end) = steps[0], steps[-1]
        moves = f"A loop moves the state by {start:.2g} of its norm in loop {first} and by {end:.2g} in loop {final}."
    alt = f"The most probable next token after each of {count} loops, and the step of the state in every loop."
    return f"{'#' * level} Inside the loops\n\n![{alt}]({figure})\n\n{answer} {moves}\n"


def _code(text: str) -> str:
    """Return text as code in Markdown, on one line."""
    text = " ".join(text.split()) or text
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    # a text that touches the fence with a backtick needs the spaces, which are not shown
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"


def probability_text(value: float | None) -> str:
    """Return a probability with two decimals, or a dash where there is none."""
    return "–" if value is None else f"{value:.2f}"


def known(values: Any) -> list[float | None]:
    """Return numbers as a list, with `None` for those that are not finite."""
    return [value if math.isfinite(value) else None for value in map(float, values)]


__all__ = ["ANSWER", "INSPECTION_FILE", "Inspection", "probability_text", "to_markdown"]
