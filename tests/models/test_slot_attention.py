"""Looped and hierarchical models under the rules of vLLM and SGLang, which bring an attention of their own."""

import copy

import pytest
import torch
from torch import nn

from hf_loop import LoopedConfig, LoopedForCausalLM
from hf_loop.models import backbone_check
from hf_loop.models.slot_attention import SLOT_ATTENTION, SlotAttention

from .fake_engines import ENGINES, Engine, Sglang, Vllm, interface_call
from .families import FAMILIES, inputs_of
from .hierarchical_variants import VARIANTS as HIERARCHICAL
from .hierarchical_variants import tiny_hierarchical
from .loop_lora_models import tiny_loop_lora
from .looped_variants import VARIANTS as LOOPED
from .looped_variants import tiny_looped
from .model_tester import random_ids
from .tiny_backbones import MODEL_TYPES, tiny_backbone
from .tiny_decoders import tiny_decoder


MODELS = {
    **{name: (tiny_looped, fields) for name, fields in LOOPED.items()},
    "per-loop LoRA": (tiny_loop_lora, {}),
    "windows in half of the layers": (tiny_looped, {"model_type": "gemma3_text", "num_prelude_layers": 1}),
    "windows in all layers": (tiny_looped, {"model_type": "ministral"}),
    **{f"hierarchical: {name}": (tiny_hierarchical, fields) for name, fields in HIERARCHICAL.items()},
}

# decoders that an engine cannot run -> what the message says of the reason; all others must give the model's logits
NO_ATTENTION = "attention of their own"
NO_CACHE = "no cache for layers of the types"
NO_HEAD = "this head does more"
REFUSED = {
    **dict.fromkeys(("biogpt", "bloom", "falcon", "gpt_neo", "gpt_neox_japanese", "mpt", "xglm"), NO_ATTENTION),
    "stablelm": NO_ATTENTION,
    **dict.fromkeys(("bamba", "falcon_h1", "granitemoehybrid", "jamba", "kimi_linear", "lara_mini"), NO_CACHE),
    **dict.fromkeys(("lfm2", "lfm2_moe", "lfm3", "nemotron_h", "olmo_hybrid", "qwen3_5_moe_text"), NO_CACHE),
    **dict.fromkeys(("qwen3_5_text", "qwen3_next", "zamba", "zamba2"), NO_CACHE),
    **dict.fromkeys(("granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoeshared"), NO_HEAD),
    **dict.fromkeys(("hyperclovax", "minicpm3", "parcae_backbone"), NO_HEAD),
    **dict.fromkeys(("gemma4_text", "gemma4_unified_text"), "the heads of its layers differ"),
    "gpt_oss": "reads s_aux",
    "deepseek_v3": "have the sizes (24, 24, 16)",
    "doge": "make attention masks of their own",
    **dict.fromkeys(("gpt_bigcode", "mimo_v2_flash"), "`num_key_value_heads`"),
    "nemotron": "hands no keywords on",
}
# vLLM takes a window for that of all layers, unless their types differ
REFUSED_BY_VLLM = {**REFUSED, **dict.fromkeys(("laguna", "mellum"), "sees all tokens, and the engine lets it see 5")}
# SGLang's fallback goes by their types, and reads no soft-capping of scores
REFUSED_BY_SGLANG = {
    **REFUSED,
    **dict.fromkeys(("doge", "mistral", "phi3", "starcoder2"), "sees 5 tokens, and the engine lets it see all"),
    **dict.fromkeys(("gemma2", "vaultgemma"), "attention scores are soft-capped"),
}


@pytest.fixture(params=ENGINES)
def engine(request):
    return ENGINES[request.param]


def read_in_pieces(engine: Engine, input_ids: torch.Tensor) -> torch.Tensor:
    """Read two texts packed in a row, a prompt of each, then a token of one and three of the other, then the rest."""
    first, second = input_ids.tolist()
    pieces = [{0: first[:7], 1: second[:4]}, {0: first[7:8], 1: second[4:7]}, {1: second[7:], 0: first[8:]}]
    read: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    for piece in pieces:
        for text, logits in engine.read(piece).items():
            read[text].append(logits)
    return torch.stack([torch.cat(read[text]) for text in (0, 1)])


def check_engine(engine_class: type[Engine], model) -> Engine:
    """Compare an engine with the model itself, and count the calls of every slot."""
    engine = engine_class(copy.deepcopy(model.config), model.state_dict())
    input_ids = random_ids(2, 12)
    with torch.no_grad():
        expected = model(input_ids).logits
    torch.testing.assert_close(read_in_pieces(engine, input_ids), expected, rtol=1e-4, atol=2e-5)
    assert sorted(engine.attention) == list(range(model.config.num_hidden_layers))
    assert {attention.num_calls for attention in engine.attention.values()} == {3}
    return engine


@pytest.mark.parametrize("name", MODELS)
def test_vllm_computes_the_models_logits(name):
    make, fields = MODELS[name]
    check_engine(Vllm, make(**fields))


@pytest.mark.parametrize("name", [*list(MODELS)[:5], *list(MODELS)[-9:]])
def test_sglang_computes_the_models_logits(name):
    make, fields = MODELS[name]
    check_engine(Sglang, make(**fields))


@pytest.mark.parametrize("num_loops", [1, 2, 5])
@pytest.mark.parametrize("name", ["prelude and coda", "hierarchical: plain"])
def test_an_engine_runs_as_many_loops_as_the_configuration_says(engine, name, num_loops):
    make, fields = MODELS[name]
    made = check_engine(engine, make(**{**fields, "num_loops": num_loops}))
    assert len(made.attention) == {"prelude and coda": 2 + 2 * num_loops, "hierarchical: plain": 6 * num_loops}[name]


@pytest.mark.parametrize("make", [tiny_looped, tiny_hierarchical], ids=["looped", "hierarchical"])
def test_vllm_finds_one_module_without_parameters_for_every_slot(make):
    model = make("gemma3_text")
    engine = Vllm(copy.deepcopy(model.config), model.state_dict())
    slots = {module.layer_idx: module for module in engine.model.modules() if isinstance(module, SlotAttention)}
    assert list(slots) == list(range(model.config.num_hidden_layers)) and len(slots) > 4
    assert not any(list(module.parameters()) for module in slots.values())
    assert set(engine.model.state_dict()) == set(model.model.state_dict())
    for slot, module in slots.items():
        layer_type = model.config.layer_types[slot]
        assert module.attn.window == (5 if layer_type == "sliding_attention" else None)
        # not that of the size of a head, which an engine would take if it could not read this
        assert module.attn.scale == module.scaling == 256**-0.5 != 16**-0.5
    # a list of as many modules as slots would be taken for the decoder's layers
    lists = [module for module in engine.model.modules() if isinstance(module, nn.ModuleList)]
    assert all(len(module) != model.config.num_hidden_layers for module in lists)
    # the class that the engine compiles
    assert engine.model.get_decoder() is engine.model


def test_the_decoders_own_attention_is_no_longer_the_engines():
    model = tiny_looped()
    engine = Vllm(copy.deepcopy(model.config), model.state_dict())
    attention = engine.model.backbone.layers[0].self_attn
    # by its source text it would be found
    assert interface_call(type(attention)) is not None and isinstance(attention.layer_idx, int)
    assert attention.config._attn_implementation == SLOT_ATTENTION
    assert engine.config._attn_implementation == "vllm"
    # the engine makes a model twice, to find its class first
    again = Vllm(engine.config, model.state_dict())
    assert sorted(again.attention) == sorted(engine.attention)


def tiny_of(model_type: str):
    """Without `num_key_value_heads` where the architecture has none: an engine would read it."""
    config = tiny_backbone(model_type)
    has_groups = "num_key_value_heads" in type(config).__dataclass_fields__
    model = tiny_looped(model_type)
    if not has_groups:
        vars(model.config.backbone_config).pop("num_key_value_heads", None)
    return model


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_vllm_runs_a_decoder_or_is_refused_by_name(model_type):
    check_decoder(Vllm, model_type, REFUSED_BY_VLLM.get(model_type))


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "olmo3", "glm4", *sorted(REFUSED_BY_SGLANG)])
def test_sglang_runs_a_decoder_or_is_refused_by_name(model_type):
    if model_type in MODEL_TYPES:
        check_decoder(Sglang, model_type, REFUSED_BY_SGLANG.get(model_type))


def check_decoder(engine: type[Engine], model_type: str, reason: str | None) -> None:
    model = tiny_of(model_type)
    if reason is None:
        check_engine(engine, model)
        return
    with pytest.raises(ValueError) as caught:
        check_engine(engine, model)
    assert reason in str(caught.value)
    assert model_type in str(caught.value).lower()


@pytest.mark.parametrize("family", ["feedback", "sleep", "puzzle"])
def test_a_family_whose_memory_an_engine_would_lose_is_refused_when_it_is_made(engine, family):
    model = FAMILIES[family]()
    with pytest.raises(ValueError, match=rf"cannot run a {model.config.model_type} model of \w+: "):
        engine(copy.deepcopy(model.config), model.state_dict())


@pytest.mark.parametrize("family", FAMILIES)
def test_an_attention_function_of_an_engine_cannot_be_set_later(family):
    model = FAMILIES[family]()
    model.set_attn_implementation("vllm")
    with pytest.raises(ValueError, match="'vllm' of vLLM must be in the configuration that a model is made of"):
        model.model(**inputs_of(family))


def test_a_tested_and_an_untested_decoder_open_while_parameters_go_to_meta(engine, monkeypatch):
    model = LoopedForCausalLM(LoopedConfig(backbone_config=tiny_decoder("internlm3"), num_loops=2)).eval()
    # as in a new process
    monkeypatch.setattr(backbone_check, "_RESULTS", {})
    check_engine(engine, model)
    assert len(backbone_check._RESULTS) == 1


def test_what_an_engine_cannot_do_is_refused():
    model = tiny_looped()
    engine = Vllm(copy.deepcopy(model.config), model.state_dict())
    input_ids = random_ids(1, 5)
    engine.batch[0] = 5
    with pytest.raises(ValueError, match="`num_loops` needs 13 or more cache slots, and the engine made 12"):
        engine.model(input_ids, use_cache=False, num_loops=4)
    with pytest.raises(ValueError, match="`attention_mask` and blocks of tokens must be None"):
        engine.model(input_ids, attention_mask=torch.ones(1, 5), use_cache=False)
    with pytest.raises(ValueError, match="LlamaAttention did not get the cache slot of its call"):
        engine.model.backbone(input_ids, use_cache=False)
    with pytest.raises(ValueError, match="`attention_instances` needs a model made of a configuration"):
        model.model(input_ids, attention_instances={})


def test_a_compiled_graph_has_the_slots_of_an_engine():
    model = tiny_looped("gemma3_text", num_prelude_layers=1)
    engine = Vllm(copy.deepcopy(model.config), model.state_dict())
    input_ids = random_ids(1, 9)
    engine.batch[0] = 9
    positions = torch.arange(9)[None]
    compiled = torch.compile(engine.model.forward, backend="eager", fullgraph=True)
    with torch.no_grad():
        states = compiled(input_ids=input_ids, use_cache=False, position_ids=positions, return_dict=False)[0]
        expected = model.model(input_ids).last_hidden_state
    torch.testing.assert_close(states, expected, rtol=1e-4, atol=2e-5)
