"""Draws what the page shows of a prompt."""

import os
from html import escape
from itertools import groupby

from ..analysis.inspection_results import Inspection, probability_text
from .depth import DepthSlider
from .memory_view import MemoryView
from .style import fill, note, section
from .text_reading import ExitView, TextReading


# characters of a token in a cell
LONGEST_TOKEN = 12
# pixels of the longest bar
BAR_WIDTH = 46
# of the colour of a cell, what one that a token skips has
SKIPPED = 0.3


def draw_continuations(reading: TextReading, slider: DepthSlider | None) -> str:
    """Draw the continuations side by side; what differs from the chosen depth is marked."""
    chosen = reading.continuations[reading.depth]
    columns = []
    for depth, text in reading.continuations.items():
        heading = "continuation" if slider is None or depth is None else slider.heading(depth)
        kind = "column chosen" if depth == reading.depth else "column"
        columns.append(f'<div class="{kind}"><h4>{escape(heading)}</h4><p>{_marked(text, chosen)}</p></div>')
    what = note("Framed: the depth of the slider. Coloured: from where another depth writes something else.")
    return section(f'<div class="columns">{"".join(columns)}</div>', what if len(columns) > 1 else "")


def _marked(text: str, chosen: str) -> str:
    if not text.strip():
        what = f"white space: {escape(repr(text))}" if text else "nothing: the model ends the text here"
        return f"<em>{what}</em>"
    same = len(os.path.commonprefix([text, chosen]))
    rest = f'<span class="other">{escape(text[same:])}</span>' if text[same:] else ""
    return f"{escape(text[:same])}{rest}"


def draw_lens(reading: TextReading) -> str:
    """Draw the answer after every loop at every token, and where the tokens exit."""
    found = reading.inspection
    if found is None:
        return section(note("This model has no loops, so that there is no answer before the last layer."))
    num_prompt = len(found.tokens) - reading.num_new
    rows = [_row(reading, loop, num_prompt) for loop in range(1, found.num_loops + 1)]
    table = f'<table class="lens"><thead>{_heading(found, num_prompt)}</thead><tbody>{"".join(rows)}</tbody></table>'
    what = note(
        "A row is a loop, a column a token that was read. A cell has the most probable next token if the model "
        "stopped there; the bluer, the more probable. A bar is how far a loop moves the state, "
        "as a share of its norm, in the mean over these tokens."
    )
    return section(f'<div class="scroll">{table}</div>', what, _exits(reading.exits))


def _heading(found: Inspection, num_prompt: int) -> str:
    parts = [(num_prompt, "prompt", ""), (len(found.tokens) - num_prompt, "continuation", "first-new")]
    spans = "".join(f'<th colspan="{count}" class="{kind}">{name}</th>' for count, name, kind in parts if count)
    tokens = "".join(
        f'<th class="{"first-new" if column == num_prompt else ""}" title="{escape(token)}">{_cut(token)}</th>'
        for column, token in enumerate(found.tokens)
    )
    return f'<tr class="parts"><th></th><th></th>{spans}</tr><tr><th>loops</th><th>step / state</th>{tokens}</tr>'


def _row(reading: TextReading, loop: int, num_prompt: int) -> str:
    found, exits = reading.inspection, reading.exits
    assert found is not None
    cells = []
    for column, (token, share) in enumerate(zip(found.top[loop - 1], found.probability[loop - 1], strict=True)):
        kinds, shade = ["first-new"] if column == num_prompt else [], share
        if exits is not None and loop >= exits.loops[column]:
            is_skipped = loop > exits.loops[column]
            kinds.append("skipped" if is_skipped else "exit")
            # pale, so that its text stays dark
            shade = share * SKIPPED if is_skipped and share is not None else share
        title = escape(f"{found.tokens[column]} → {token}, {probability_text(share)}, loop {loop}")
        cells.append(f'<td class="{" ".join(kinds)}" title="{title}"{fill(shade)}>{_cut(token)}</td>')
    is_trained = loop == found.trained_loops
    count = f"{loop} (trained)" if is_trained else str(loop)
    step = _bar(found.step_norm, loop)
    return f'<tr class="{"trained" if is_trained else ""}"><th>{count}</th>{step}{"".join(cells)}</tr>'


def _bar(steps: list[float | None], loop: int) -> str:
    step = steps[loop - 1]
    if step is None:
        return '<td class="step"></td>'
    longest = max(value for value in steps if value is not None)
    width = BAR_WIDTH * step / longest if longest else 0
    return f'<td class="step"><span class="bar" style="width: {width:.0f}px"></span>{step:.2g}</td>'


def _exits(exits: ExitView | None) -> str:
    if exits is None:
        return ""
    count, mean = len(exits.loops), sum(exits.loops) / len(exits.loops)
    return note(
        f"Exits by {exits.criterion} at {exits.threshold:g}: these {count} tokens run {mean:.1f} of {exits.num_loops} "
        f"loops in the mean ({exits.share_skipped:.0%} are skipped), and {sum(exits.is_same)} of {count} still have "
        "the next token that all loops give. A frame is where a token exits; what it skips is pale. The text is read "
        "at once, and a text that is written token by token may exit at other loops."
    )


def draw_memory(reading: TextReading) -> str:
    """Draw which tokens a feedback or sleep model still reads, block by block."""
    memory = reading.memory
    if memory is None:
        return ""
    start = len(memory.blocks) - len(reading.tokens)
    columns = zip(memory.blocks[start:], memory.is_read[start:], reading.tokens, strict=True)
    blocks = []
    for block, tokens in groupby(columns, key=lambda column: column[0]):
        pieces = [
            f'<span class="token{"" if is_read else " gone"}">{_cut(token)}</span>' for _, is_read, token in tokens
        ]
        blocks.append(f'<div class="block"><h4>{memory.unit} {block + 1}</h4>{"".join(pieces)}</div>')
    return section(f'<div class="memory">{"".join(blocks)}</div>', note(_memory_sentence(memory)))


def _memory_sentence(memory: MemoryView) -> str:
    count, unread = len(memory.blocks), len(memory.blocks) - memory.num_read
    rest = "Nothing else has been read."
    if unread:
        kept = f"through the memory alone: {memory.memory}" if memory.remembers else f"not at all: {memory.memory}"
        rest = f"It knows the other {unread} {kept}."
    return (
        f"{count} tokens in {memory.unit}s of {memory.size}. The next token reads {memory.num_read} of them directly "
        f"(coloured). {rest}"
    )


def _cut(token: str) -> str:
    return escape(token if len(token) <= LONGEST_TOKEN else f"{token[: LONGEST_TOKEN - 1]}…")


__all__ = ["draw_continuations", "draw_lens", "draw_memory"]
