"""Runs a study: every run trains the model of a recipe, measures it, and writes `measured.json` into its folder.

A run that has been measured is not repeated, and one that was interrupted goes on from its last checkpoint. Runs are
spread over processes with one thread each, the longest first.
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

from ..files import read_json, write_text
from ..models.puzzle_loss import IGNORE_INDEX
from ..output_folders import remove
from .study import RunKey, Study, make_study
from .study_begun import check_begun, note_failure
from .study_plan import Plan, run_recipe_of
from .study_results import FAILED_FILE, MEASURED_FILE, NUM_LOOKED_AT, MeasuredRun, read_run, run_settings


# test rows are the same for all runs, whatever their seed
TEST_SEED = 1_000_003


class Finished(NamedTuple):
    """A run that has ended.

    Args:
        key (`RunKey`): which one.
        error (`str`, *optional*): why it failed, if it did.
        flops (`float`): the training compute that it stands for.
    """

    key: RunKey
    error: str | None
    flops: float


def missing_keys(study: Study, folder: Path, plans: dict[tuple[str, str], Plan]) -> list[RunKey]:
    """List the runs that are not measured yet.

    Raises:
        ValueError: if a run was measured, trained or begun under other settings than the study's.
    """
    missing = []
    for key in study.run_keys():
        plan, run_folder = plans[key.task, key.arm], key.folder(folder)
        if read_run(run_folder, run_settings(study, key, plan)) is not None:
            continue
        missing.append(key)
        if run_folder.is_dir() and study.arms[key.arm].checkpoint is None:
            check_begun(run_recipe_of(study, key.task, key.arm, key.seed, plan.num_steps, run_folder), run_folder)
    return missing


def run_study(
    study: Study, folder: Path, plans: dict[tuple[str, str], Plan], num_processes: int, num_threads: int = 1
) -> Iterator[Finished]:
    """Run what is missing of a study, and tell of each run as it ends. A run that fails does not stop the others.

    Args:
        study (`Study`): the study.
        folder (`Path`): its folder, whose lock the caller holds.
        plans (`dict[tuple[str, str], Plan]`): its plan.
        num_processes (`int`): processes that run at the same time.
        num_threads (`int`, *optional*, defaults to 1): threads of each.

    Raises:
        ValueError: if a run was measured under other settings than the study's.
    """
    missing = missing_keys(study, folder, plans)
    # a long run that begins last would keep one process busy while the others wait
    missing.sort(key=lambda key: -plans[key.task, key.arm].training_flops)
    # a fresh interpreter: torch's threads do not survive a fork
    settings = (num_threads, os.getpid())
    with ProcessPoolExecutor(num_processes, get_context("spawn"), _start_process, settings) as pool:
        futures = {
            pool.submit(run_one, study.source, key, asdict(plans[key.task, key.arm]), str(key.folder(folder))): key
            for key in missing
        }
        try:
            while futures:
                ended, _ = wait(futures, return_when=FIRST_COMPLETED)
                for future in ended:
                    key = futures.pop(future)
                    yield Finished(key, _outcome(future), plans[key.task, key.arm].training_flops)
        finally:
            # those that have not begun; after Ctrl-C nobody waits for them
            pool.shutdown(wait=True, cancel_futures=True)


def _outcome(future: Future) -> str | None:
    try:
        return future.result()
    except BrokenProcessPool:
        # the pool does not say whose process it was
        return "a process of the study was killed, perhaps for want of memory; run the study again to go on"


def _start_process(num_threads: int, parent: int) -> None:
    Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # what was imported before this has read OMP_NUM_THREADS, so that torch is told
    import torch

    torch.set_num_threads(num_threads)
    from .. import register

    register()
    _be_quiet()


def _end_with(parent: int) -> None:
    """End this process when its parent is gone: who was killed would otherwise go on writing, and hold its locks."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def _be_quiet() -> None:
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def run_one(source: dict[str, Any], key: RunKey, plan: dict[str, Any], folder: str) -> str | None:
    """Train and measure one run, in a process of its own.

    Args:
        source (`dict`): the study, as its file holds it.
        key (`RunKey`): which run.
        plan (`dict`): the fields of its plan.
        folder (`str`): its folder.

    Returns:
        `str`, *optional*: why the run failed, `None` if it did not.
    """
    study, key, run_folder = make_study(source), RunKey(*key), Path(folder)
    try:
        measured = train_and_measure(study, key, Plan(**plan), run_folder)
    # whatever it is, the other runs go on
    except Exception as error:
        return note_failure(run_folder, error)
    run_folder.mkdir(parents=True, exist_ok=True)
    write_text(run_folder / MEASURED_FILE, json.dumps(measured.to_dict(), indent=1) + "\n")
    (run_folder / FAILED_FILE).unlink(missing_ok=True)
    for checkpoint in run_folder.glob("checkpoint-*"):
        remove(checkpoint)
    return None


def train_and_measure(
    study: Study, key: RunKey, plan: Plan, folder: Path, on_cell: Callable[[], object] = lambda: None
) -> MeasuredRun:
    """Train the model of a run unless it is there, and measure it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ..loading import load_pretrained
    from .depth_controls import depth_controls
    from .readout_batches import split_rows
    from .study_measure import BATCH_SIZE, measure_answers, state_growth, with_tokenizer

    arm = study.arms[key.arm]
    seconds = train(study, key, plan, folder) if arm.checkpoint is None else 0.0
    source = arm.checkpoint or folder
    model: Any = load_pretrained(AutoModelForCausalLM, source)
    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    rows = test_rows(study, key.task)
    if arm.checkpoint is not None:
        rows = with_tokenizer(rows, tokenizer, example_rows(study, key.task))
    has_loops = getattr(model.config, "has_loops", False)
    counts: list[int] = (arm.loops or [model.config.num_loops]) if has_loops else []
    cells = measure_answers(model, tokenizer, rows, counts or [None], arm.votes, arm.thoughts, on_cell)
    controls = None
    if arm.controls and counts:
        cuts = [count for count in counts if count <= model.config.num_loops]
        controls = depth_controls(model, *split_rows(rows, BATCH_SIZE), cuts).to_dict()
    return MeasuredRun(
        settings=run_settings(study, key, plan),
        trained_loops=model.config.num_loops if has_loops else None,
        num_parameters=model.num_parameters(),
        num_steps=plan.num_steps,
        training_flops=plan.training_flops,
        seconds=seconds,
        guessing=guessing(rows),
        cells=cells,
        state_growth=state_growth(model, rows, counts[-1]) if counts else [],
        controls=controls,
    )


def train(study: Study, key: RunKey, plan: Plan, folder: Path) -> float:
    """Train the model of a run, from its last checkpoint if there is one; return the processor seconds it took since.

    The folder of a trained model is left as it is.
    """
    from ..trainer.run import RECIPE_COPY, run_recipe

    trained = folder / "trained.json"
    if trained.is_file():
        return float(read_json(trained)["seconds"])
    if (folder / RECIPE_COPY).is_file() and (folder / "config.json").is_file():
        # killed between the model and the note of its time
        return 0.0
    recipe = run_recipe_of(study, key.task, key.arm, key.seed, plan.num_steps, folder)
    if any(folder.glob("checkpoint-*")):
        recipe.training.resume_from_checkpoint = True  # ty: ignore[invalid-assignment]
    elif folder.is_dir():
        # nothing of a run that was stopped before its first checkpoint can be used
        shutil.rmtree(folder)
    start = time.process_time()
    run_recipe(recipe, quiet=True)
    seconds = time.process_time() - start
    write_text(trained, json.dumps({"seconds": seconds}) + "\n")
    return seconds


def test_rows(study: Study, task: str) -> Any:
    """Make the rows that the runs of a task are measured on."""
    section = study.tasks[task]
    splits = _task_splits(study, task, section.test_options, 1, section.num_test_rows)
    if section.test_split not in splits:
        raise ValueError(
            f"tasks.{task}.test_split must be one of {', '.join(map(str, splits))}, got {section.test_split!r}"
        )
    return splits[section.test_split]


def check_test_rows(study: Study, task: str) -> None:
    """Refuse rows that cannot be made, and test rows whose answer is asked for in the middle of training rows.

    A task keeps its own test rows apart. But where every word of a row is asked after, `test_options` that make rows
    shorter make beginnings of training rows. A sample of these is looked at.

    Raises:
        ValueError: names the task and what is wrong with its options.
    """
    tested = test_rows(study, task)
    if all(arm.checkpoint is not None for arm in study.arms.values()):
        return
    trained = _task_splits(study, task, {}, NUM_LOOKED_AT, 1, study.seeds[0])["train"]
    asked = {tuple(ids[:end]) for ids, ends in _asked_after(trained) for end in ends[:-1]}
    num_known = sum(tuple(ids[: ends[-1]]) in asked for ids, ends in _asked_after(tested))
    if num_known:
        raise ValueError(
            f"tasks.{task}: the answers of {num_known} of {len(tested)} test rows are asked for in training rows that "
            f"begin like them; test_options must not make rows shorter, got {study.tasks[task].test_options}"
        )


def _asked_after(rows: Any) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the tokens of every row, and the numbers of tokens after which something is asked."""
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        yield ids, [place for place, label in enumerate(labels) if label != IGNORE_INDEX]


def example_rows(study: Study, task: str) -> Any:
    """Make the solved rows that stand before every prompt of a checkpoint."""
    section = study.tasks[task]
    splits = _task_splits(study, task, section.test_options, max(1, section.num_examples), 1)
    return splits["train"].select(range(section.num_examples))


def _task_splits(
    study: Study, task: str, options: dict[str, Any], num_train: int, num_test: int, seed: int = TEST_SEED
) -> Any:
    """Make rows with the options of training, and others laid over them."""
    from ..trainer.data import make_task_rows

    section = study.tasks[task]
    options = study.base.get("data", {}).get("task_options", {}) | section.task_options | options
    try:
        return make_task_rows(section.task or task, num_train, num_test, seed, options)[0]
    except ValueError as error:
        raise ValueError(f"tasks.{task}: {error}") from error


def guessing(rows: Any) -> dict[int, float]:
    """Return, by difficulty, the share of rows with the answer that is right most often."""
    answers: dict[int, dict[str, int]] = {}
    for difficulty, answer in zip(rows["difficulty"], rows["answer"], strict=True):
        counts = answers.setdefault(difficulty, {})
        counts[answer] = counts.get(answer, 0) + 1
    return {difficulty: max(counts.values()) / sum(counts.values()) for difficulty, counts in sorted(answers.items())}
