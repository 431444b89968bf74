"""The page of a puzzle model."""

import random
from typing import Any

from .page import MODEL_QUEUE, Page, check_length, import_gradio
from .puzzle_html import draw_answer, draw_segments
from .puzzle_reading import PuzzleReader
from .style import fault


# the segments to choose from, over those of training
TIMES_TRAINED = 2
# characters that a puzzle may have
MOST_CELLS = 2500


def read_puzzle(
    reader: PuzzleReader, text: str, segments: float, loops: float, puzzle_id: float | None
) -> tuple[str, str]:
    """Solve a puzzle as the page does, and draw it.

    Returns:
        `tuple[str, str]`: the answer and the segments, as HTML; if the puzzle does not fit, the first says why.
    """
    try:
        check_length("the puzzle", text, MOST_CELLS)
        reading = reader.read(text, int(segments), int(loops), None if puzzle_id is None else int(puzzle_id))
    except ValueError as error:
        return fault(str(error)), ""
    return draw_answer(reading), draw_segments(reading)


def puzzle_page(reader: PuzzleReader, page: Page) -> Any:
    """Build the page of a puzzle model.

    Args:
        reader (`PuzzleReader`): solves its puzzles.
        page (`Page`): what stands on the page besides.

    Returns:
        `gradio.Blocks`: the page.
    """
    gr: Any = import_gradio()
    config = reader.model.config
    example = reader.example(0)
    with page.blocks() as blocks:
        cells = gr.Textbox(
            as_lines(example or ""), label="Puzzle", lines=4, max_lines=12, max_length=MOST_CELLS, elem_id="prompt",
            placeholder="The cells row after row, one character each",
            info="Cells row after row, blanks as 0 or a dot",
        )  # fmt: skip
        with gr.Row():
            segments = gr.Slider(
                1, TIMES_TRAINED * config.max_segments, config.max_segments, step=1, label="Segments", elem_id="depth"
            )
            loops = gr.Slider(
                1, max(4, 2 * config.num_loops), config.num_loops, step=1, label="Slow cycles of a segment",
                elem_id="loops",
            )  # fmt: skip
            puzzle_id: Any = gr.State(None)
            if config.num_puzzles > 1:
                puzzle_id = gr.Slider(0, config.num_puzzles - 1, 0, step=1, label="Puzzle id", elem_id="puzzle-id")
        with gr.Row():
            run = gr.Button("Solve", variant="primary", elem_id="run")
            another = gr.Button("Another puzzle", elem_id="another", visible=example is not None)
        answer = gr.HTML(elem_id="answer")
        gr.Markdown("### Segment by segment")
        boards = gr.HTML(elem_id="segments")

        def read(*values: Any) -> tuple[str, str]:
            return read_puzzle(reader, *values)

        triggers = [run.click, cells.submit, segments.change, loops.change]
        if config.num_puzzles > 1:
            triggers.append(puzzle_id.change)
        if example is not None:
            triggers.append(blocks.load)
        inputs = [cells, segments, loops, puzzle_id]
        gr.on(triggers, read, inputs, [answer, boards], trigger_mode="always_last", **MODEL_QUEUE)
        drawn = another.click(lambda: as_lines(reader.example(random.randrange(1 << 30)) or ""), None, cells)
        drawn.then(read, inputs, [answer, boards], **MODEL_QUEUE)
    return blocks


def as_lines(cells: str) -> str:
    """Write the cells of a square row by row."""
    side = round(len(cells) ** 0.5)
    if not cells or side * side != len(cells):
        return cells
    return "\n".join(cells[start : start + side] for start in range(0, len(cells), side))


__all__ = ["as_lines", "puzzle_page", "read_puzzle"]
