"""Which layers of a pretrained model can run again without training: perplexity over layer ranges and loop counts.

A model of `L` layers runs the layers `first` to `last` (`n` of them) `K` times and the `c = L - 1 - last` layers
behind them once. Layer calls for one window of text, for one range and a set of loop counts up to `K_max`:

- a retrofitted model run once per count ([`perplexity_over_loops`], the plain twin of what is here): for each count
  `L + (K - 1) n`, and the head.
- here: the base model runs once for all ranges and its state before every layer is kept. The state before `first` is
  what enters the loop, and the state behind `last` is what the first loop gives, so both cost nothing. Plain
  repetition (`replace`) then needs `(K_max - 1) n` calls for all counts together, since the state after `r` loops is
  on the way to `r + 1`, and for each count the coda's `c` and the head. Damped loops of different counts differ from
  the first step on: for each count `(K - 1) n + c` and the head.

At two loops of a third of the layers in the middle that is `2 L / 3` calls instead of `4 L / 3`. The kept states take
`tokens * hidden_size` numbers for each different layer boundary, in the main memory.
"""

import hashlib
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedConfig, PreTrainedModel

from ..files import digest_config, digest_weights
from ..models import family_of
from ..models.adapters import refuse_adapter
from ..models.backbone import backbone_spec
from ..models.checks import check_positive_int
from ..models.evaluation_mode import evaluation_mode
from ..text_parts import text_part
from .curves import check_loops
from .perplexity import batch_windows, check_window, cut_windows
from .scan_passes import ScanPasses, calls_of_head, count_layer_calls
from .scan_results import UPDATES, LayerScan, check_ranges


# values of each weight that enter the fingerprint
SAMPLES_PER_WEIGHT = 256
# entries of a configuration that say nothing about what the model computes
CONFIG_NOISE = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}

Counts = dict[str, list[int]]


def scan_layer_ranges(
    model: PreTrainedModel,
    input_ids: torch.Tensor | Sequence[torch.Tensor],
    ranges: Sequence[tuple[int, int]],
    loops: Sequence[int] = (2,),
    *,
    updates: Sequence[Literal["replace", "damped"]] = ("replace",),
    window: int = 512,
    batch_size: int = 1,
    path: str | Path | None = None,
    label: str | None = None,
    progress: bool = False,
) -> LayerScan:
    """Measure the perplexity of a text with each range of a pretrained model's layers looped, without training.

    Windows and perplexity are those of [`perplexity_over_loops`], and each number is the one it gives for
    `retrofit(model, num_prelude_layers=first, num_coda_layers=L - 1 - last, loop_update=update)`, up to rounding. The
    damped update, `s + (core(s) - s) / num_loops`, is that of https://huggingface.co/papers/2605.23872.

    Args:
        model (`PreTrainedModel`): a causal language model of a supported architecture that is not looped, or one that
            has such a part. It is not changed.
        input_ids (`torch.Tensor` of shape `[1, T]` or `[T]`, or a sequence of tensors `[T_i]`): the text's tokens, or
            windows that are already cut (`window` then does not matter).
        ranges (`Sequence[tuple[int, int]]`): `(first, last)` layers to loop, both included; see [`layer_ranges`].
        loops (`Sequence[int]`, *optional*, defaults to `(2,)`): the loop counts, each at least 2.
        updates (`Sequence[str]`, *optional*, defaults to `("replace",)`): what a loop does with the core's result,
            `"replace"`, `"damped"` or both.
        window (`int`, *optional*, defaults to 512): tokens in a window.
        batch_size (`int`, *optional*, defaults to 1): windows of equal length in one pass.
        path (`str` or `Path`, *optional*): a JSON file, written after every range. If it exists the scan goes on from
            it: what it holds is not measured again, and other ranges, loop counts and updates join it.
        label (`str`, *optional*): the name of the scan, by default the model's.
        progress (`bool`, *optional*, defaults to `False`): whether to show a progress bar with the time left and the
            best cell so far.

    Returns:
        `LayerScan`: all cells of `path`, which may be more than were asked for now.

    Raises:
        ValueError: if the model carries an adapter, is recurrent already, has no language-model head or an unsupported
            architecture; if a range, a loop count or an update is not as described; if there are fewer than two
            tokens; if `path` was measured with other weights, another text or another window; if the model's own
            perplexity is not finite.
    """
    # as `retrofit`, whose models the scan is about
    refuse_adapter(model, "it is scanned")
    model = text_part(model)
    num_layers = check_scannable(model.config)
    if model.get_output_embeddings() is None:
        raise ValueError(f"model must have a language-model head; {type(model).__name__} has none")
    ranges = check_ranges(ranges, num_layers)
    loops = check_scan_loops(loops)
    if not updates or len(set(updates)) != len(updates) or not set(updates) <= set(UPDATES):
        raise ValueError(f"updates must be one or both of {', '.join(UPDATES)}, got {list(updates)}")
    batch_size = check_positive_int("batch_size", batch_size)
    window = check_window(window)
    windows = cut_windows(input_ids, window)
    settings = model_settings(model) | text_settings(windows, window)

    scan = LayerScan.load(path) if path is not None and Path(path).is_file() else None
    if scan is not None:
        scan.check_settings(settings, str(path))
    missing = _missing_counts(scan, ranges, loops, updates)
    if scan is not None and not missing:
        return scan
    batches = batch_windows(windows, batch_size)
    with evaluation_mode(model), _Bar(model, len(batches), missing, progress) as bar:
        boundaries = {first for first, _ in missing} | {last + 1 for _, last in missing}
        passes = ScanPasses(model, batches, boundaries, bar.update)
        bar.announce()
        if scan is None:
            label = label or Path(str(model.name_or_path)).name or model.config.model_type
            num_tokens = sum(batch[:, 1:].numel() for batch in batches)
            scan = LayerScan(label, num_layers, num_tokens, passes.base_perplexity, settings)
            if not math.isfinite(scan.base_perplexity):
                raise ValueError(f"The model's own perplexity on this text is not finite in {settings['dtype']}")
        for (first, last), counts in missing.items():
            scan.cells.extend(passes.measure(first, last, counts))
            if path is not None:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                scan.save(path)
            bar.show_best(scan)
    return scan


def check_scannable(config: PreTrainedConfig, name: str = "the model") -> int:
    """Check by its configuration that a model can be scanned, and return its number of layers.

    Args:
        config (`PreTrainedConfig`): the configuration.
        name (`str`, *optional*): what the message calls the model.

    Raises:
        ValueError: if the model is recurrent already or its architecture is not supported.
    """
    family: Any = family_of(config)
    if family is not None:
        hint = "; sweep it instead" if family.causal is not None and config.has_loops else ""
        raise ValueError(f"a scan needs a plain checkpoint, and {name} is a {family.name} model already{hint}")
    backbone_spec(config)
    return config.num_hidden_layers


def check_scan_loops(loops: Sequence[int]) -> list[int]:
    """Return loop counts ascending after checking them.

    Raises:
        ValueError: if one is not an integer of at least 2, or is named twice.
    """
    loops = check_loops(loops)
    if 1 in loops:
        raise ValueError("loops must be at least 2 in a scan: one loop is the model itself, which is always measured")
    return sorted(loops)


def text_settings(windows: Sequence[torch.Tensor], window: int) -> dict[str, Any]:
    """Return the part of a scan's settings that depends on the text, from its windows of token ids."""
    digest = hashlib.sha256()
    for tokens in windows:
        digest.update(len(tokens).to_bytes(8, "little") + tokens.long().cpu().numpy().tobytes())
    return {"text": digest.hexdigest()[:16], "tokens": sum(map(len, windows)), "window": window}


def model_settings(model: PreTrainedModel) -> dict[str, Any]:
    """Return the part of a scan's settings that depends on the model: its type, digests of configuration and weights.

    Of every weight the name, the shape and a few hundred values spread over it are read, so that a large model takes
    no longer than a small one. Of weights that a quantizer packed, only the name and the shape.
    """
    config, weights = hashlib.sha256(), hashlib.sha256()
    digest_config(config, model.config, CONFIG_NOISE, inner=False)
    digest_weights(weights, model, model.state_dict().items(), _describe, _sample)
    return {
        "weights": weights.hexdigest()[:16],
        "config": config.hexdigest()[:16],
        "dtype": str(model.dtype).removeprefix("torch."),
    }


# a scan that was begun is recognised by the digest of these two: with others it could not go on
def _describe(name: str, weight: torch.Tensor) -> str:
    return f"{name} {list(weight.shape)}"


def _sample(weight: torch.Tensor) -> torch.Tensor:
    # the tensor types of quantizers cannot be relied on to be cut into samples
    if type(weight) is not torch.Tensor:
        return torch.empty(0)
    values = weight.flatten()
    return values[:: max(1, len(values) // SAMPLES_PER_WEIGHT)].cpu().double()


def _missing_counts(
    scan: LayerScan | None, ranges: Sequence[tuple[int, int]], loops: list[int], updates: Sequence[str]
) -> dict[tuple[int, int], Counts]:
    """Return the loop counts still to be measured, by range and update."""
    measured = {cell.key for cell in scan.cells} if scan is not None else set()
    missing = {}
    for first, last in ranges:
        counts = {
            update: [count for count in loops if (first, last, update, count) not in measured] for update in updates
        }
        if any(counts.values()):
            missing[first, last] = counts
    return missing


class _Bar:
    """A progress bar in layer calls, so that the time left is right although ranges differ in cost."""

    def __init__(
        self, model: PreTrainedModel, num_batches: int, missing: dict[tuple[int, int], Counts], progress: bool
    ) -> None:
        num_layers, head = model.config.num_hidden_layers, calls_of_head(model)
        costs = [count_layer_calls(*key, counts, num_layers, head) for key, counts in missing.items()]
        self.num_ranges, self.num_done = len(missing), 0
        self.start = time.monotonic()
        self.total = (num_layers + head + sum(costs)) * num_batches
        self.bar = tqdm(
            total=self.total,
            disable=not progress,
            desc="scan",
            # the time left by the speed of the whole run: that of the last calls alone jumps up and down
            smoothing=0,
            bar_format="{desc}: {percentage:3.0f}% |{bar}| {elapsed}<{remaining}{postfix}",
        )
        self.update = self.bar.update

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def announce(self) -> None:
        """Set the expected time, once the base model's pass has shown how long a layer takes."""
        if not self.bar.disable:
            seconds = (time.monotonic() - self.start) * self.total / self.bar.n
            self.bar.write(f"{self.num_ranges} ranges to measure, about {_duration(seconds)}", file=sys.stderr)

    def show_best(self, scan: LayerScan) -> None:
        """Count a range as done."""
        self.num_done += 1
        best = scan.best(1)[0]
        self.bar.set_postfix_str(
            f"range {self.num_done}/{self.num_ranges}, best {best.first}-{best.last} x{best.num_loops} {best.update} "
            f"{scan.ratio(best):.4f} of the base"
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
