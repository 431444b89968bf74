"""The generation configuration of a model that another library runs, which knows none of our settings."""

import copy
from collections.abc import Collection
from typing import Any

from transformers import GenerationConfig, PreTrainedModel


# values under which `generate` returns what it returns without the setting
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "exit_criterion": (None,),
    "cache_policy": (None, "own"),
    "contrast_loop": (None,),
}
# what else is left out: it says how the others work, changes no token, or was chosen when the loops were written out
LEFT_OUT = (
    *("exit_threshold", "min_loops", "contrast_weight", "draft_loops", "num_draft_tokens"),
    *("num_loops", "num_sleep_passes"),
)


def plain_generation_config(model: PreTrainedModel, written_elsewhere: Collection[str] = ()) -> GenerationConfig:
    """The generation configuration of `model` without the settings that only models of this library have.

    Args:
        model (`PreTrainedModel`): a model of this library.
        written_elsewhere (`Collection[str]`): settings that the other model has too, at a place of its own.

    Returns:
        `GenerationConfig`: a copy.

    Raises:
        ValueError: a setting changes what `generate` returns, so that the other model would return something else.
    """
    plain: Any = copy.deepcopy(model.generation_config)
    for name, values in WITHOUT_EFFECT.items():
        value = getattr(plain, name, None)
        if value not in values and name not in written_elsewhere:
            raise ValueError(
                f"`{name}` of `generation_config` is {value!r}, which only hf_loop's `generate` knows: set it to None "
                "first"
            )
    for name in (*WITHOUT_EFFECT, *LEFT_OUT):
        vars(plain).pop(name, None)
    return plain
