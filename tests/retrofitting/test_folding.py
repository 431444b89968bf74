"""Layers folded into shared ones: nothing is lost at full rank, and as little as possible below it."""

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model

from hf_loop import LoopedForCausalLM, retrofit, unroll

from ..models.model_tester import random_ids
from .tiny_models import tiny_decoder


INPUT_IDS = random_ids(2, 12)


def distinct_decoder(model_type: str, **overrides):
    """A decoder of which no two norms or biases are alike either."""
    model = tiny_decoder(model_type, **overrides)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("fold", ["average", "first"])
@pytest.mark.parametrize(
    "model_type", ["llama", "qwen2", "qwen3", "olmo2", "phi3", "gemma2", "gemma3_text", "gpt_neox"]
)
@torch.no_grad()
def test_full_rank_reproduces_the_original(model_type, fold, tmp_path):
    base = distinct_decoder(model_type)
    expected = base(INPUT_IDS).logits
    num_parameters = sum(parameter.numel() for parameter in base.base_model.layers.parameters())
    looped = retrofit(base, num_loops=2, fold=fold, loop_lora_rank=None)
    assert looped.config.num_core_layers == 2
    tolerance = 1e-4 * float(expected.abs().max())
    torch.testing.assert_close(looped(INPUT_IDS).logits, expected, atol=tolerance, rtol=0)
    generated = looped.generate(INPUT_IDS, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.equal(generated, base_generate(model_type))
    looped.save_pretrained(tmp_path)
    loaded = LoopedForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(INPUT_IDS).logits, looped(INPUT_IDS).logits)
    shared = sum(parameter.numel() for parameter in looped.model.backbone.layers.parameters())
    assert 2 * shared == num_parameters
    torch.testing.assert_close(unroll(looped)(INPUT_IDS).logits, expected, atol=tolerance, rtol=0)


def base_generate(model_type: str) -> torch.Tensor:
    return distinct_decoder(model_type).generate(INPUT_IDS, max_new_tokens=4, do_sample=False, pad_token_id=0)


@pytest.mark.parametrize(
    ("schedule", "overrides"),
    [
        ({"num_prelude_layers": 1, "num_coda_layers": 1, "num_loops": 2}, {}),
        ({"num_prelude_layers": 1, "num_loops": 3}, {}),
        ({"num_loops": 4}, {}),
        ({"num_loops": 3}, {"num_hidden_layers": 6}),
        ({"num_coda_layers": 2, "num_loops": 2, "injection": "concat"}, {}),
    ],
    ids=str,
)
@torch.no_grad()
def test_every_loop_stands_for_its_own_layers(schedule, overrides):
    base = distinct_decoder("llama", **overrides)
    expected = base(INPUT_IDS).logits
    separate = copy.deepcopy(base.model.layers)
    looped = retrofit(base, fold="average", loop_lora_rank=None, **schedule)
    num_prelude, num_core, num_coda = looped.model.layer_counts()
    assert num_prelude + num_core * schedule["num_loops"] + num_coda == len(separate)
    for loop in range(schedule["num_loops"]):
        for index, layer in enumerate(looped.model.core_layers()):
            merged = looped.model.loop_lora.merged_state_dict(layer, index, loop)
            original = separate[num_prelude + loop * num_core + index].state_dict()
            for name, weight in original.items():
                torch.testing.assert_close(merged[name], weight, atol=1e-5, rtol=1e-5)
    # an injection brings the prelude's output to layers that never saw it
    if "injection" not in schedule:
        torch.testing.assert_close(looped(INPUT_IDS).logits, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_dropped_layers_are_not_folded():
    base = distinct_decoder("llama", num_hidden_layers=8)
    plain = retrofit(copy.deepcopy(base), num_prelude_layers=1, core_layers="3-6", num_coda_layers=1, num_loops=1)
    options = {"num_prelude_layers": 1, "core_layers": "3-6", "num_coda_layers": 1}
    looped = retrofit(base, num_loops=2, fold="first", loop_lora_rank=None, **options)
    torch.testing.assert_close(looped(INPUT_IDS).logits, plain(INPUT_IDS).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("fold", ["average", "first"])
@torch.no_grad()
def test_the_update_is_the_best_of_its_rank(fold):
    base = distinct_decoder("llama")
    first, second = (base.model.layers[index].mlp.up_proj.weight.clone() for index in (1, 3))
    gain = base.model.layers[3].input_layernorm.weight.clone()
    looped = retrofit(base, num_loops=2, fold=fold, loop_lora_rank=8)
    layer = looped.model.core_layers()[1]
    shared = (first + second) / 2 if fold == "average" else first
    torch.testing.assert_close(layer.mlp.up_proj.weight, shared)
    merged = [looped.model.loop_lora.merged_state_dict(layer, 1, loop) for loop in range(2)]
    for original, weights in ((first, merged[0]), (second, merged[1])):
        error = (weights["mlp.up_proj.weight"] - original).norm()
        # by the theorem of Eckart and Young, no matrix of rank 8 leaves less
        smallest = torch.linalg.svdvals((original - shared).double())[8:].norm()
        torch.testing.assert_close(error, smallest.float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(merged[1]["input_layernorm.weight"], gain)


@torch.no_grad()
def test_more_rank_loses_less():
    expected = distinct_decoder("llama")(INPUT_IDS).logits
    errors = [
        float(
            (
                retrofit(distinct_decoder("llama"), num_loops=2, fold="average", loop_lora_rank=rank)(INPUT_IDS).logits
                - expected
            ).norm()
        )
        for rank in (0, 16, 48, 64)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 < errors[-2]


def test_without_updates_only_the_shared_layers_remain():
    looped = retrofit(distinct_decoder("llama"), num_loops=2, fold="first")
    assert looped.model.loop_lora is None and not looped.config.loop_lora_vectors
    original = distinct_decoder("llama").model.layers
    for layer, kept in zip(looped.model.core_layers(), original[:2]):
        for name, parameter in layer.named_parameters():
            assert torch.equal(parameter, kept.get_parameter(name))


def test_updates_of_some_maps_only():
    options = {"loop_lora_rank": 4, "loop_lora_target_modules": ["q_proj"], "loop_lora_vectors": False}
    looped = retrofit(distinct_decoder("llama"), num_loops=2, fold="average", loop_lora_beyond="cyclic", **options)
    names = [name for name, _ in looped.model.loop_lora[0].named_parameters()]
    assert names == ["self_attn_q_proj_A", "self_attn_q_proj_B"]
    assert looped.config.loop_lora_beyond == "cyclic"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@torch.no_grad()
def test_other_precisions(dtype):
    base = distinct_decoder("llama").to(dtype)
    expected = base(INPUT_IDS).logits
    looped = retrofit(base, num_loops=2, fold="average", loop_lora_rank=None)
    assert {parameter.dtype for parameter in looped.parameters()} == {dtype}
    tolerance = {torch.bfloat16: 0.05, torch.float64: 1e-12}[dtype] * float(expected.abs().max())
    torch.testing.assert_close(looped(INPUT_IDS).logits, expected, atol=tolerance, rtol=0)


@torch.no_grad()
def test_zero_updates_without_folding():
    base = distinct_decoder("gemma2")
    expected = copy.deepcopy(base)(INPUT_IDS).logits
    looped = retrofit(base.to(torch.bfloat16).float(), num_loops=3, loop_lora_rank=4, loop_lora_vectors=True)
    assert looped.config.loop_lora_num_loops == 3
    assert all(parameter.isfinite().all() for parameter in looped.model.loop_lora.parameters())
    plain = retrofit(distinct_decoder("gemma2").to(torch.bfloat16).float(), num_loops=3)
    assert torch.equal(looped(INPUT_IDS).logits, plain(INPUT_IDS).logits)
    assert not torch.equal(looped(INPUT_IDS).logits, expected)


@pytest.mark.parametrize(
    ("model_type", "options", "message"),
    [
        ("llama", {"num_loops": 3}, "`fold` cannot share the 4 core layers evenly between num_loops=3"),
        ("llama", {"num_loops": 1}, "`fold` needs `num_loops` of at least 2, got 1"),
        ("llama", {"fold": "last"}, r"`fold` must be 'average' \| 'first' \| None, got 'last'"),
        ("llama", {"loop_lora_target_modules": ["c_attn"]}, "names 'c_attn', but the linear maps of the core are"),
        ("llama", {"fold": None, "loop_lora_rank": None}, "`loop_lora_rank` None .* needs `fold`"),
        ("llama", {"loop_lora_rank": -2}, "`loop_lora_rank` must be an integer of at least 1, got -2"),
        ("llama", {"loop_lora_rank": 0, "loop_lora_vectors": True}, "`loop_lora_vectors` needs `loop_lora_rank`"),
        ("qwen3_moe", {}, "cannot share mlp.experts.gate_up_proj of layer 0: Qwen3MoeExperts is neither"),
        ("mixtral", {}, "cannot share mlp.gate.weight of layer 0: MixtralTopKRouter is neither"),
        ("lfm2", {}, "cannot share conv.conv.weight of layer 0: Conv1d is neither"),
        ("qwen3_next", {}, "cannot share linear_attn.dt_bias of layer 0"),
        ("gpt_oss", {}, "cannot share self_attn.sinks of layer 0"),
        (
            "gemma2",
            {"num_loops": 4},
            "layers 0 and 1: they differ in their type, sliding_attention and full_attention",
        ),
        ("smollm3", {}, "cannot share layers 1 and 3: they differ in self_attn.use_rope"),
        ("deepseek_v3", {"num_prelude_layers": 0, "num_loops": 4}, "layers 0 and 1: they differ in mlp"),
    ],
    ids=str,
)
@torch.no_grad()
def test_what_cannot_be_folded_is_refused_and_left_as_it_was(model_type, options, message):
    base = distinct_decoder(model_type)
    expected = base(INPUT_IDS).logits
    with pytest.raises(ValueError, match=message) as error:
        retrofit(base, **{"num_loops": 2, "fold": "average", "loop_lora_rank": 4, **options})
    assert "\n" not in str(error.value)
    assert torch.equal(base(INPUT_IDS).logits, expected)


def test_weights_that_are_not_plain_are_refused():
    base = distinct_decoder("llama")
    weight = base.model.layers[2].mlp.up_proj.weight
    base.model.layers[2].mlp.up_proj.weight = torch.nn.Parameter(weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="not quantized: mlp.up_proj.weight of layer 2"):
        retrofit(base, num_loops=2, fold="first")
    base = inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"]), distinct_decoder("llama"))
    with pytest.raises(ValueError, match="carries a PEFT adapter .*q_proj.: merge it"):
        retrofit(base, num_loops=2, fold="first")
    base = distinct_decoder("llama")
    base.model.layers[3].register_buffer("offset", torch.ones(1))
    base.model.layers[1].register_buffer("offset", torch.zeros(1))
    with pytest.raises(ValueError, match="cannot share layers 1 and 3: they differ in offset"):
        retrofit(base, num_loops=2, fold="first")
