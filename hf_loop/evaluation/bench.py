"""A benchmark of the ways to decode with a looped model: quality, time and memory of each.

Times are paired. A round runs every setting once, one after the other in one process, beginning with the model at its
own depth, and what is reported is the median and the quartiles of a setting's time over that run's. So a machine that
is slow for some minutes slows both.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..models.checks import check_positive_int
from .bench_quality import Quality, score, score_oracle
from .bench_results import TEXT, Bench, BenchRow
from .bench_runs import Run, make_run, measure_memory, num_prompts, plain_llama, timed
from .bench_settings import BenchSetting
from .perplexity import batch_windows, cut_windows
from .running import default_generation, trained_loops
from .scan import model_settings, text_settings


WINDOW = 128
# few, so that the time is that of writing, not of reading
PROMPT_TOKENS = 16
# windows that are decoded side by side
STEP_ROWS = 32
# how models say that they cannot decode in some way
REFUSALS = (ValueError, TypeError)


def run_bench(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    settings: Sequence[BenchSetting],
    *,
    batch_sizes: Sequence[int] = (1,),
    new_tokens: int = 32,
    rounds: int = 5,
    seed: int = 0,
    others: Mapping[str, PreTrainedModel] | None = None,
    path: str | Path | None = None,
    label: str = "model",
    progress: bool = False,
) -> Bench:
    """Measure several ways to decode: perplexity and accuracy on a text, time and memory of greedy generation.

    A setting that the model refuses stays in the result with the reason.

    Args:
        model (`PreTrainedModel`): a causal language model with loops.
        input_ids (`torch.Tensor` of shape `[1, T]` or `[T]`): the tokens of a text. It is scored in windows of 128
            that do not overlap; prompts of 16 begin at places spread evenly over it.
        settings (`Sequence[BenchSetting]`): the ways to decode, see [`make_settings`]; the first is what the others
            are compared with.
        batch_sizes (`Sequence[int]`, *optional*, defaults to `(1,)`): prompts that are continued together.
        new_tokens (`int`, *optional*, defaults to 32): tokens to generate for each.
        rounds (`int`, *optional*, defaults to 5): how often to time every setting.
        seed (`int`, *optional*, defaults to 0): seed of the weights of the plain decoder that is timed.
        others (`Mapping[str, PreTrainedModel]`, *optional*): other models by the names of their settings.
        path (`str` or `Path`, *optional*): a JSON file, written after every measurement. If it exists the benchmark
            goes on from it: what it holds is not measured again.
        label (`str`, *optional*, defaults to `"model"`): the model's name.
        progress (`bool`, *optional*, defaults to `False`): whether to show a progress bar.

    Raises:
        ValueError: if the model has no loops, the first setting is refused, an argument is out of range, or `path` was
            measured with another model, text, length or machine.
    """
    num_loops = int(trained_loops(model))
    new_tokens, rounds = check_positive_int("new_tokens", new_tokens), check_positive_int("rounds", rounds)
    windows = cut_windows(input_ids, WINDOW)
    measured_under = bench_settings(windows, new_tokens) | model_settings(model) | {"device": model.device.type}
    bench = Bench(label, num_loops, measured_under)
    if path is not None and Path(path).is_file():
        bench = Bench.load(path)
        bench.check_settings(measured_under, path)

    def save() -> None:
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            bench.save(path)

    models: dict[str, Any] = {setting.name: (others or {}).get(setting.name, model) for setting in settings}
    for setting in settings:
        bench.row(setting.name, setting.kind).refused.clear()
        if setting.kind == "plain":
            llama = plain_llama(model.config, model.config.num_hidden_layers, seed)
            models[setting.name] = llama.to(device=model.device, dtype=model.dtype)
    num_steps = len(settings) * (1 + len(batch_sizes) * (1 + rounds))
    with default_generation(model), tqdm(total=num_steps, disable=not progress, desc="bench") as bar:
        for setting in settings:
            bar.set_postfix_str(f"{setting.name} on the text")
            row = bench.row(setting.name, setting.kind)
            if row.quality is None and setting.kind != "plain":
                with _Refusals(row, TEXT, is_first=setting is settings[0]):
                    row.quality = _known_quality(bench, settings, setting)
                    if row.quality is None:
                        row.quality = _quality(models[setting.name], setting, windows)
                save()
            bar.update()
        for batch in batch_sizes:
            batch = check_positive_int("batch_sizes", batch)
            _time(bench, settings, models, input_ids, batch, new_tokens, rounds, save, bar)
    return bench


def bench_settings(windows: Sequence[torch.Tensor], new_tokens: int) -> dict[str, Any]:
    """Return what the numbers of a benchmark depend on besides the model."""
    return text_settings(windows, WINDOW) | {"new_tokens": new_tokens, "threads": torch.get_num_threads()}


def spread_prompts(input_ids: torch.Tensor, batch: int) -> torch.Tensor:
    """Cut prompts of equal length, `[B, T]`, that begin at places spread evenly over a text."""
    tokens = input_ids.reshape(-1)
    length = min(PROMPT_TOKENS, len(tokens))
    last = len(tokens) - length
    starts = [last * index // max(1, batch - 1) for index in range(batch)]
    return torch.stack([tokens[start : start + length] for start in starts])


class _Refusals:
    """Notes why a model refuses a setting, inside a `with` block; of the first setting it is an error."""

    def __init__(self, row: BenchRow, where: str, is_first: bool):
        self.row, self.where, self.is_first = row, where, is_first

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        if self.is_first or not isinstance(error, REFUSALS):
            return False
        self.row.refused[self.where] = " ".join(str(error).split())
        return True


def _known_quality(bench: Bench, settings: Sequence[BenchSetting], setting: BenchSetting) -> Quality | None:
    """Return the quality of a setting that predicts the same and was measured already."""
    if setting.kind in ("oracle", "other"):
        return None
    same = [one.name for one in settings if one.arguments == setting.arguments and one.kind not in ("oracle", "other")]
    return next((row.quality for row in bench.rows if row.name in same and row.quality is not None), None)


def _quality(model: Any, setting: BenchSetting, windows: list[torch.Tensor]) -> Any:
    batches = batch_windows(windows, STEP_ROWS)
    if setting.kind == "oracle":
        return score_oracle(model, batches, setting.arguments["num_loops"], setting.margin)
    return score(model, batches, setting.arguments)


def _time(
    bench: Bench,
    settings: Sequence[BenchSetting],
    models: Mapping[str, Any],
    input_ids: torch.Tensor,
    batch: int,
    new_tokens: int,
    rounds: int,
    save: Callable[[], None],
    bar: Any,
) -> None:
    """Measure memory and time of all settings at one batch size, and add them to the benchmark."""
    first = settings[0]
    missing = {setting.name: max(0, rounds - bench.num_runs(setting.name, batch)) for setting in settings}
    bar.update(sum(rounds - count for count in missing.values()))
    runs: dict[str, Run] = {}
    num_rows = {setting.name: num_prompts(setting, batch) for setting in settings}
    for setting in settings:
        bar.set_postfix_str(f"{setting.name}, batch {batch}")
        row = bench.row(setting.name, setting.kind)
        # the first is run in every round
        if missing[setting.name] or (setting is first and any(missing.values())):
            with _Refusals(row, str(batch), is_first=setting is first):
                prompts = spread_prompts(input_ids, num_rows[setting.name])
                run = make_run(setting, models[setting.name], prompts, new_tokens)
                # the first run is slower than the others, and not timed
                num_cached = len(prompts) * (prompts.shape[1] + new_tokens - 1)
                row.memory[str(batch)] = measure_memory(run, models[setting.name].device, num_cached)
                runs[setting.name] = run
            save()
        bar.update()
    for index in range(rounds):
        names = [name for name in runs if missing[name] > index]
        if not names:
            break
        # the others in another order each time, so that none always follows the same one
        names = [name for name in names if name != first.name]
        names = names[index % len(names) :] + names[: index % len(names)] if names else []
        times: dict[str, list[float]] = {}
        bench.rounds.setdefault(str(batch), []).append(times)
        for name in [first.name, *names]:
            bar.set_postfix_str(f"{name}, batch {batch}, round {index + 1}")
            seconds = timed(runs[name], models[name].device)
            times[name] = [value / (num_rows[name] * new_tokens) for value in seconds]
            save()
            bar.update()
