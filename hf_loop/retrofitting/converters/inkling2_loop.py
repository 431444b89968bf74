"""Inkling-2 with a loop, transformers' native `inkling2_loop` (5.24), and back.

Its core runs `loop_num_passes` times. Every pass starts again from the prelude's output; from the second on, layers
receive messages, which are read from the states of the pass before. transformers freezes the number of passes in the
configuration; here the same layers run on our schedule, with the same results.

A checkpoint with images has a language model and a vision tower. Converted is the language model. The vision tower is
read, so that unknown tensors are found, and left out.
"""

import copy
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor
from transformers import CONFIG_MAPPING

from ...models import LoopedConfig, LoopedForCausalLM
from ...models.adapters import refuse_adapter
from ...models.checks import check_positive_int
from ...models.configuration_looped import MESSAGE_SCHEDULE
from ...models.offloading import check_weights_are_here
from .native import TOKEN_IDS, convert_native_tensors, read_native_config, write_native
from .rules import check_schedule


WITH_IMAGES, TEXT = "inkling2_loop", "inkling2_loop_text"
# the schedule: what else a looped model may be set to
SCHEDULE: dict[str, Any] = {"injection": "messages", **MESSAGE_SCHEDULE, "exit_gate": False, "loop_lora_rank": 0}


def recognizes(config: dict[str, Any]) -> bool:
    """Whether a checkpoint's `config.json` is that of transformers' `inkling2_loop`, with images or without."""
    return config.get("model_type") in (WITH_IMAGES, TEXT)


def convert_config(config: dict[str, Any]) -> LoopedConfig:
    """The configuration of the looped model.

    Args:
        config (`dict`): the native `config.json`; special tokens that it lacks are the tokenizer's.

    Returns:
        `LoopedConfig`, over the native configuration of the language model.

    Raises:
        ValueError: the installed transformers has no `inkling2_loop`, or the loop is of no layer, or of more than
            there are.
    """
    text_config = _native_config(config).get_text_config(decoder=True)
    # the native classes never tie them
    text_config.tie_word_embeddings = False
    return LoopedConfig(
        backbone_config=text_config,
        num_prelude_layers=text_config.loop_layer_index_start,
        num_coda_layers=text_config.num_hidden_layers - text_config.loop_layer_index_end,
        num_loops=text_config.loop_num_passes,
        **SCHEDULE,
    )


def convert_state_dict(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors from the native ones.

    transformers' own class opens them: published files have other names, and experts in four or eight bits.
    """
    native_config = _native_config(config)
    if config["model_type"] == TEXT:
        return convert_native_tensors(transformers.Inkling2LoopForCausalLM, native_config, tensors)
    whole_class = transformers.Inkling2LoopForConditionalGeneration
    return convert_native_tensors(whole_class, native_config, tensors, decoder="model.language_model.")


def to_inkling2_loop(model: LoopedForCausalLM, num_loops: int | None = None) -> "transformers.Inkling2LoopForCausalLM":
    """Write a looped model over the layers of Inkling-2 back as the native language model, which transformers runs.

    Its logits are the looped model's. It shares no weight with `model`, and reads no images.

    Args:
        model (`LoopedForCausalLM`): the looped model.
        num_loops (`int`, *optional*): loops that the native model is frozen at, `model.config.num_loops` if not given.

    Raises:
        ValueError: the layers are others, or the schedule is none that the native model has; or `model` carries an
            adapter that was not merged, or its weights are offloaded.
    """
    refuse_adapter(model, "it is exported")
    config = model.config
    if config.backbone_config.model_type != TEXT:
        raise ValueError(f"`model` must run {TEXT} layers, got {config.backbone_config.model_type!r}")
    check_weights_are_here(model, "model")
    check_schedule(config, SCHEDULE, WITH_IMAGES)
    native_config = copy.deepcopy(config.backbone_config)
    native_config.loop_num_passes = (
        config.num_loops if num_loops is None else check_positive_int("num_loops", num_loops)
    )
    native_config.architectures = [transformers.Inkling2LoopForCausalLM.__name__]
    for name in TOKEN_IDS:
        setattr(native_config, name, getattr(config, name))
    return write_native(transformers.Inkling2LoopForCausalLM, native_config, model)


def save(model: LoopedForCausalLM, folder: Path, num_loops: int | None = None) -> None:
    """Write what [`to_inkling2_loop`] returns into a folder."""
    to_inkling2_loop(model, num_loops).save_pretrained(folder)


def _native_config(config: dict[str, Any]) -> Any:
    if TEXT not in CONFIG_MAPPING:
        raise ValueError(
            f"an {WITH_IMAGES} checkpoint needs transformers 5.24 or later, got {transformers.__version__}"
        )
    return read_native_config(CONFIG_MAPPING[config["model_type"]], config)
