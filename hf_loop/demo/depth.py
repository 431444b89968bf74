"""The depth that a reader can choose on the page: loops, or passes of sleep where a model has no loops."""

from dataclasses import dataclass
from typing import Any


# a slider reaches so many times the trained depth, since a model may be better or worse there
TIMES_TRAINED = 4
SMALLEST_RANGE, LARGEST_RANGE = 8, 64


@dataclass(frozen=True)
class DepthSlider:
    """An argument of a call that says how deep it is.

    Args:
        argument (`str`): its name in `generate`.
        label (`str`): what it counts.
        trained (`int`): the depth of the configuration.
        largest (`int`): the largest depth to choose.
    """

    argument: str
    label: str
    trained: int
    largest: int

    def beside(self, chosen: int) -> list[int]:
        """Return the depths to compare a chosen one with, itself among them: one, half, all and twice the trained."""
        return sorted({1, -(-self.trained // 2), self.trained, 2 * self.trained, chosen})

    def heading(self, depth: int) -> str:
        """Return a depth in words, such as `"6 loops (trained)"`."""
        unit = self.label if depth != 1 else self.label.replace("loops", "loop").replace("passes", "pass")
        return f"{depth} {unit}{' (trained)' if depth == self.trained else ''}"


def depth_slider(config: Any) -> DepthSlider | None:
    """Return the slider of a causal language model, `None` if all of its calls are equally deep."""
    if config.has_loops:
        argument, label = "num_loops", "loops"
    elif config.model_type == "sleep_lm":
        argument, label = "num_sleep_passes", "passes of sleep"
    else:
        return None
    trained = getattr(config, argument)
    largest = max(trained, SMALLEST_RANGE, min(TIMES_TRAINED * trained, LARGEST_RANGE))
    return DepthSlider(argument, label, trained, largest)


__all__ = ["DepthSlider", "depth_slider"]
