"""HRM-Text (https://huggingface.co/papers/2605.20613), transformers' native `hrm_text`, and back.

transformers freezes the number of cycles when a configuration is first made: caches are sized by it, and a checkpoint
loaded with another `H_cycles` fails in generation. Here the same layers run on our schedule, where the slow cycles are
`num_loops` like any other depth. Nothing is computed differently: logits are equal bit for bit.
"""

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import HrmTextConfig, HrmTextForCausalLM

from ...models import HierarchicalConfig, HierarchicalForCausalLM
from ...models.adapters import refuse_adapter
from ...models.checks import check_positive_int
from ...models.offloading import check_weights_are_here
from .native import TOKEN_IDS, convert_native_tensors, read_native_config, write_native
from .rules import check_schedule


# the schedule of HRM-Text: what else a hierarchical model may be set to
SCHEDULE: dict[str, Any] = {
    "injection": "none",
    "state_init": "input",
    "stack_norm": "final",
    "stack_repeats": 1,
    "embedding_scale": 1.0,
}


def recognizes(config: dict[str, Any]) -> bool:
    """Whether a checkpoint's `config.json` is that of transformers' `hrm_text`."""
    return config.get("model_type") == "hrm_text"


def convert_config(config: dict[str, Any]) -> HierarchicalConfig:
    """The configuration of the hierarchical model.

    Args:
        config (`dict`): the native `config.json`; special tokens that it lacks are the tokenizer's.

    Returns:
        `HierarchicalConfig`, over the native configuration.
    """
    native_config = read_native_config(HrmTextConfig, config)
    return HierarchicalConfig(
        backbone_config=native_config,
        num_loops=native_config.H_cycles,
        low_cycles=native_config.L_cycles,
        gradient="last_k",
        backprop_low_cycles=list(native_config.L_bp_cycles or []),
        **SCHEDULE,
    )


def convert_state_dict(config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors from the native ones.

    transformers' own class opens them, which knows the fused projections that the published files hold.
    """
    return convert_native_tensors(HrmTextForCausalLM, read_native_config(HrmTextConfig, config), tensors)


def to_hrm_text(model: HierarchicalForCausalLM, num_loops: int | None = None) -> HrmTextForCausalLM:
    """Write a hierarchical model over `hrm_text` layers back as the native model, which transformers and vLLM run.

    Its logits are the hierarchical model's, bit for bit. It shares no weight with `model`.

    Args:
        model (`HierarchicalForCausalLM`): the hierarchical model.
        num_loops (`int`, *optional*): slow cycles that the native model is frozen at, `model.config.num_loops` if not
            given.

    Raises:
        ValueError: the layers are others, or the schedule is none that the native model has; or `model` carries an
            adapter that was not merged, or its weights are offloaded.
    """
    refuse_adapter(model, "it is exported")
    config = model.config
    if config.backbone_config.model_type != "hrm_text":
        raise ValueError(f"`model` must run hrm_text layers, got {config.backbone_config.model_type!r}")
    check_weights_are_here(model, "model")
    check_schedule(config, SCHEDULE, "hrm_text")
    num_loops = config.num_loops if num_loops is None else check_positive_int("num_loops", num_loops)
    fields = config.backbone_config.to_dict()
    # the native configuration derives its number of layer calls only where this is absent
    fields["num_hidden_layers"] = fields.pop("num_layers_per_stack")
    fields |= {name: getattr(config, name) for name in (*TOKEN_IDS, "tie_word_embeddings")}
    all_low_cycles = [config.low_cycles] * num_loops
    fields |= {
        "H_cycles": num_loops,
        "L_cycles": config.low_cycles,
        "L_bp_cycles": all_low_cycles if config.gradient == "full" else list(config.backprop_low_cycles or []),
        "architectures": [HrmTextForCausalLM.__name__],
    }
    return write_native(HrmTextForCausalLM, HrmTextConfig.from_dict(fields), model)


def save(model: HierarchicalForCausalLM, folder: Path, num_loops: int | None = None) -> None:
    """Write what [`to_hrm_text`] returns into a folder."""
    to_hrm_text(model, num_loops).save_pretrained(folder)
