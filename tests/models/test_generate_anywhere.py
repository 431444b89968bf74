"""`generate` returns the same tokens from wherever it is called: with a cache or without one, in training, with an
assistant, in several threads, through an adapter."""

import threading

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from hf_loop.models.transformers_seams import cache_of

from .generation_variants import FAMILIES, GREEDY, LOOPED, MEMORY, PROMPT, depths
from .tiny_backbones import tiny_backbone


@pytest.fixture(params=FAMILIES)
def name(request):
    return request.param


def plain_assistant():
    torch.manual_seed(5)
    return AutoModelForCausalLM.from_config(tiny_backbone("llama")).eval()


@pytest.mark.parametrize("cache_name", ["cache", "past_key_values"])
def test_a_cache_is_taken_by_either_name(name, cache_name):
    model = FAMILIES[name]()
    start = model.generate(PROMPT, return_dict_in_generate=True, **GREEDY)
    # a generated padding token is a token
    inputs = {"input_ids": start.sequences, "attention_mask": torch.ones_like(start.sequences)}
    rest = model.generate(**inputs, **{cache_name: cache_of(start)}, **GREEDY)
    assert torch.equal(rest, model.generate(**inputs, use_cache=False, **GREEDY))


@pytest.mark.parametrize("name", LOOPED)
def test_a_plain_assistant(name):
    model, assistant = FAMILIES[name](), plain_assistant()
    for depth in depths(name):
        expected = model.generate(PROMPT[:1], use_cache=False, **depth, **GREEDY)
        assert torch.equal(model.generate(PROMPT[:1], assistant_model=assistant, **depth, **GREEDY), expected)


def test_training_with_checkpointing_changes_no_token(name):
    model = FAMILIES[name]()
    for depth in depths(name):
        model.gradient_checkpointing_disable()
        expected = model.eval().generate(PROMPT, use_cache=False, **depth, **GREEDY)
        assert torch.equal(model.generate(PROMPT, **depth, **GREEDY), expected)
        model.train().gradient_checkpointing_enable()
        for use_cache in (True, False):
            with torch.enable_grad():
                generated = model.generate(PROMPT, use_cache=use_cache, **depth, **GREEDY)
            assert torch.equal(generated, expected), (depth, use_cache)
        assert model.training and model.is_gradient_checkpointing


@pytest.mark.parametrize("name", LOOPED)
def test_an_assistant_that_loops_keeps_its_own_depth(name, monkeypatch):
    model, assistant = LOOPED[name](), LOOPED["looped"]()
    run = []
    forward = assistant.model.forward

    def note(*args, **kwargs):
        outputs = forward(*args, **kwargs)
        run.append(int(outputs.num_loops[0]))
        return outputs

    monkeypatch.setattr(assistant.model, "forward", note)
    expected = model.generate(PROMPT[:1], num_loops=5, **GREEDY)
    for draft, depth in ((assistant, 3), (assistant.with_num_loops(2), 2)):
        assert torch.equal(model.generate(PROMPT[:1], assistant_model=draft, num_loops=5, **GREEDY), expected)
        assert set(run) == {depth}
        run.clear()
    # the depth in the assistant's own settings, and one of the model's settings, which is not the assistant's
    assistant.generation_config.num_loops = 1
    model.generation_config.num_loops = 5
    assert torch.equal(model.generate(PROMPT[:1], assistant_model=assistant, **GREEDY), expected)
    assert set(run) == {1}


@pytest.mark.parametrize("name", MEMORY)
def test_a_memory_takes_no_part_in_assisted_generation(name):
    model, looped = MEMORY[name](), LOOPED["looped"]()
    for options in ({"assistant_model": plain_assistant()}, {"prompt_lookup_num_tokens": 2}):
        with pytest.raises(ValueError, match="stateful"):
            model.generate(PROMPT[:1], **options, **GREEDY)
    for target in (looped, plain_assistant()):
        with pytest.raises(ValueError, match=f"`assistant_model` must not be a {model.config.model_type} model"):
            target.generate(PROMPT[:1], assistant_model=model, **GREEDY)


@pytest.mark.parametrize("name", LOOPED)
def test_prompt_lookup_and_early_exit(name):
    model = LOOPED[name]()
    prompt = PROMPT[:1].repeat(1, 2)
    for depth in depths(name):
        expected = model.generate(prompt, use_cache=False, **depth, **GREEDY)
        assert torch.equal(model.generate(prompt, prompt_lookup_num_tokens=3, **depth, **GREEDY), expected)
        one_loop = model.config.with_num_loops(1).num_hidden_layers
        assert torch.equal(model.generate(prompt, assistant_early_exit=one_loop, **depth, **GREEDY), expected)
    with pytest.raises(ValueError, match="`assistant_early_exit` must be the number of layer calls"):
        model.generate(prompt, assistant_early_exit=1, **GREEDY)
    assert torch.equal(model.generate(prompt, num_loops=5, **GREEDY), expected)


def test_threads_through_an_adapter(name):
    base = FAMILIES[name]()
    torch.manual_seed(3)
    linear = {"q_proj", "down_proj"} if "hrm_text" not in name else {"o_proj", "down_proj"}
    model = get_peft_model(base, LoraConfig(r=2, target_modules=linear, init_lora_weights=False)).eval()
    tokens = {
        str(depth): model.generate(input_ids=PROMPT, use_cache=False, **depth, **GREEDY) for depth in depths(name)
    }
    wrong, start = [], threading.Barrier(len(tokens))

    def run(depth):
        start.wait()
        for _ in range(3):
            if not torch.equal(model.generate(input_ids=PROMPT, **depth, **GREEDY), tokens[str(depth)]):
                wrong.append(depth)

    threads = [threading.Thread(target=run, args=(depth,)) for depth in depths(name)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    with model.disable_adapter():
        for depth in depths(name):
            expected = model.generate(input_ids=PROMPT, use_cache=False, **depth, **GREEDY)
            assert torch.equal(model.generate(input_ids=PROMPT, **depth, **GREEDY), expected)


@pytest.mark.parametrize("name", LOOPED)
def test_views_of_other_depths(name):
    base = LOOPED[name]()
    expected = {depth: base.generate(PROMPT, num_loops=depth, **GREEDY) for depth in (1, 2, 5)}
    module_calls = {}
    for depth in expected:
        view = base.with_num_loops(depth)
        assert torch.equal(view.generate(PROMPT, num_loops=3, **GREEDY), expected[depth])
        with torch.no_grad():
            # without the head too, and of a model that something wrapped
            module_calls[depth] = int(view.base_model(PROMPT).num_loops[0]), int(view(PROMPT).num_loops[0])
    assert module_calls == {depth: (depth, depth) for depth in expected}
    assert base.config.num_loops == base.model.config.num_loops == 3
    targets = ["o_proj", "down_proj"]
    adapted = get_peft_model(base.with_num_loops(2), LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    adapted.eval()
    uncached = adapted.generate(input_ids=PROMPT, use_cache=False, **GREEDY)
    assert torch.equal(adapted.generate(input_ids=PROMPT, **GREEDY), uncached)
    with adapted.disable_adapter():
        assert torch.equal(adapted.generate(input_ids=PROMPT, **GREEDY), expected[2])
    offloaded = cpu_offload(LOOPED[name](), execution_device=torch.device("cpu"))
    with torch.no_grad():
        assert int(offloaded.with_num_loops(2)(PROMPT).num_loops[0]) == 2
