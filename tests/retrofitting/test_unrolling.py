"""Written out, a looped model is a plain decoder with the same logits; where it cannot be, that is said."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from hf_loop import retrofit, unroll

from ..models.looped_variants import tiny_looped
from ..models.model_tester import random_ids
from .tiny_models import tiny_decoder


INPUT_IDS = random_ids(2, 9)


@pytest.mark.parametrize("num_loops", [1, 3])
@torch.no_grad()
def test_an_unrolled_model_is_an_ordinary_checkpoint(num_loops, tmp_path):
    looped = retrofit(tiny_decoder("llama"), num_prelude_layers=1, num_coda_layers=1, num_loops=2)
    expected = looped(INPUT_IDS, num_loops=num_loops).logits
    unrolled = unroll(looped, num_loops)
    assert type(unrolled) is LlamaForCausalLM
    assert unrolled.config.num_hidden_layers == 2 + 2 * num_loops
    assert torch.equal(unrolled(INPUT_IDS).logits, expected)
    unrolled.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(INPUT_IDS).logits, expected)
    generated = loaded.generate(INPUT_IDS, max_new_tokens=6, do_sample=False)
    assert torch.equal(generated, looped.generate(INPUT_IDS, max_new_tokens=6, do_sample=False, num_loops=num_loops))


@torch.no_grad()
def test_nothing_is_shared_but_what_the_decoder_ties():
    looped = retrofit(tiny_decoder("gemma2", tie_word_embeddings=True), num_loops=2)
    unrolled = unroll(looped)
    assert not {id(p) for p in looped.parameters()} & {id(p) for p in unrolled.parameters()}
    assert unrolled.lm_head.weight is unrolled.get_input_embeddings().weight
    pointers = [parameter.data_ptr() for parameter in unrolled.parameters()]
    assert len(set(pointers)) == len(pointers)
    # the layers of a decoder ask their decoder's configuration
    assert {id(module.config) for module in unrolled.modules() if hasattr(module, "config")} == {id(unrolled.config)}


@torch.no_grad()
def test_an_untrained_concat_injection_is_one_loop():
    looped = retrofit(tiny_decoder("llama"), num_prelude_layers=1, num_loops=4, injection="concat")
    unrolled = unroll(looped)
    assert unrolled.config.num_hidden_layers == 4
    assert torch.equal(unrolled(INPUT_IDS).logits, looped(INPUT_IDS).logits)
    looped.model.injection.proj.weight[0, 0] = 0.5
    with pytest.raises(ValueError, match="`injection` 'concat' at num_loops=4"):
        unroll(looped)
    # from zeros, what the state is multiplied by does not matter in the first loop
    assert torch.equal(unroll(looped, 1)(INPUT_IDS).logits, looped(INPUT_IDS, num_loops=1).logits)


@torch.no_grad()
def test_an_exit_gate_is_left_out():
    looped = tiny_looped(num_loops=2, exit_gate=True)
    unrolled = unroll(looped)
    assert not [name for name in unrolled.state_dict() if "gate" in name and "gate_proj" not in name]
    assert torch.equal(unrolled(INPUT_IDS).logits, looped(INPUT_IDS).logits)


@pytest.mark.parametrize("num_loops", [2, 4])
@torch.no_grad()
def test_the_update_of_every_loop_is_merged(num_loops):
    schedule = {"num_prelude_layers": 1, "loop_lora_rank": 4, "loop_lora_num_loops": 3, "loop_lora_vectors": True}
    looped = tiny_looped("qwen3", num_loops=3, **schedule)
    for parameter in looped.model.loop_lora.parameters():
        parameter.normal_(std=0.1)
    unrolled = unroll(looped, num_loops)
    expected = looped(INPUT_IDS, num_loops=num_loops).logits
    torch.testing.assert_close(unrolled(INPUT_IDS).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "reason"),
    [
        ({"injection": "add"}, "`injection` 'add' at num_loops=2"),
        ({"injection": "diagonal"}, "`injection` 'diagonal' at num_loops=2"),
        ({"injection": "orthogonal"}, "`injection` 'orthogonal' at num_loops=2"),
        ({"loop_norm": "weightless"}, "`loop_norm` 'weightless'"),
        ({"loop_update": "damped"}, "`loop_update` 'damped' at num_loops=2"),
        ({"loop_norm": "own"}, "`loop_norm` 'own'"),
        ({"loop_norm": "final"}, "`loop_norm` 'final'"),
    ],
)
@torch.no_grad()
def test_what_a_plain_decoder_cannot_do_is_refused(schedule, reason):
    looped = retrofit(tiny_decoder("llama"), num_loops=2, **schedule)
    with pytest.raises(ValueError, match=reason):
        unroll(looped)
    if not {"diagonal", "orthogonal", "own", "weightless"} & set(schedule.values()):
        assert torch.equal(unroll(looped, 1)(INPUT_IDS).logits, looped(INPUT_IDS, num_loops=1).logits)


def test_a_step_of_its_own_mixes_states_in_a_single_loop_too():
    looped = retrofit(tiny_decoder("llama"), loop_update="damped", loop_step=0.25)
    with pytest.raises(ValueError, match="`loop_update` 'damped' at num_loops=1 mixes states"):
        unroll(looped, 1)


def test_bad_arguments_are_refused():
    base = tiny_decoder("llama")
    with pytest.raises(ValueError, match="must be a LoopedForCausalLM, got LlamaForCausalLM"):
        unroll(base)
    with pytest.raises(ValueError, match="`num_loops` must be an integer of at least 1, got 0"):
        unroll(retrofit(base), 0)
    adapted = get_peft_model(retrofit(base), LoraConfig(r=2, target_modules="all-linear"))
    with pytest.raises(ValueError, match="carries a PEFT adapter"):
        unroll(adapted)
    with pytest.raises(ValueError, match="carries a PEFT adapter"):
        unroll(adapted.get_base_model())


@pytest.mark.parametrize("name", ["exit_criterion", "cache_policy", "contrast_loop"])
def test_a_setting_of_generation_that_only_our_models_have_is_refused(name):
    looped = tiny_looped(num_loops=2)
    values = {"exit_criterion": "kl", "cache_policy": "last_loop", "contrast_loop": 1}
    setattr(looped.generation_config, name, values[name])
    with pytest.raises(ValueError, match=f"`{name}` of `generation_config` is {values[name]!r}, which only hf_loop's"):
        unroll(looped)


def test_settings_of_generation_that_change_no_token_are_left_out(tmp_path):
    looped = tiny_looped(num_loops=2)
    before = set(vars(looped.generation_config))
    vars(looped.generation_config).update(
        {"num_loops": 3, "draft_loops": 1, "num_draft_tokens": 2, "exit_criterion": None, "cache_policy": "own"}
    )
    unrolled = unroll(looped, 3)
    assert set(vars(unrolled.generation_config)) == before
    assert looped.generation_config.draft_loops == 1
