"""How much of what a model loses with fewer loops is the loops' work, and how much only its readout's failure.

Cutting depth changes three things at once: fewer loops run, fewer *different* loops run, and the head reads states
that it never saw. The controls of the Depth Control Protocol (https://huggingface.co/papers/2609.19934) change one at
a time; `readout_states.py` defines those that run other loops, `readout.py` those that fit a readout.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..models.evaluation_mode import evaluation_mode
from .curves import check_loops
from .depth_control_results import ControlledDepth, DepthControls
from .readout import Head, fit_affine, fit_gains, fit_temperature, sum_of_losses
from .readout_batches import Batch, check_disjoint, count_labels, digest_batches, scored_states
from .readout_states import Plan, PlannedLoops
from .running import trained_loops
from .scan import model_settings
from .scan_results import check_same_settings


# labelled tokens that a readout is fitted to, as published; further ones are not read
MAX_FIT_TOKENS = 12_000


def depth_controls(
    model: Any,
    fit_batches: Sequence[Batch],
    test_batches: Sequence[Batch],
    loops: Sequence[int],
    *,
    path: str | Path | None = None,
    label: str = "model",
    progress: bool = False,
) -> DepthControls:
    """Measure the loss of a model at several depths, and under the controls that tell what it is the loss of.

    Full depth is the number of loops of the configuration. It is measured in any case.

    Args:
        model (`PreTrainedModel`): a looped or hierarchical causal language model over a decoder.
        fit_batches (`Sequence[Mapping[str, torch.Tensor]]`): what the readouts are fitted to: `input_ids` and
            `labels`, each `[B, T]`, and, where there is padding on the right, `attention_mask`. Labels are those of
            transformers: the one at a position is predicted from the positions before it, and -100 marks a token that
            is not scored. The first 12,000 labelled tokens are read.
        test_batches (`Sequence[Mapping[str, torch.Tensor]]`): what is measured, of other texts than `fit_batches`.
        loops (`Sequence[int]`): the depths, each at most the full one.
        path (`str` or `Path`, *optional*): a JSON file, written after every depth. If it exists, the depths that it
            holds are not measured again.
        label (`str`, *optional*, defaults to `"model"`): the name of the measurement.
        progress (`bool`, *optional*, defaults to `False`): whether to show a progress bar.

    Returns:
        `DepthControls`: all depths of `path`, which may be more than were asked for now.

    Raises:
        ValueError: if the model is of another kind, compiled or with an adapter; if a depth is no integer from 1 to
            full depth; if there are no labelled tokens; if the same row is fitted to and measured; if `path` was
            measured with another model or other texts.
    """
    full = int(trained_loops(model))
    runs = PlannedLoops(model, full)
    loops = check_cuts(loops, full)
    check_disjoint(fit_batches, test_batches)
    settings = model_settings(model) | {
        "num_loops": full,
        "fit": digest_batches(fit_batches),
        "test": digest_batches(test_batches),
    }
    num_test = sum(map(count_labels, test_batches))
    num_fit = min(MAX_FIT_TOKENS, sum(map(count_labels, fit_batches)))
    if num_fit < 2 or num_test < 1:
        raise ValueError(f"controls need 2 labelled tokens to fit to and 1 to measure, got {num_fit} and {num_test}")
    controls = DepthControls(label, full, runs.shares_loops, num_fit, num_test, settings)
    if path is not None and Path(path).is_file():
        controls = DepthControls.load(path)
        check_same_settings(controls.settings, settings, path)
    measured = {row.loops for row in controls.rows}
    # full depth first: no gap can be told without it
    missing = [count for count in (full, *(count for count in loops if count != full)) if count not in measured]
    bar = tqdm(total=len(missing) * (len(fit_batches) + len(test_batches)), disable=not progress, desc="controls")
    with evaluation_mode(model), bar:
        measurement = _Measurement(model, runs, fit_batches, test_batches, bar.update)
        for count in missing:
            controls.rows.append(measurement.measure(count))
            controls.rows.sort(key=lambda row: row.loops)
            if path is not None:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                controls.save(path)
    return controls


def check_cuts(loops: Sequence[int], full: int) -> list[int]:
    """Return depths ascending after checking them against the full depth.

    Raises:
        ValueError: if one is no integer from 1 to full depth, or is named twice.
    """
    loops = sorted(check_loops(loops))
    if loops[-1] > full:
        raise ValueError(f"loops must be at most the full depth num_loops={full}, got {loops[-1]}")
    return loops


class _Measurement:
    """Fits and measures at one depth after the other."""

    def __init__(
        self, model: Any, runs: PlannedLoops, fit_batches: Sequence[Batch], test_batches: Sequence[Batch], update: Any
    ):
        self.model, self.runs, self.update = model, runs, update
        self.fit_batches, self.test_batches = fit_batches, test_batches
        self.targets: Any = None

    def head(self, states: torch.Tensor) -> torch.Tensor:
        """Compute logits `[N, V]` of states `[N, D]`."""
        return self.model.read_logits(states.to(self.model.lm_head.weight.dtype)[None])[0].float()

    def measure(self, loops: int) -> ControlledDepth:
        """Fit the readouts of a depth and measure all controls at it."""
        states, labels = self.states_to_fit(loops)
        if loops == self.runs.num_loops:
            self.targets = states
        elif self.targets is None:
            self.targets = self.states_to_fit(self.runs.num_loops, counted=False)[0]
        temperature, gains, affine = self.fit(states, labels)
        plans = [Plan(control, loops) for control in ("prefix", "repeat", "suffix", "frozen")]
        readouts: dict[str, Head] = {
            "temperature": lambda chunk: self.head(chunk) / temperature,
            "gains": lambda chunk: self.head(gains(chunk)),
            "affine": lambda chunk: self.head(affine(chunk)),
        }
        sums = dict.fromkeys((*(plan.control for plan in plans), *readouts), 0.0)
        count = 0
        for batch in self.test_batches:
            batch = self._to_device(batch)
            found = self.runs.states(batch, plans)
            for plan in plans:
                sums[plan.control] += sum_of_losses(self.head, *scored_states(found[plan], batch["labels"]))
            states, labels = scored_states(found[plans[0]], batch["labels"])
            for name, read in readouts.items():
                sums[name] += sum_of_losses(read, states, labels)
            count += len(labels)
            self.update()
        losses = {name: total / count for name, total in sums.items()}
        return ControlledDepth(loops=loops, fitted_temperature=temperature, **losses)

    def fit(self, states: torch.Tensor, labels: torch.Tensor) -> tuple[float, Head, Head]:
        """Fit a temperature and two maps of states."""
        # nothing can be fitted to states that overflowed, and no map brings them back
        if not (states.isfinite().all() and self.targets.isfinite().all()):
            return 1.0, lambda chunk: chunk, lambda chunk: chunk
        temperature = fit_temperature(self.head, states, labels)
        gains, affine = fit_gains(self.head, states, labels), fit_affine(self.head, states, labels, self.targets)
        return temperature, gains, affine

    def states_to_fit(self, loops: int, counted: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states of the labelled tokens `[N, D]` after so many loops, and the labels `[N]`; the progress
        bar knows of a pass that is counted."""
        plan = Plan("prefix", loops)
        states, labels, count = [], [], 0
        for batch in self.fit_batches:
            if count < MAX_FIT_TOKENS:
                batch = self._to_device(batch)
                scored = scored_states(self.runs.states(batch, [plan])[plan], batch["labels"])
                states.append(scored[0])
                labels.append(scored[1])
                count += len(scored[1])
            if counted:
                self.update()
        return torch.cat(states)[:MAX_FIT_TOKENS], torch.cat(labels)[:MAX_FIT_TOKENS]

    def _to_device(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}
