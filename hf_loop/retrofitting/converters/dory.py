"""Dory, transformers' native `dory` (5.24), a looped nGPT (https://huggingface.co/papers/2410.01131), and back.

Dory keeps every state at length one. Its core receives `s / |s| + e / |e|` before every loop, where `e` is the
prelude's output, with which the state also starts. transformers freezes the number of loops in the configuration; here
the same layers run on our schedule, with the same results.

`recurrent_kv_cache_mode` is a cache policy here: `"per_loop"` is `"own"`, the default, and `"last_loop"` has the same
name. A converted model has it in its generation configuration; a call of `forward` takes it as `cache_policy`.
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
from ...models.offloading import check_weights_are_here
from .native import TOKEN_IDS, convert_native_tensors, read_native_config, write_native
from .rules import check_schedule


# the schedule of Dory: what else a looped model may be set to
SCHEDULE: dict[str, Any] = {
    "injection": "unit_add",
    "state_init": "input",
    "loop_update": "replace",
    "loop_norm": "none",
    "coda_norm": False,
    "state_projection": False,
    "exit_gate": False,
    "loop_lora_rank": 0,
}
# of a cache policy, by Dory's name
POLICIES = {"per_loop": "own", "last_loop": "last_loop"}


def recognizes(config: dict[str, Any]) -> bool:
    """Whether a checkpoint's `config.json` is that of transformers' `dory`."""
    return config.get("model_type") == "dory"


def convert_config(config: dict[str, Any]) -> LoopedConfig:
    """The configuration of the looped model.

    Args:
        config (`dict`): the native `config.json`; special tokens that it lacks are the tokenizer's.

    Returns:
        `LoopedConfig`, over the native configuration.

    Raises:
        ValueError: the installed transformers has no `dory`.
    """
    native_config = _native_config(config)
    return LoopedConfig(
        backbone_config=native_config,
        num_prelude_layers=native_config.n_input_layers,
        num_coda_layers=native_config.n_output_layers,
        num_loops=native_config.n_recurrent_loops,
        **SCHEDULE,
    )


def generation_settings(config: dict[str, Any]) -> dict[str, Any]:
    """What the converted model's generation configuration says besides the special tokens."""
    policy = POLICIES[_native_config(config).recurrent_kv_cache_mode]
    return {} if policy == "own" else {"cache_policy": policy}


def convert_state_dict(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors from the native ones.

    transformers' own class opens them: published files hold attention and MLP of a layer as two layers.
    """
    return convert_native_tensors(transformers.DoryForCausalLM, _native_config(config), tensors)


def to_dory(model: LoopedForCausalLM, num_loops: int | None = None) -> "transformers.DoryForCausalLM":
    """Write a looped model over Dory's layers back as the native model, which transformers runs.

    Its logits are the looped model's. It shares no weight with `model`.

    Args:
        model (`LoopedForCausalLM`): the looped model.
        num_loops (`int`, *optional*): loops that the native model is frozen at, `model.config.num_loops` if not given.

    Raises:
        ValueError: the layers are others, or the schedule or the cache policy of `model.generation_config` is none
            that the native model has; or `model` carries an adapter that was not merged, or its weights are offloaded.
    """
    refuse_adapter(model, "it is exported")
    config = model.config
    if config.backbone_config.model_type != "dory":
        raise ValueError(f"`model` must run dory layers, got {config.backbone_config.model_type!r}")
    check_weights_are_here(model, "model")
    check_schedule(config, SCHEDULE, "dory")
    policy = getattr(model.generation_config, "cache_policy", None) or "own"
    if policy not in POLICIES.values():
        raise ValueError(f"`cache_policy` of dory is 'own' or 'last_loop', got {policy!r} in `generation_config`")
    native_config = copy.deepcopy(config.backbone_config)
    native_config.n_input_layers = config.num_prelude_layers
    native_config.n_recurrent_layers = config.num_core_layers
    native_config.n_output_layers = config.num_coda_layers
    native_config.n_recurrent_loops = (
        config.num_loops if num_loops is None else check_positive_int("num_loops", num_loops)
    )
    native_config.recurrent_kv_cache_mode = next(name for name, own in POLICIES.items() if own == policy)
    native_config.architectures = [transformers.DoryForCausalLM.__name__]
    for name in (*TOKEN_IDS, "tie_word_embeddings"):
        setattr(native_config, name, getattr(config, name))
    return write_native(transformers.DoryForCausalLM, native_config, model, ("cache_policy",))


def save(model: LoopedForCausalLM, folder: Path, num_loops: int | None = None) -> None:
    """Write what [`to_dory`] returns into a folder."""
    to_dory(model, num_loops).save_pretrained(folder)


def _native_config(config: dict[str, Any]) -> Any:
    if "dory" not in CONFIG_MAPPING:
        raise ValueError(f"a dory checkpoint needs transformers 5.24 or later, got {transformers.__version__}")
    return read_native_config(CONFIG_MAPPING["dory"], config)
