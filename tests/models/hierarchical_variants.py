"""Tiny hierarchical models, one of every kind of schedule, and the schedule written out."""

from collections.abc import Collection

import torch
from transformers import HrmTextConfig, PreTrainedConfig

from hf_loop import HierarchicalConfig, HierarchicalForCausalLM
from hf_loop.models.state_noise import sine_normal

from .tiny_backbones import COMMON, tiny_backbone


HRM_TEXT_SCHEDULE = {"stack_norm": "final", "gradient": "last_k", "backprop_low_cycles": [2]}
VARIANTS = {
    "plain": {},
    "shared stack": {"shared_stack": True, "low_cycles": 2},
    "add": {"injection": "add", "state_init": "zeros", "gradient": "last_cycle"},
    "final norm": {"stack_norm": "final", "injection": "add", "gradient": "one_step"},
    "no norm": {"stack_norm": "none", "embedding_scale": 3},
    "prelude and coda": {
        "num_prelude_layers": 1,
        "num_coda_layers": 1,
        "stack_repeats": 2,
        "injection": "diagonal",
        "injection_norm": False,
        "state_init": "sine_normal",
        "state_seed": 3,
        "stack_norm": "none",
    },
    "outer layers and final norm": {
        "num_prelude_layers": 1,
        "num_coda_layers": 1,
        "shared_stack": True,
        "stack_norm": "final",
        "injection": "diagonal",
        "gradient": "last_cycle",
    },
    "hrm_text": {"model_type": "hrm_text", **HRM_TEXT_SCHEDULE},
}


def tiny_hrm_text_config(**overrides) -> HrmTextConfig:
    """Two layers in each stack; every head has its own keys and values."""
    fields = {name: value for name, value in COMMON.items() if name != "num_key_value_heads"}
    return HrmTextConfig(**{**fields, "num_hidden_layers": 2, "initializer_range": 0.05, **overrides})


def tiny_hierarchical(model_type: str = "llama", seed: int = 0, tie_word_embeddings: bool = False, **schedule):
    """A hierarchical model over a four-layer backbone, three slow cycles unless told otherwise, in evaluation mode.

    Its weights are larger than freshly initialised ones, so that two different computations differ visibly.
    """
    backbone_config: PreTrainedConfig
    if model_type == "hrm_text":
        backbone_config = tiny_hrm_text_config(tie_word_embeddings=tie_word_embeddings)
    else:
        backbone_config = tiny_backbone(model_type, tie_word_embeddings=tie_word_embeddings)
    torch.manual_seed(seed)
    config = HierarchicalConfig(backbone_config=backbone_config, **{"num_loops": 3, "low_cycles": 2, **schedule})
    model = HierarchicalForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0)
    return model


def reference_logits(
    model: HierarchicalForCausalLM,
    input_ids: torch.Tensor,
    num_loops: int,
    detached: Collection[tuple[int, int]] = (),
) -> torch.Tensor:
    """The schedule of 2506.21734 over the layers of a Llama, without a mask (sdpa is then causal) or a cache.

    `detached` names the stack calls (slow cycle, call in it) that gradient does not pass.
    """
    config, llama = model.config, model.model.backbone
    encoded = llama.embed_tokens(input_ids) * config.embedding_scale
    rotary = llama.rotary_emb(encoded, torch.arange(input_ids.shape[1])[None])
    first, last = config.num_prelude_layers, 4 - config.num_coda_layers
    layers = list(llama.layers[first:last])
    fast = slow = layers
    if not config.shared_stack:
        fast, slow = layers[: len(layers) // 2], layers[len(layers) // 2 :]

    def run(stack, state, call):
        if config.injection == "diagonal":
            state = model.model.stack_injection(state, encoded)
        for layer in config.stack_repeats * stack:
            state = layer(state, position_embeddings=rotary)
        if config.stack_norm == "weightless":
            state = state * (state.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()
        elif config.stack_norm == "final":
            state = llama.norm(state)
        return state.detach() if call in detached else state

    for layer in llama.layers[:first]:
        encoded = layer(encoded, position_embeddings=rotary)
    high = encoded if config.state_init in ("input", "sine_normal") else 0 * encoded
    low = 0 * encoded
    if config.state_init == "sine_normal":
        positions, std = torch.arange(input_ids.shape[1])[None], (2 / 5 / config.hidden_size) ** 0.5
        noise = sine_normal(positions[:, :1], positions, config.hidden_size, std, encoded.dtype, config.state_seed)
        low = noise.expand_as(encoded)
    for cycle in range(num_loops):
        for step in range(config.low_cycles):
            state = low + high + (encoded if config.injection == "add" else 0)
            low = run(fast, state, (cycle, step))
        high = run(slow, high + low, (cycle, config.low_cycles))
    for layer in llama.layers[last:]:
        high = layer(high, position_embeddings=rotary)
    return model.lm_head(high if config.stack_norm == "final" and last == 4 else llama.norm(high))
