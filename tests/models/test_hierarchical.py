"""The hierarchical family against the shared tester and against its schedule written out."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, GenerationConfig

from hf_loop import (
    HierarchicalConfig,
    HierarchicalForCausalLM,
    HierarchicalModel,
    HierarchicalPuzzleConfig,
    LoopedConfig,
    LoopedForCausalLM,
)

from .hierarchical_variants import (
    HRM_TEXT_SCHEDULE,
    VARIANTS,
    reference_logits,
    tiny_hierarchical,
    tiny_hrm_text_config,
)
from .model_tester import CausalModelTester, left_pad, random_ids
from .tiny_backbones import MODEL_TYPES, tiny_backbone


INPUT_IDS = random_ids(2, 9)


class HierarchicalTester(CausalModelTester):
    DEPTHS = ({"num_loops": 1}, {}, {"num_loops": 5})
    SCHEDULE: dict = {}

    def make_model(self, **overrides):
        return tiny_hierarchical(**{**self.SCHEDULE, **overrides})

    def make_cache(self, model, depth):
        return DynamicCache(config=model.config.with_num_loops(depth.get("num_loops", model.config.num_loops)))


class TestPlain(HierarchicalTester):
    SCHEDULE = VARIANTS["plain"]


class TestSharedStack(HierarchicalTester):
    SCHEDULE = VARIANTS["shared stack"]


class TestAdd(HierarchicalTester):
    SCHEDULE = VARIANTS["add"]


class TestPreludeAndCoda(HierarchicalTester):
    SCHEDULE = VARIANTS["prelude and coda"]


class TestHrmText(HierarchicalTester):
    SCHEDULE = VARIANTS["hrm_text"]


class TestSlidingWindows(HierarchicalTester):
    SCHEDULE = {"model_type": "gemma3_text"}


class TestLinearAttention(HierarchicalTester):
    SCHEDULE = {"model_type": "qwen3_5_text", "shared_stack": True}


@pytest.fixture(params=VARIANTS, ids=str)
def model(request):
    return tiny_hierarchical(**VARIANTS[request.param])


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "hrm_text"])
@torch.no_grad()
def test_the_forward_pass_equals_the_schedule_written_out(name):
    model = tiny_hierarchical(**VARIANTS[name])
    for num_loops in (1, 3, 5):
        expected = reference_logits(model, INPUT_IDS, num_loops)
        torch.testing.assert_close(model(INPUT_IDS, num_loops=num_loops).logits, expected, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_the_loop_count_means_the_same_wherever_it_is_given(model, tmp_path):
    model.save_pretrained(tmp_path)
    by_argument = model(INPUT_IDS, num_loops=5).logits
    by_config = AutoModelForCausalLM.from_pretrained(tmp_path, num_loops=5)
    assert torch.equal(by_config(INPUT_IDS).logits, by_argument)
    assert not torch.equal(by_argument, model(INPUT_IDS).logits)

    # a generation config without an end would take the model's
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": 98}
    expected = model.generate(INPUT_IDS, num_loops=5, **options)
    assert torch.equal(by_config.generate(INPUT_IDS, **options), expected)
    assert torch.equal(model.generate(INPUT_IDS, GenerationConfig(num_loops=5, **options)), expected)


@pytest.mark.parametrize("num_loops", [0, -1, 2.5, "x", True])
def test_bad_loop_counts_are_refused(num_loops):
    model = tiny_hierarchical()
    for name in ("num_loops", "num_backprop_loops"):
        with pytest.raises(ValueError, match=name):
            model(INPUT_IDS, **{name: num_loops})
    with pytest.raises(ValueError, match="num_loops"):
        model.generate(INPUT_IDS, num_loops=num_loops)
    for name in ("num_loops", "low_cycles"):
        with pytest.raises(ValueError, match=name):
            HierarchicalConfig(**{name: num_loops})


def test_slots_follow_the_cycles(tmp_path):
    config = tiny_hierarchical(low_cycles=2, num_loops=3).config
    assert (config.num_stack_layers, config.num_hidden_layers) == (2, 18)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path, num_loops=8)
    assert loaded.num_hidden_layers == len(DynamicCache(config=loaded).layers) == 48
    assert "num_hidden_layers" not in loaded.to_dict()
    config.num_hidden_layers = 6
    assert config.num_loops == 1
    with pytest.raises(ValueError, match="`num_hidden_layers` must be .*, got 7"):
        config.num_hidden_layers = 7


def test_more_cycles_append_slots():
    model = tiny_hierarchical()
    few, many = (model(INPUT_IDS, num_loops=n).past_key_values for n in (2, 4))
    assert (len(few.layers), len(many.layers)) == (12, 24)
    for slot in range(12):
        assert torch.equal(few.layers[slot].keys, many.layers[slot].keys)
    with pytest.raises(ValueError, match="12 slots but num_loops=4 needs 24"):
        model(INPUT_IDS, past_key_values=few, num_loops=4)


def test_slots_of_prelude_and_coda_do_not_change_with_the_cycles():
    model = tiny_hierarchical(**VARIANTS["prelude and coda"])
    calls = model.config.calls(num_loops=2)
    # two fast calls and a slow one in each cycle, each of one layer twice
    assert [call.layer for call in calls] == [0, *2 * [1, 1, 1, 1, 2, 2], 3]
    assert [call.slot for call in calls] == [0, *range(2, 14), 1]
    few, many = (model(INPUT_IDS, num_loops=n).past_key_values for n in (2, 4))
    assert torch.equal(few.layers[0].keys, many.layers[0].keys)
    assert torch.equal(few.layers[13].keys, many.layers[13].keys)
    with pytest.raises(ValueError, match="`num_hidden_layers` must be 2 plus a multiple of the 6 layer calls"):
        model.config.num_hidden_layers = 15


@pytest.mark.parametrize("field", ["num_prelude_layers", "num_coda_layers", "state_init"])
def test_puzzles_refuse_what_would_be_lost_between_segments(field):
    values = {field: "sine_normal" if field == "state_init" else 2}
    with pytest.raises(ValueError, match=f"`{field}` must"):
        HierarchicalPuzzleConfig(backbone_config=tiny_backbone("llama"), **values)


def test_layer_types_follow_the_slots():
    sliding, full = "sliding_attention", "full_attention"
    backbone_config = tiny_backbone("gemma3_text", layer_types=[sliding, sliding, sliding, full])
    two = HierarchicalConfig(backbone_config=backbone_config, num_loops=2, low_cycles=2)
    assert two.layer_types == [sliding] * 5 + [full] + [sliding] * 5 + [full]
    shared = HierarchicalConfig(backbone_config=backbone_config, num_loops=1, low_cycles=1, shared_stack=True)
    assert shared.layer_types == [sliding, sliding, sliding, full] * 2
    assert not hasattr(tiny_hierarchical().config, "layer_types")


def test_hidden_states_have_one_entry_per_layer_call(model):
    model.set_attn_implementation("eager")
    outputs = model(INPUT_IDS, num_loops=2, output_hidden_states=True, output_attentions=True)
    num_calls = len(model.config.calls(num_loops=2))
    assert (len(outputs.hidden_states), len(outputs.attentions)) == (num_calls + 1, num_calls)
    assert outputs.num_loops.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"backbone_config": tiny_backbone("llama", num_hidden_layers=3)},
            "`backbone_config.num_hidden_layers` must be even .* got 3",
        ),
        ({"backbone_config": tiny_hrm_text_config(), "shared_stack": True}, "`shared_stack` must be False"),
        ({"state_init": "zeros"}, "`state_init='zeros'` needs `injection='add'`"),
        ({"gradient": "one_step"}, "`gradient='one_step'` needs `injection='add'`"),
        ({"gradient": "last_k"}, "`backprop_low_cycles` must be given with"),
        ({"backprop_low_cycles": [2]}, "`backprop_low_cycles` must be given with"),
        ({"gradient": "last_k", "backprop_low_cycles": [-1]}, "must not be negative"),
        ({"stack_norm": "own"}, "stack_norm"),
        ({"num_prelude_layers": 1}, "without prelude and coda must be even .* got 3"),
        ({"num_prelude_layers": 3, "num_coda_layers": 1}, "leave no layers for the stacks: the backbone has 4"),
        ({"backbone_config": tiny_hrm_text_config(), "num_coda_layers": 1}, "must be 0 for a hrm_text backbone"),
        ({"stack_repeats": 0}, "`stack_repeats` must be .* got 0"),
        ({"injection_norm": False}, "`injection_norm=False` needs `injection='diagonal'`"),
        ({"state_seed": 3}, "`state_seed` and `state_std` need `state_init='sine_normal'`"),
        (
            {"state_init": "sine_normal", "shared_stack": True, "num_latent_states": 1},
            "`state_init='sine_normal'` needs `num_latent_states=2`",
        ),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalConfig(**{"backbone_config": tiny_backbone("llama"), **fields})


def test_two_stacks_are_not_for_a_looped_model():
    with pytest.raises(ValueError, match="'hrm_text' cannot be opened: it has two stacks"):
        LoopedForCausalLM(LoopedConfig(backbone_config=tiny_hrm_text_config()))


@torch.no_grad()
def test_a_prefix_sees_itself_in_both_directions():
    model = tiny_hierarchical(model_type="hrm_text", **HRM_TEXT_SCHEDULE)
    token_type_ids = torch.zeros_like(INPUT_IDS)
    token_type_ids[:, :4] = 1
    changed = INPUT_IDS.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 90 + 3
    before, after = (model(ids, token_type_ids=token_type_ids).logits for ids in (INPUT_IDS, changed))
    assert not torch.allclose(before[:, 0], after[:, 0])
    causal_before, causal_after = (model(ids).logits for ids in (INPUT_IDS, changed))
    assert torch.equal(causal_before[:, :3], causal_after[:, :3])
    # what follows the prefix stays causal
    changed = INPUT_IDS.clone()
    changed[:, 6] = (changed[:, 6] + 1) % 90 + 3
    torch.testing.assert_close(model(changed, token_type_ids=token_type_ids).logits[:, :6], before[:, :6])


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}], ids=str)
@torch.no_grad()
def test_generation_after_a_left_padded_prefix(options):
    model = tiny_hierarchical(model_type="hrm_text", **HRM_TEXT_SCHEDULE)
    rows = [random_ids(1, length, length)[0] for length in (4, 9)]
    input_ids, attention_mask = left_pad(rows)
    generated = model.generate(
        input_ids,
        attention_mask=attention_mask,
        token_type_ids=attention_mask,
        num_loops=4,
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    for index, row in enumerate(rows):
        tokens, types = row[None], torch.ones_like(row[None])
        for step, logits in enumerate(generated.logits):
            expected = model(tokens, token_type_ids=types, num_loops=4, use_cache=False).logits[:, -1]
            torch.testing.assert_close(logits[index], expected[0], atol=2e-5, rtol=1e-5)
            if step == 0:
                assert not torch.allclose(logits[index], model(tokens, num_loops=4).logits[0, -1], atol=1e-3)
            tokens = torch.cat([tokens, expected.argmax(-1, keepdim=True)], dim=1)
            types = torch.cat([types, types.new_zeros(1, 1)], dim=1)
        assert torch.equal(generated.sequences[index, -6:], tokens[0, -6:])


@torch.no_grad()
def test_generated_tokens_are_no_prefix_without_a_cache():
    model = tiny_hierarchical(model_type="hrm_text", **HRM_TEXT_SCHEDULE)
    options = {
        "token_type_ids": torch.ones_like(INPUT_IDS),
        "max_new_tokens": 6,
        "do_sample": False,
        "eos_token_id": None,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    cached, uncached = (model.generate(INPUT_IDS, use_cache=use_cache, **options) for use_cache in (True, False))
    for with_cache, without in zip(cached.logits, uncached.logits, strict=True):
        torch.testing.assert_close(with_cache, without, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("tie_word_embeddings", [False, True])
def test_weights_stay_shared(tie_word_embeddings, tmp_path):
    model = tiny_hierarchical(tie_word_embeddings=tie_word_embeddings)
    model.save_pretrained(tmp_path)
    loaded = HierarchicalForCausalLM.from_pretrained(tmp_path)
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tie_word_embeddings
    model.resize_token_embeddings(120)
    assert model.config.vocab_size == model.config.backbone_config.vocab_size == 120
    assert model(INPUT_IDS).logits.shape[-1] == 120


def test_the_starting_state_of_hrm_text_stays_frozen_after_loading(tmp_path):
    model = tiny_hierarchical(model_type="hrm_text", **HRM_TEXT_SCHEDULE)
    with torch.no_grad():
        model.model.backbone.z_L_init.normal_()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded.model, HierarchicalModel)
    assert torch.equal(loaded.model.backbone.z_L_init, model.model.backbone.z_L_init)
    assert [name for name, parameter in loaded.named_parameters() if not parameter.requires_grad] == [
        "model.backbone.z_L_init"
    ]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@torch.no_grad()
def test_every_backbone_runs_on_the_schedule(model_type):
    model = tiny_hierarchical(model_type, num_loops=2, low_cycles=1)
    expected = model(INPUT_IDS, use_cache=False).logits
    cache = DynamicCache(config=model.config)
    logits = [model(piece, past_key_values=cache).logits for piece in INPUT_IDS.split([5, 1, 3], dim=1)]
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, atol=2e-5, rtol=2e-5)
    assert not torch.allclose(model(INPUT_IDS, num_loops=3).logits, expected, atol=1e-3)
