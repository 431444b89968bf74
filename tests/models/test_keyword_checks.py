"""A keyword that no part of a model names is refused, and what callers of models send is not."""

import time

import pytest
import torch
from transformers import AttentionInterface, GenerationConfig, set_seed
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_flash_attention_utils import FlashAttentionKwargs

import hf_loop
from hf_loop.models.keyword_checks import ALLOWED_KEYWORDS, ENGINE_KEYWORDS, check_keywords

from .family_models import CAUSAL, FAMILIES, INPUT_IDS, base_model
from .looped_variants import tiny_looped
from .tiny_backbones import tiny_backbone


WITH_LOOPS = ("looped", "hierarchical", "puzzle")
# of Huginn, Ouro, HRM, dory, and a typing error
LOOP_COUNTS = ("num_steps", "total_ut_steps", "H_cycles", "n_recurrent_loops", "num_loop")


@pytest.fixture(scope="module")
def models():
    return {name: make() for name, make in FAMILIES.items()}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.mark.parametrize("has_head", [True, False])
@pytest.mark.parametrize("keyword", LOOP_COUNTS)
def test_a_loop_count_under_another_name_is_refused(models, family, has_head, keyword):
    model = models[family] if has_head else base_model(models[family])
    hint = "did you mean `num_loops`" if family in WITH_LOOPS else f"a {family} model has no loops"
    with pytest.raises(TypeError, match=f"`{keyword}` is no keyword of a .*{hint}"):
        model(INPUT_IDS, **{keyword: 8})


@pytest.mark.parametrize("family", ["feedback", "sleep"])
def test_a_model_without_loops_says_so(models, family):
    with pytest.raises(TypeError, match=f"`num_loops` is no keyword of a {family}_lm model: a {family} model has no"):
        models[family](INPUT_IDS, num_loops=8)


@pytest.mark.parametrize(
    ("family", "keyword", "hint"),
    [
        ("feedback", "feedback_lenght", "did you mean `feedback_length`, a field of its configuration"),
        ("feedback", "block_size", "`block_size` is a field of its configuration"),
        ("sleep", "num_passes", "did you mean `num_sleep_passes`"),
        ("hierarchical", "L_cycles", "did you mean `low_cycles`, a field of its configuration"),
        ("puzzle", "num_segment", "did you mean `num_segments`"),
        ("looped", "lables", "did you mean `labels`"),
        ("looped", "cache_position", "positions follow from the cache"),
        ("looped", "output_loop_state", "did you mean `output_loop_states`"),
        ("looped", "colour", ""),
    ],
)
def test_other_keywords_are_refused_with_the_nearest_name(models, family, keyword, hint):
    with pytest.raises(TypeError, match=f"`{keyword}` is no keyword of a .*{hint}"):
        models[family](INPUT_IDS, **{keyword: 1})


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification"])
@pytest.mark.parametrize("family", CAUSAL)
def test_a_classification_head_refuses_them_too(family, head):
    config = getattr(hf_loop, f"{family.capitalize()}Config")(backbone_config=tiny_backbone("llama"))
    model = getattr(hf_loop, f"{family.capitalize()}{head}")(config)
    with pytest.raises(TypeError, match=f"`num_loop` is no keyword of a {family}_lm model"):
        model(INPUT_IDS[:1], num_loop=8)


def test_none_is_what_was_not_given(models, family):
    models[family](INPUT_IDS, num_loop=None)


def test_what_transformers_and_its_attention_functions_send_is_allowed(models, family):
    refused = base_model(models[family]).refused_keywords
    assert FlashAttentionKwargs.__annotations__.keys() <= ALLOWED_KEYWORDS.keys()
    for name in ALLOWED_KEYWORDS.keys() - refused.keys():
        # a value that asks for no output
        check_keywords(base_model(models[family]), {name: 0})


def test_every_reason_is_a_sentence():
    assert all(len(reason) > 10 for reason in ALLOWED_KEYWORDS.values())


def test_what_trainer_sends_reaches_the_loss(models):
    model = models["looped"]
    loss = model(INPUT_IDS, labels=INPUT_IDS, return_dict=True).loss
    halved = model(INPUT_IDS, labels=INPUT_IDS, num_items_in_batch=2 * (INPUT_IDS.shape[1] - 1)).loss
    torch.testing.assert_close(halved, loss / 2)


@pytest.mark.parametrize("keyword", ENGINE_KEYWORDS)
@pytest.mark.parametrize("family", ["feedback", "sleep", "puzzle"])
def test_an_engine_with_its_own_attention_is_refused_where_it_loses_a_memory(models, family, keyword):
    model_type = models[family].config.model_type
    with pytest.raises(ValueError, match=f"`{keyword}` does not work with a {model_type} model: "):
        base_model(models[family])(INPUT_IDS, **{keyword: {}})


def test_an_attention_function_of_a_user_has_keywords_of_its_own():
    def scaled(module, query, key, value, attention_mask, boost=1.0, **kwargs):
        output, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output * boost, weights

    AttentionInterface.register("scaled", scaled)
    model = tiny_looped()
    with pytest.raises(TypeError, match="`boost` is no keyword"):
        model(INPUT_IDS, boost=2.0)
    model.set_attn_implementation("scaled")
    logits = model(INPUT_IDS, boost=2.0).logits
    assert not torch.equal(logits, model(INPUT_IDS).logits)
    with pytest.raises(TypeError, match="`boots` is no keyword"):
        model(INPUT_IDS, boots=2.0)


def test_an_output_that_no_layer_records_is_refused(models, family):
    with pytest.raises(ValueError, match="`output_router_logits` must be False: a .* backbone does not record them"):
        models[family](INPUT_IDS, output_router_logits=True)


@pytest.mark.parametrize("by_config", [True, False])
def test_attention_weights_are_refused_where_the_backbone_records_none(family, by_config, monkeypatch):
    backbone_class = type(base_model(FAMILIES[family]()).backbone)
    recorded = {name: what for name, what in backbone_class._can_record_outputs.items() if name != "attentions"}
    monkeypatch.setattr(backbone_class, "_can_record_outputs", recorded)
    model = FAMILIES[family]()
    model.set_attn_implementation("eager")
    kwargs = {} if by_config else {"output_attentions": True}
    model.config.output_attentions = by_config
    with pytest.raises(ValueError, match="`output_attentions` must be False: a .* backbone does not record them"):
        model(INPUT_IDS, **kwargs)


def test_attention_weights_are_there_where_they_are_computed(family):
    model = FAMILIES[family]()
    model.set_attn_implementation("eager")
    assert len(model(INPUT_IDS, output_attentions=True).attentions) > 0


def test_a_compiled_model_takes_keywords_and_refuses_unknown_ones():
    set_seed(0)
    model = tiny_looped()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    options = {"use_cache": False, "num_items_in_batch": 3}
    expected = model(INPUT_IDS, num_loops=2, **options).logits
    torch.testing.assert_close(compiled(INPUT_IDS, num_loops=2, **options).logits, expected)
    with pytest.raises(Exception, match="num_loop"):
        compiled(INPUT_IDS, num_loop=2, use_cache=False)


def test_the_check_takes_microseconds(models):
    kwargs = {"num_items_in_batch": 3, "is_causal": True, "output_hidden_states": False}
    model = base_model(models["looped"])
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(50):
            check_keywords(model, kwargs)
        seconds.append((time.perf_counter() - start) / 50)
    # about 5 on an idle core, where one layer call takes several hundred
    assert min(seconds) < 200e-6


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "puzzle"])
def test_generation_refuses_a_depth_under_another_name(models, family):
    for name in ("num_loop", "num_steps", *(() if family in WITH_LOOPS else ("num_loops",))):
        # transformers' own check of what it is given
        with pytest.raises(ValueError, match=name):
            models[family].generate(INPUT_IDS, max_new_tokens=2, **{name: 8})
        with pytest.raises(TypeError, match=f"`{name}`, given to the generation configuration, is no keyword"):
            models[family].generate(INPUT_IDS, GenerationConfig(max_new_tokens=2, **{name: 8}))
