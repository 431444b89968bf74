"""Which layers of a plain decoder run before, in and after the loop. This module imports without torch."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class LayerPlan:
    """The layers of a decoder on a looped schedule; what is in none of the three ranges is dropped.

    Args:
        prelude (`range`): layers that run once, before the loop.
        core (`range`): layers that run in every loop.
        coda (`range`): layers that run once, after the loop.
    """

    prelude: range
    core: range
    coda: range

    @property
    def kept(self) -> list[int]:
        """The layers that are not dropped, in order."""
        return [*self.prelude, *self.core, *self.coda]


def parse_layer_range(text: str | int, name: str = "core_layers") -> range:
    """Read a layer range such as `10-19` or `15` (counted from 0, both ends included).

    Args:
        text (`str`): the range.
        name (`str`): the argument that the message names.

    Raises:
        ValueError: if the text is not one or two numbers, or they run backwards.
    """
    first, dash, last = (part.strip() for part in str(text).partition("-"))
    if not dash:
        last = first
    if not first.isdecimal() or not last.isdecimal() or int(first) > int(last):
        raise ValueError(
            f"`{name}` must be FIRST-LAST with FIRST not above LAST, as in 10-19, both ends included, got {text!r}"
            f"{_notation_hint(str(text))}"
        )
    return range(int(first), int(last) + 1)


def _notation_hint(text: str) -> str:
    """Say what a range in the notation of another tool is here, such as `4:8`, `[4, 8)` or `0-3,6-9`."""
    ends = [int(end) for end in re.findall("[0-9]+", text)]
    if len(ends) > 2:
        return "; there is one loop, of layers that follow one another: several blocks cannot loop in one model"
    if len(ends) == 2 and ends[0] < ends[1] and "-" not in text:
        return f"; write {ends[0]}-{ends[1] - 1} if the end is left out, as in {ends[0]}:{ends[1]}"
    return ""


def plan_layers(
    num_layers: int,
    num_prelude_layers: int | None = None,
    core_layers: str | int | None = None,
    num_coda_layers: int | None = None,
) -> LayerPlan:
    """Split the layers of a decoder.

    The prelude is the first layers, the coda the last ones. Without `core_layers` everything between them is the core.
    With `core_layers`, a prelude or coda that is not given reaches to the core; layers between the core and a given
    prelude or coda are dropped, as in https://huggingface.co/papers/2511.07384 (4, `"6-11"`, 4 of 16 layers drops the
    layers 4 and 5).

    Args:
        num_layers (`int`): layers of the decoder.
        num_prelude_layers (`int`, *optional*): layers before the loop; 0 without `core_layers`.
        core_layers (`str`, *optional*): the looped layers, `FIRST-LAST` counted from 0, both ends included.
        num_coda_layers (`int`, *optional*): layers after the loop; 0 without `core_layers`.

    Raises:
        ValueError: if a count is negative, nothing is left for the core, or the ranges overlap, run backwards or pass
            the end.
    """
    # imported here, because it needs torch
    from .models.checks import check_int

    if num_prelude_layers is not None:
        num_prelude_layers = check_int("num_prelude_layers", num_prelude_layers)
    if num_coda_layers is not None:
        num_coda_layers = check_int("num_coda_layers", num_coda_layers)
    if core_layers is None:
        prelude = range(num_prelude_layers or 0)
        coda = range(num_layers - (num_coda_layers or 0), num_layers)
        core = range(len(prelude), coda.start)
        if not core:
            raise ValueError(
                f"`num_prelude_layers` ({len(prelude)}) and `num_coda_layers` ({len(coda)}) leave no core layer: the "
                f"model has {num_layers}"
            )
        return LayerPlan(prelude, core, coda)
    core = parse_layer_range(core_layers)
    if core.stop > num_layers:
        raise ValueError(
            f"`core_layers` {core_layers} passes the end: the model has the layers 0 to {num_layers - 1}, and both "
            "ends of a range are included"
        )
    prelude = range(core.start if num_prelude_layers is None else num_prelude_layers)
    coda = range(core.stop if num_coda_layers is None else num_layers - num_coda_layers, num_layers)
    if prelude.stop > core.start:
        raise ValueError(f"`num_prelude_layers` {num_prelude_layers} overlaps `core_layers` {core_layers}")
    if coda.start < core.stop:
        raise ValueError(
            f"`num_coda_layers` {num_coda_layers} of {num_layers} layers overlaps `core_layers` {core_layers}"
        )
    return LayerPlan(prelude, core, coda)
