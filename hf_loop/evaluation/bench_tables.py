"""The results of a benchmark of decoding as tables, and as a Markdown page with its figure."""

from .bench_results import TEXT, Bench, BenchRow, Spread
from .markdown import markdown_table


HEADINGS = (
    *("decoding", "loops", "perplexity", "accuracy", "tokens/s", "time", "processor time", "cache a token"),
    "peak memory",
)
NOTES = (
    "Time is that of the first row in the same round, times the number: median ± half the distance between the "
    "quartiles; below 1 is faster. Loops, perplexity and accuracy (of the most probable next token) are measured on "
    "{num_tokens} tokens of text as each setting decodes, times on {new_tokens} greedily generated tokens for each "
    "prompt. Peak memory is what a run adds to that in use before it."
)


def table_rows(bench: Bench, batch: int) -> list[list[str]]:
    """Return the cells of a table of all rows at one batch size, under [`HEADINGS`]."""
    return [_cells(bench, row, batch) for row in bench.rows]


def refusals(bench: Bench, batch: int) -> list[str]:
    """Return one line for every row that the model refuses, with the reason."""
    lines = []
    for row in bench.rows:
        reasons = dict.fromkeys(row.refused[where] for where in (TEXT, str(batch)) if where in row.refused)
        lines += [f"{row.name} is refused: {reason}" for reason in reasons]
    return lines


def batches_of(bench: Bench) -> list[int]:
    """Return the batch sizes that were measured."""
    return sorted(map(int, bench.rounds))


def alt_text(bench: Bench) -> str:
    """Return what the figure shows, for those who do not see it."""
    first = bench.rows[0]
    parts = []
    for batch in batches_of(bench):
        timed = [(row, bench.ratio(row.name, batch)) for row in bench.rows if row.quality is not None]
        faster = [f"{row.name} {ratio.median:.2f}" for row, ratio in timed if ratio is not None and row is not first]
        parts.append(f"at batch {batch}: {', '.join(faster) or 'nothing else'}")
    return (
        f"Next-token accuracy and perplexity of {bench.label} against the time of a token, over that of {first.name}. "
        f"Times {'; '.join(parts)}."
    )


def to_markdown(bench: Bench, figure: str, level: int = 1) -> str:
    """Return a page, or a section of one, with the figure and a table for each batch size.

    Args:
        bench (`Bench`): the benchmark.
        figure (`str`): the figure's file, from the page.
        level (`int`, *optional*, defaults to 1): the level of the heading.
    """
    sizes = {"num_tokens": bench.settings["tokens"], "new_tokens": bench.settings["new_tokens"]}
    lines = [f"{'#' * level} Ways to decode with {bench.label}", ""]
    lines += [f"![{alt_text(bench)}]({figure})", "", NOTES.format(**sizes)]
    for batch in batches_of(bench):
        lines += [
            "",
            f"{'#' * level}# Batch {batch}",
            "",
            markdown_table(HEADINGS, table_rows(bench, batch)),
        ]
        refused = refusals(bench, batch)
        lines += ["", *(f"- {line}" for line in refused)] if refused else []
    return "\n".join(lines) + "\n"


def _cells(bench: Bench, row: BenchRow, batch: int) -> list[str]:
    quality, memory = row.quality, row.memory.get(str(batch))
    speed = bench.speed(row.name, batch)
    is_refused = str(batch) in row.refused
    return [
        row.name,
        "" if quality is None or quality.loops is None else f"{quality.loops:.2f}",
        ("refused" if TEXT in row.refused else "") if quality is None else _short(quality.perplexity),
        "" if quality is None else f"{100 * quality.accuracy:.2f} %",
        ("refused" if is_refused else "") if speed is None else f"{speed.median:.1f}",
        _ratio(bench.ratio(row.name, batch)),
        _ratio(bench.ratio(row.name, batch, of_processor=True)),
        "" if memory is None or memory.kv_bytes_per_token is None else _size(memory.kv_bytes_per_token),
        "" if memory is None or memory.peak_bytes is None else _size(memory.peak_bytes),
    ]


def _ratio(ratio: Spread | None) -> str:
    return "" if ratio is None else f"{ratio.median:.3f} ±{(ratio.high - ratio.low) / 2:.3f}"


def _short(value: float) -> str:
    return f"{value:.5g}"


def _size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} GiB"
