"""A pretrained decoder becomes a looped model without changing what one loop computes."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, OpenAIGPTConfig

from hf_loop import LoopedForCausalLM, retrofit
from hf_loop.models.backbone import Backbone

from ..models.model_tester import random_ids
from ..models.tiny_backbones import tiny_backbone


INPUT_IDS = random_ids(2, 8)


@pytest.fixture(params=["llama", "gemma2", "phi"])
def base(request):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_backbone(request.param, tie_word_embeddings=True)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    return model


@pytest.mark.parametrize("injection", ["none", "add", "concat"])
@torch.no_grad()
def test_one_loop_is_the_original(base, injection, tmp_path):
    expected = base(INPUT_IDS).logits
    weights = {id(parameter) for parameter in base.parameters()}
    looped = retrofit(base, num_prelude_layers=1, num_coda_layers=1, num_loops=3, injection=injection)
    assert torch.equal(looped(INPUT_IDS, num_loops=1).logits, expected)
    assert not torch.equal(looped(INPUT_IDS, num_loops=2).logits, expected) or injection == "concat"
    # moved, not copied
    assert weights <= {id(parameter) for parameter in looped.parameters()}
    looped.save_pretrained(tmp_path)
    loaded = LoopedForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(INPUT_IDS, num_loops=3).logits, looped(INPUT_IDS, num_loops=3).logits)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight


@torch.no_grad()
def test_untrained_concat_gives_the_original_at_any_loop_count(base):
    expected = base(INPUT_IDS).logits
    looped = retrofit(base, num_prelude_layers=1, num_coda_layers=1, num_loops=4, injection="concat")
    assert torch.equal(looped(INPUT_IDS).logits, expected)


@torch.no_grad()
def test_the_diagonal_injection_starts_as_near_the_original_as_it_can(base):
    expected = base(INPUT_IDS).logits
    looped = retrofit(base, num_prelude_layers=1, num_coda_layers=1, injection="diagonal")
    seen = []
    looped.model.injection.register_forward_hook(lambda module, args, output: seen.append((args[1], output)))
    looped(torch.arange(1, 97)[None])
    encoded, injected = seen[0]
    # the same direction for every token, and the usual length
    torch.testing.assert_close(torch.cosine_similarity(encoded, injected, dim=-1), torch.ones(1, 96))
    ratio = injected.norm(dim=-1) / encoded.norm(dim=-1)
    assert ratio.median() == pytest.approx(1, rel=0.05)
    nearness = torch.dist(looped(INPUT_IDS).logits, expected)
    looped.model.injection.norm.weight.fill_(1)
    assert nearness < torch.dist(looped(INPUT_IDS).logits, expected)


@pytest.mark.parametrize("injection", ["diagonal", "orthogonal"])
@torch.no_grad()
def test_an_injection_that_norms_nothing_starts_as_the_original(injection, base):
    expected = base(INPUT_IDS).logits
    looped = retrofit(base, num_prelude_layers=1, num_coda_layers=1, injection=injection, injection_norm=False)
    torch.testing.assert_close(looped(INPUT_IDS, num_loops=1).logits, expected, atol=1e-5, rtol=1e-5)


def test_every_new_parameter_is_initialised_and_trains(base):
    base.to(torch.bfloat16).train()
    looped = retrofit(base, num_loops=2, injection="diagonal", state_init="learned", loop_norm="own")
    assert looped.training
    assert {parameter.dtype for parameter in looped.parameters()} == {torch.bfloat16}
    looped(INPUT_IDS, labels=INPUT_IDS).loss.backward()
    for name, parameter in looped.named_parameters():
        assert parameter.isfinite().all(), name
        assert parameter.grad is not None, name


def test_a_path_is_loaded(base, tmp_path):
    expected = base(INPUT_IDS).logits
    base.save_pretrained(tmp_path)
    assert torch.equal(retrofit(tmp_path)(INPUT_IDS, num_loops=1).logits, expected)


def test_what_cannot_be_retrofitted_is_refused(base):
    with pytest.raises(ValueError, match="leave no core layer"):
        retrofit(base, num_prelude_layers=4)
    with pytest.raises(ValueError, match="`family` must be one of .*'looped'.*, got 'spiral'"):
        retrofit(base, "spiral")
    with pytest.raises(ValueError, match="looped model already"):
        retrofit(retrofit(base))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (OpenAIGPTConfig(n_embd=16, n_head=2, n_layer=1, vocab_size=50), "'openai-gpt' cannot be opened"),
        (
            BertConfig(
                hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=50
            ),
            "'bert' cannot be opened: its base model has no embed_tokens",
        ),
    ],
)
def test_another_architecture_is_refused_in_one_line(config, reason):
    with pytest.raises(ValueError, match=reason) as error:
        retrofit(AutoModelForCausalLM.from_config(config))
    assert "\n" not in str(error.value)


def test_a_decoder_without_a_head_is_refused(base):
    with pytest.raises(ValueError, match="must be a causal language model, got .*Model, which has no head"):
        retrofit(base.base_model)


def test_nothing_changes_when_an_option_is_refused(base):
    num_layers = len(base.base_model.layers)
    with pytest.raises(ValueError, match="`state_init='zeros'` needs an injection"):
        retrofit(base, core_layers="1-1", num_coda_layers=1, state_init="zeros")
    with pytest.raises(ValueError, match="overlaps `core_layers` 1-2"):
        retrofit(base, core_layers="1-2", num_coda_layers=2)
    assert len(base.base_model.layers) == base.config.num_hidden_layers == num_layers


def test_the_damped_update_is_a_step_towards_the_next_state(base):
    with torch.no_grad():
        looped = retrofit(base, num_loops=2, loop_update="damped")
        states = looped(INPUT_IDS, output_loop_states=True, num_loops=4).loop_states
        positions = torch.arange(INPUT_IDS.shape[1])[None]
        embeds = Backbone(looped.model.backbone).enter(looped.get_input_embeddings()(INPUT_IDS), positions)
        # what the core makes of the embeddings is the state after one whole loop
        whole = looped(INPUT_IDS, output_loop_states=True, num_loops=1).loop_states[0]
        torch.testing.assert_close(states[0], embeds + (whole - embeds) / 4)
        # a step of its own is the same in every number of loops, a single one too
        looped.config.loop_step = 0.1
        for num_loops in (1, 3):
            states = looped(INPUT_IDS, output_loop_states=True, num_loops=num_loops).loop_states
            torch.testing.assert_close(states[0], embeds + (whole - embeds) / 10)
        looped.config.loop_step = 1
        assert torch.equal(looped(INPUT_IDS, output_loop_states=True).loop_states[0], whole)


def test_the_attention_function_stays_the_one_that_was_chosen(base):
    base.set_attn_implementation("eager")
    looped = retrofit(base, num_loops=2)
    assert looped.config._attn_implementation == "eager"
    assert looped.model.backbone.config._attn_implementation == "eager"
