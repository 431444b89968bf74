"""The report of a study: tables, verdicts and figures that a person reads in five minutes."""

import json
from pathlib import Path
from typing import Any

from ..files import write_text
from .depth_control_results import DepthControls
from .markdown import markdown_table
from .study_gaps import seeds_of, state_of
from .study_plots import compute_points, plot_compute, plot_difficulties, plot_growth, plot_heat_maps
from .study_results import MeasuredRun, StudyRuns
from .study_statistics import SeedSpread, spread_of, verdict


REPORT_FILE, SECTION_FILE, SUMMARY_FILE = "report.md", "card_section.md", "summary.json"
FIGURES = {
    "accuracy_over_difficulty.png": plot_difficulties,
    "loops_and_difficulty.png": plot_heat_maps,
    "accuracy_over_compute.png": plot_compute,
    "growth_of_the_state.png": plot_growth,
}


def write_report(runs: StudyRuns, folder: Path, command: str) -> list[Path]:
    """Write the report of what was measured so far, with its figures, a section for a model card, and the numbers.

    Args:
        runs (`StudyRuns`): the runs.
        folder (`Path`): the folder to write into.
        command (`str`): how the study was run, for the report.

    Returns:
        `list[Path]`: the files.

    Raises:
        ValueError: if nothing was measured yet.
    """
    if not runs.runs:
        raise ValueError(f"{folder} holds no measured run yet; hf-loop study run makes them")
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    files = []
    for name, plot in FIGURES.items():
        plot(runs, folder / "figures" / name)
        files.append(folder / "figures" / name)
    texts = {
        SUMMARY_FILE: json.dumps(summary(runs), indent=1) + "\n",
        SECTION_FILE: card_section(runs),
        REPORT_FILE: report(runs, command),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
        files.append(folder / name)
    return files


def report(runs: StudyRuns, command: str) -> str:
    """Return the report as markdown."""
    study = runs.study
    parts = [f"# {study.title}", study.question, state_of(runs)]
    parts += ["## Answer", "\n".join(f"- {line}" for line in answers(runs))]
    parts += ["## Accuracy at the trained depth", _MAIN_NOTE, main_table(runs), _figure(0, "accuracy over difficulty")]
    parts += ["## Against the reference", _PAIRS_NOTE, pairs_table(runs)]
    parts += ["## More loops, harder rows", _LOOPS_NOTE, loops_table(runs), _figure(1, "loops and difficulty")]
    parts += ["## Compute", _COMPUTE_NOTE, arms_table(runs), _figure(2, "accuracy over compute")]
    if any(run.controls for run in runs.runs.values()):
        parts += ["## What the readout does not read", _CONTROLS_NOTE, controls_table(runs)]
    parts += ["## Growth of the state", _GROWTH_NOTE, _figure(3, "growth of the state")]
    if study.limits:
        parts += ["## What this cannot show", "\n".join(f"- {line}" for line in study.limits)]
    expected = [f"- {study.title_of(name)}: {task.expected}" for name, task in study.tasks.items() if task.expected]
    if expected:
        parts += ["## What was expected", "\n".join(expected)]
    parts += ["## How to repeat it", f"```\n{command}\n```", _facts(runs)]
    return "\n\n".join(part for part in parts if part) + "\n"


_MAIN_NOTE = (
    "Exact match on rows that are in no training split, over the difficulties of training: mean over the seeds, and "
    "their range. An arm with loops runs the measured loop count nearest to its configuration's."
)
_PAIRS_NOTE = (
    "The reference minus the other arm, run by run with the same seed: mean and 95 % confidence interval (Student's t "
    "over the seeds, and the sampling of rows). *No difference shown* means that the interval holds 0; with few seeds "
    "it is wide."
)
_LOOPS_NOTE = (
    "Of the arms that were measured at several loop counts. *Trained* is the loop count of the configuration, and the "
    "deepest that was measured. *Overthinking* is the best accuracy over loops minus that at the deepest, on the "
    "difficulties of training. *Beyond training* are rows harder than any in training. An arm that was trained with "
    "one loop is here looped at inference only."
)
_COMPUTE_NOTE = (
    "Counted, not timed: matrix products of the layers and the head and attention by length, forward and backward, at "
    "the depths that training drew. *One answer* is at the difficulties of training and the trained depth."
)
_CONTROLS_NOTE = (
    "The gap is the loss after k loops minus that after all, on the labels of half of the test rows. *Temperature* "
    "and *affine* are the shares of it that go away when both depths are read with a readout fitted on the other "
    "half: they were no lack of computation. *Frozen* is the share that goes away when the step of loop k is added "
    "again in place of the loops left out. After the Depth Control Protocol "
    "(https://huggingface.co/papers/2609.19934)."
)
_GROWTH_NOTE = "Root mean square of the state after every loop, on one batch of test rows, in the mean over the seeds."


def _figure(index: int, text: str) -> str:
    return f"![{text}](figures/{list(FIGURES)[index]})"


def trained_accuracy(runs: StudyRuns, task: str, arm: str) -> SeedSpread | None:
    """Return the accuracy of an arm on the difficulties of training at its trained depth, over the seeds."""
    return spread_of([_accuracy(runs, task, run) for run in runs.of(task, arm)])


def _accuracy(runs: StudyRuns, task: str, run: MeasuredRun, beyond: bool = False) -> float:
    trained, harder = runs.difficulties(task)
    difficulties = harder if beyond else trained or harder
    return run.accuracy(run.reading_loops, difficulties)


def differences(runs: StudyRuns, task: str, other: str, beyond: bool = False) -> SeedSpread | None:
    """Return the accuracy of the reference minus that of another arm, for each seed that both have."""
    trained, harder = runs.difficulties(task)
    if beyond and not harder:
        return None
    pairs = runs.pairs(task, str(runs.study.reference), other)
    if not pairs:
        return None
    values = tuple(_accuracy(runs, task, one, beyond) - _accuracy(runs, task, two, beyond) for one, two in pairs)
    # as if the arms were measured on rows of their own, which is on the safe side
    means = [sum(_accuracy(runs, task, run, beyond) for run in arm) / len(pairs) for arm in zip(*pairs, strict=True)]
    one = pairs[0][0]
    num_rows = sum(cell.num_rows for cell in one.cells_at(one.reading_loops, harder if beyond else trained or harder))
    return SeedSpread(values, sum(mean * (1 - mean) for mean in means) / num_rows)


def answers(runs: StudyRuns) -> list[str]:
    """Return the answer in sentences: on which tasks the reference is better or worse than each other arm."""
    study = runs.study
    lines = []
    for arm in study.others:
        for beyond in (False, True):
            found: dict[str, list[str]] = {}
            for task in study.tasks:
                spread = differences(runs, task, arm, beyond)
                if spread is not None:
                    seeds = seeds_of(runs, [str(study.reference), arm], len(spread.values))
                    said = f"{study.title_of(task)} ({spread.mean:+.2f}{seeds})"
                    found.setdefault(verdict(spread), []).append(said)
            where = "on rows harder than any in training" if beyond else "on the difficulties of training"
            said = "; ".join(f"{word}: {', '.join(tasks)}" for word, tasks in sorted(found.items()))
            if said:
                titles = f"**{study.title_of(str(study.reference))}** against **{study.title_of(arm)}**"
                lines.append(f"{titles}, {where}: {said}.")
    return lines


def main_table(runs: StudyRuns) -> str:
    """Return the table of tasks x arms."""
    study = runs.study
    rows = []
    for task in study.tasks:
        found = [run for arm in study.arms for run in runs.of(task, arm)]
        trained, beyond = runs.difficulties(task)
        guesses = found[0].guessing if found else {}
        shares = [share for value, share in guesses.items() if value in (trained or beyond)]
        guess = f"{sum(shares) / len(shares):.2f}" if shares else ""
        cells = []
        for arm in study.arms:
            spread = trained_accuracy(runs, task, arm)
            cells.append("" if spread is None else spread.format() + seeds_of(runs, [arm], len(spread.values)))
        rows.append([study.title_of(task), _span(trained), guess, *cells])
    return markdown_table(["task", "difficulties", "guessing", *map(study.title_of, study.arms)], rows)


def pairs_table(runs: StudyRuns) -> str:
    """Return the table of paired differences from the reference."""
    study = runs.study
    rows = []
    for task in study.tasks:
        for arm in study.others:
            for beyond in (False, True):
                spread = differences(runs, task, arm, beyond)
                if spread is not None:
                    interval = spread.interval()
                    shown = "" if interval is None else f"{interval[0]:+.2f} to {interval[1]:+.2f}"
                    where = "beyond training" if beyond else "as in training"
                    seeds = seeds_of(runs, [str(study.reference), arm], len(spread.values))
                    names = [study.title_of(task), study.title_of(arm) + seeds, where]
                    rows.append([*names, f"{spread.mean:+.2f}", shown, verdict(spread)])
    return markdown_table(["task", "against", "rows", "difference", "95 % interval", "the reference is"], rows)


def loops_table(runs: StudyRuns) -> str:
    """Return the table of what other loop counts do, for every arm that was measured at several."""
    study = runs.study
    rows = []
    for task in study.tasks:
        for arm in study.arms:
            found = runs.of(task, arm)
            if found and len(found[0].loops) > 1:
                rows.append([study.title_of(task), study.title_of(arm), *_loops_cells(runs, task, found)])
    headings = ["task", "arm", "trained", "best at", "best", "overthinking", "beyond training"]
    return markdown_table([*headings, "beyond, trained loops", "beyond, deepest"], rows)


def _loops_cells(runs: StudyRuns, task: str, found: list[MeasuredRun]) -> list[str]:
    trained, beyond = runs.difficulties(task)
    easy = [{count: run.accuracy(count, trained or beyond) for count in run.loops} for run in found]
    best = [max(shares, key=lambda count: (shares[count], -(count or 0))) for shares in easy]
    cells = [
        f"{found[0].trained_loops} of {found[0].loops[-1]}",
        ", ".join(map(str, sorted({count or 0 for count in best}))),
        _format(spread_of([max(shares.values()) for shares in easy])),
        _format(spread_of([max(shares.values()) - shares[run.loops[-1]] for shares, run in zip(easy, found)])),
    ]
    if not beyond:
        return [*cells, "", "", ""]
    at_trained = [run.accuracy(run.reading_loops, beyond) for run in found]
    deepest = [run.accuracy(run.loops[-1], beyond) for run in found]
    return [*cells, _span(beyond), _format(spread_of(at_trained)), _format(spread_of(deepest))]


def arms_table(runs: StudyRuns) -> str:
    """Return the table of what the arms cost."""
    study = runs.study
    rows = []
    for task in study.tasks:
        for arm in study.arms:
            found = runs.of(task, arm)
            if not found:
                continue
            run = found[0]
            trained, beyond = runs.difficulties(task)
            cells = [
                cell
                for cell in run.cells
                if cell.loops == run.reading_loops
                and cell.difficulty in (trained or beyond)
                and cell.votes == min(other.votes for other in run.cells)
            ]
            answer = sum(cell.flops * cell.num_rows for cell in cells) / sum(cell.num_rows for cell in cells)
            seconds = spread_of([other.seconds for other in found])
            rows.append(
                [
                    study.title_of(task), study.title_of(arm), f"{run.num_parameters:,}", f"{run.num_steps:,}",
                    f"{run.training_flops:.2e}", f"{answer:.2e}", _format(seconds, 0),
                ]
            )  # fmt: skip
    heads = ["task", "arm", "parameters", "steps", "training", "one answer", "processor seconds"]
    return markdown_table(heads, rows)


def controls_table(runs: StudyRuns) -> str:
    """Return the table of what the controls of depth explain, in the mean over the seeds."""
    study, rows = runs.study, []
    for task in study.tasks:
        for arm in study.arms:
            found = [DepthControls.from_dict(run.controls) for run in runs.of(task, arm) if run.controls]
            for loops in [row.loops for row in found[0].rows[:-1]] if found else []:
                shares = [controls.explained_share(loops) for controls in found]
                explained = []
                for name in ("temperature", "affine", "frozen"):
                    explained.append(
                        _format(spread_of([value for share in shares if (value := share[name]) is not None]))
                    )
                gap = _format(spread_of([controls.gap(loops) for controls in found]))
                rows.append([study.title_of(task), study.title_of(arm), str(loops), gap, *explained])
    return markdown_table(["task", "arm", "loops", "gap, nats", "temperature", "affine", "frozen"], rows)


def card_section(runs: StudyRuns) -> str:
    """Return a section for a model card: question, answer and the main table."""
    study = runs.study
    lines = "\n".join(f"- {line}" for line in answers(runs))
    return "\n\n".join([f"## {study.title}", study.question, lines, main_table(runs), _figure(0, "accuracy")]) + "\n"


def summary(runs: StudyRuns) -> dict[str, Any]:
    """Return the numbers of the report."""
    study = runs.study
    return {
        "title": study.title,
        "missing_runs": runs.num_missing,
        "failed_runs": [
            {"task": t, "arm": a, "seed": s, "error": error} for (t, a, s), error in runs.failures.items()
        ],
        "accuracy": {
            task: {arm: list(spread.values) for arm in study.arms if (spread := trained_accuracy(runs, task, arm))}
            for task in study.tasks
        },
        "differences": {
            task: {arm: list(spread.values) for arm in study.others if (spread := differences(runs, task, arm))}
            for task in study.tasks
        },
        "compute": {task: {arm: compute_points(runs, task, arm) for arm in study.arms} for task in study.tasks},
    }


def _facts(runs: StudyRuns) -> str:
    some = next(iter(runs.runs.values()))
    minutes = sum(run.seconds for run in runs.runs.values()) / 60
    versions = ", ".join(f"{name} {version}" for name, version in some.versions.items())
    return f"Training took {minutes:.0f} minutes of processor time in all. Versions: {versions}."


def _format(spread: SeedSpread | None, decimals: int = 2) -> str:
    return "" if spread is None else spread.format(decimals)


def _span(difficulties: list[int]) -> str:
    if len(difficulties) < 2:
        return ", ".join(map(str, difficulties))
    return f"{difficulties[0]} to {difficulties[-1]}"
