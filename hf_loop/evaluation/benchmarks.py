"""Benchmarks of lm-eval over loops, a result for every task and number of loops; an interrupted run goes on.

The model is the same object at every depth, wrapped once as lm-eval's `HFLM`.
"""

import importlib
import json
import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..field_values import build
from ..files import read_json, write_text
from .curves import LoopCurve
from .results import package_versions
from .scan import model_settings
from .scan_results import check_same_settings


BENCHMARKS_FILE = "benchmarks.json"
# of a task's metrics, the one that a table shows is the first of these that it has, or else its first
MAIN_METRICS = ("acc_norm", "acc", "exact_match", "word_perplexity", "perplexity")


@dataclass(frozen=True)
class BenchmarkResult:
    """What one task came to at one number of loops.

    Args:
        task (`str`): name of the task, or of a group of tasks.
        num_loops (`int`, *optional*): number of loops; `None` for a model without loops.
        metrics (`dict[str, float]`): metrics by the names that lm-eval gives them, such as `acc,none`; also standard
            errors, and of a group those of its tasks, as `TASK/acc,none`.
        num_examples (`int`): number of examples.
        guessing (`float`, *optional*): with choices, what guessing gives.
    """

    task: str
    num_loops: int | None
    metrics: dict[str, Any]
    num_examples: int
    guessing: float | None = None

    @property
    def main(self) -> tuple[str, float, float | None]:
        """The metric to show: its name, its value and its standard error, if that is known."""
        own = {name: value for name, value in self.metrics.items() if "/" not in name and "_stderr" not in name}
        wanted = [name for metric in MAIN_METRICS for name in own if name.partition(",")[0] == metric]
        name = (wanted or list(own))[0]
        metric, _, filter_name = name.partition(",")
        return metric, own[name], self.metrics.get(f"{metric}_stderr,{filter_name}")


@dataclass
class BenchmarkResults:
    """The results of one model, stored as `benchmarks.json`.

    Args:
        settings (`dict`): what the numbers depend on besides task and loops: digests of the weights and the
            configuration, the type of the weights, and how tasks are asked.
        trained_loops (`float`, *optional*): number of loops of the configuration.
        results (`list[BenchmarkResult]`): what was measured.
        versions (`dict[str, str]`): package versions; by default those of the running process.
    """

    settings: dict[str, Any]
    trained_loops: float | None = None
    results: list[BenchmarkResult] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=lambda: package_versions() | {"lm_eval": lm_eval_version()})

    def find(self, task: str, num_loops: int | None) -> BenchmarkResult | None:
        """Return the result of a task at a number of loops, `None` if it was not measured."""
        return next((item for item in self.results if (item.task, item.num_loops) == (task, num_loops)), None)

    def curves(self) -> list[LoopCurve]:
        """Return the main metric of every task over loops, of those tasks whose metric a [`LoopCurve`] can hold."""
        curves = []
        for task in dict.fromkeys(item.task for item in self.results if item.num_loops is not None):
            items = sorted((item for item in self.results if item.task == task), key=lambda item: item.num_loops or 0)
            metric, values = items[0].main[0], [item.main[1] for item in items]
            is_share = metric in ("acc_norm", "acc", "exact_match")
            if is_share or metric.endswith("perplexity"):
                counts = [item.num_loops or 0 for item in items]
                kind: Any = "accuracy" if is_share else "perplexity"
                curves.append(LoopCurve(kind, task, counts, values, self.trained_loops, guessing=items[0].guessing))
        return curves

    def save(self, path: str | Path) -> None:
        """Write the results to a JSON file, whole or not at all."""
        write_text(path, json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | Path, settings: dict[str, Any]) -> "BenchmarkResults":
        """Read results that were measured under `settings`.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it does not hold results, or they were measured under other settings.
        """
        data = read_json(path)
        items = [build(BenchmarkResult, item, f"a result in {path}") for item in data.get("results", [])]
        stored = build(cls, data | {"results": items}, str(path))
        check_same_settings(stored.settings, settings, path)
        return stored


def lm_eval_version() -> str:
    """Return the version of lm-eval.

    Raises:
        ValueError: if it is not installed.
    """
    return _import("lm_eval").__version__


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        advice = "install it with `pip install 'hf-loop[eval]'`"
        raise ValueError(f"lm-eval cannot be imported ({error}); {advice}") from error


def find_tasks(names: Sequence[str], include_path: str | Path | None = None) -> Any:
    """Check that lm-eval has all tasks, and return the manager that loads them.

    Args:
        names (`Sequence[str]`): names of tasks or of groups of tasks.
        include_path (`str` or `Path`, *optional*): a folder with YAML files of further tasks.

    Raises:
        ValueError: if lm-eval is not installed, or has no such task; the message names the nearest.
    """
    manager = _import("lm_eval.tasks").TaskManager(include_path=None if include_path is None else str(include_path))
    for name in names:
        if name not in manager.all_tasks:
            near = get_close_matches(name, manager.all_tasks, 1)
            advice = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"lm-eval has no task {name!r}{advice}")
    return manager


def benchmarks_over_loops(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    loops: Sequence[int | None],
    path: str | Path,
    *,
    manager: Any = None,
    batch_size: int = 1,
    num_fewshot: int | None = None,
    limit: int | None = None,
    chat: bool = False,
) -> BenchmarkResults:
    """Measure tasks of lm-eval at several numbers of loops, and write each result to `path` as soon as it is there.

    Args:
        model (`PreTrainedModel`): a causal language model.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        tasks (`Sequence[str]`): names of tasks or of groups of tasks.
        loops (`Sequence[int]`): numbers of loops; `None` for a model without loops.
        path (`str` or `Path`): the JSON file. What it holds already, under the same settings, is not measured again.
        manager (`TaskManager`, *optional*): what [`find_tasks`] returned, by default for lm-eval's own tasks.
        batch_size (`int`, *optional*, defaults to 1): sequences in one forward pass.
        num_fewshot (`int`, *optional*): examples before the question, by default those of the task.
        limit (`int`, *optional*): read only so many examples of every task.
        chat (`bool`, *optional*, defaults to `False`): whether to ask through the chat template.

    Returns:
        `BenchmarkResults`: all results in the file.

    Raises:
        ValueError: if lm-eval is not installed or has no such task, the file holds something else, or a likelihood is
            no number.
    """
    manager = find_tasks(tasks) if manager is None else manager
    settings = model_settings(model) | {"num_fewshot": num_fewshot, "limit": limit, "chat": chat}
    if Path(path).is_file():
        results = BenchmarkResults.load(path, settings)
    else:
        trained = model.config.num_loops if getattr(model.config, "has_loops", False) else None
        results = BenchmarkResults(settings, trained)
    missing = [(task, count) for task in tasks for count in loops if results.find(task, count) is None]
    if not missing:
        return results

    evaluate = _import("lm_eval").simple_evaluate
    wrapper = _import("lm_eval.models.huggingface").HFLM
    language_model = wrapper(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
    for task, num_loops in missing:
        with _depth(model, num_loops):
            measured = evaluate(
                language_model,
                tasks=[task],
                task_manager=manager,
                num_fewshot=num_fewshot,
                limit=limit,
                apply_chat_template=chat,
            )
        results.results.append(_result(task, num_loops, measured))
        results.save(path)
    return results


@contextmanager
def _depth(model: Any, num_loops: int | None) -> Generator[None]:
    """Let the model run at a depth inside the `with` block: lm-eval passes no arguments on to `forward`."""
    if num_loops is None:
        yield
        return
    before = model.config.num_loops
    model.config.num_loops = num_loops
    try:
        yield
    finally:
        model.config.num_loops = before


def _result(task: str, num_loops: int | None, measured: Any) -> BenchmarkResult:
    metrics = {
        (name if part == task else f"{part}/{name}"): float(value)
        for part, values in measured["results"].items()
        for name, value in values.items()
        # beside them stand names and counts, and standard errors that are not known
        if "," in name and not isinstance(value, str)
    }
    samples = [sample for part in measured["samples"].values() for sample in part]
    numbers = [
        answer[0] for sample in samples for answer in sample["filtered_resps"] if isinstance(answer, tuple | list)
    ]
    broken = [number for number in [*numbers, *metrics.values()] if isinstance(number, float) and math.isnan(number)]
    if broken or not metrics:
        raise ValueError(f"{task} at {num_loops} loops gave no numbers: the likelihoods are not finite")
    choices = [len(sample["filtered_resps"]) for sample in samples]
    has_choices = all(config.get("output_type") == "multiple_choice" for config in measured["configs"].values())
    guessing = sum(1 / count for count in choices) / len(choices) if has_choices and choices else None
    return BenchmarkResult(task, num_loops, metrics, len(samples), guessing)
