"""The one entrance to every way of making a recurrent model out of a pretrained one."""

import inspect
import os
from collections.abc import Callable, Iterable
from typing import Any, Literal, overload

from transformers import PreTrainedModel

from ..models import FeedbackForCausalLM, LoopedForCausalLM, SleepForCausalLM
from .feedback import retrofit_feedback
from .looped import retrofit_looped
from .moving import open_base
from .sleep import retrofit_sleep


FAMILIES: dict[str, Callable[..., Any]] = {
    "looped": retrofit_looped,
    "feedback": retrofit_feedback,
    "sleep": retrofit_sleep,
}


@overload
def retrofit(
    model_or_path: PreTrainedModel | str | os.PathLike, family: Literal["looped"] = "looped", **options: Any
) -> LoopedForCausalLM: ...
@overload
def retrofit(
    model_or_path: PreTrainedModel | str | os.PathLike, family: Literal["feedback"], **options: Any
) -> FeedbackForCausalLM: ...
@overload
def retrofit(
    model_or_path: PreTrainedModel | str | os.PathLike, family: Literal["sleep"], **options: Any
) -> SleepForCausalLM: ...
def retrofit(
    model_or_path: PreTrainedModel | str | os.PathLike, family: str = "looped", **options: Any
) -> PreTrainedModel:
    """Run the layers of a pretrained causal model on the schedule of another family.

    The modules move: no weight is copied, and the model passed in should not be used afterwards.

    Args:
        model_or_path (`PreTrainedModel` or `str`): a causal model of a supported backbone, quantized or not, or where
            to load one from.
        family (`str`): the kind of recurrent model.
        options: what the family takes, each with a default; `retrofit_looped`, `retrofit_feedback` and
            `retrofit_sleep` in `hf_loop.retrofitting` say what they mean.

            - `"looped"`: `num_prelude_layers`, `num_coda_layers`, `core_layers`, `num_loops`, `injection`,
              `state_init`, `loop_update`, `loop_norm`, `fold`, `loop_lora_rank`, `loop_lora_beyond`,
              `loop_lora_target_modules`, `loop_lora_vectors`. At one loop it is the original.
            - `"feedback"`: `block_size`, `num_memory_segments`, `feedback_length`, `feedback_source`,
              `feedback_init`, `zero_first_residual`, `stop_gradient`, `random_state_passing`,
              `random_position_offset`. Without a memory and with all segments it is the original.
            - `"sleep"`: `sleep_window`, `num_sleep_passes`, `eviction`, `sleep_layers`, `reset_conv`,
              `position_mode`, `fast_weight_layers`, `fast_weight_rule`, `fast_weight_num_heads`,
              `fast_weight_head_dim`, `num_backprop_windows`, `sleep_over_labels`. In one window it is the original.

    Returns:
        `LoopedForCausalLM`, `FeedbackForCausalLM` or `SleepForCausalLM`, on the device and in the dtype of the
        original.

    Raises:
        ValueError: there is no such family, an option is not the family's or is refused by it, the model is recurrent
            already, or its architecture is not supported.

    Example:

    ```python
    >>> import hf_loop

    >>> looped = hf_loop.retrofit("path/or/repository", num_prelude_layers=4, num_coda_layers=4, num_loops=2)
    >>> feedback = hf_loop.retrofit("path/or/repository", "feedback", block_size=512, num_memory_segments=1)
    >>> sleeper = hf_loop.retrofit("path/or/repository", "sleep", sleep_window=512, num_sleep_passes=2)
    ```
    """
    check_options(family, options)
    return FAMILIES[family](open_base(model_or_path), **options)


def check_options(family: str, options: Iterable[str]) -> None:
    """Refuse options that a family does not have, before anything is loaded.

    Args:
        family (`str`): the kind of recurrent model.
        options (`Iterable[str]`): the names of the options.

    Raises:
        ValueError: there is no such family, or an option is not the family's.
    """
    if family not in FAMILIES:
        raise ValueError(f"`family` must be {' or '.join(map(repr, FAMILIES))}, got {family!r}")
    for name in options:
        owners = [owner for owner in FAMILIES if name in _option_names(owner)]
        if family not in owners:
            belongs = (
                f"it belongs to {owners[0]!r}" if owners else f"its options are {', '.join(_option_names(family))}"
            )
            raise ValueError(f"`{name}` is no option of the family {family!r}: {belongs}")


def _option_names(family: str) -> list[str]:
    # the first parameter is the model
    return list(inspect.signature(FAMILIES[family]).parameters)[1:]
