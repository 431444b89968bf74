"""Per-loop LoRA: each loop computes with its own update, whoever runs the layer, and however often."""

import copy
import os
import subprocess
import sys
import threading

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn
from transformers import AutoModelForCausalLM, StaticCache

from hf_loop import LoopedConfig, LoopedForCausalLM, unroll

from ..hub_processes import BLOCK_HF_LOOP
from .loop_lora_models import tiny_loop_lora, with_random_updates
from .looped_variants import tiny_looped
from .model_tester import random_ids
from .test_looped import LoopedTester
from .tiny_backbones import KINDS, tiny_backbone


INPUT_IDS = random_ids(2, 8)
PRELUDE_AND_CODA = {"num_prelude_layers": 1, "num_coda_layers": 1}
GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
# which update loops 0 to 4 use when three loops have one
USED = {"last": [0, 1, 2, 2, 2], "cyclic": [0, 1, 2, 0, 1], "none": [0, 1, 2, None, None]}


class TestLast(LoopedTester):
    SCHEDULE = PRELUDE_AND_CODA

    def make_model(self, **overrides):
        return tiny_loop_lora(**{**self.SCHEDULE, **overrides})


class TestCyclic(TestLast):
    SCHEDULE = {"loop_lora_beyond": "cyclic", "loop_lora_vectors": False, "injection": "add", "state_init": "zeros"}


class TestSlidingWindows(TestLast):
    SCHEDULE = {"model_type": "gemma3_text", "loop_lora_beyond": "none", **PRELUDE_AND_CODA}


class SeparateLayers(nn.Module):
    """The naive twin of `LoopLora`: a whole copy of every core layer for every update, merged into its weights."""

    def __init__(self, model: LoopedForCausalLM, used: list[int | None]):
        super().__init__()
        self.used = used
        loop_lora = model.model.loop_lora
        self.copies = nn.ModuleList()
        for loop in range(loop_lora.num_loops):
            copies = copy.deepcopy(nn.ModuleList(model.model.core_layers()))
            for index, layer in enumerate(copies):
                layer.load_state_dict(loop_lora.merged_state_dict(layer, index, loop))
            self.copies.append(copies)

    def layer_in_loop(self, layer: nn.Module, core_index: int, loop: int) -> nn.Module:
        update = self.used[loop]
        return layer if update is None else self.copies[update][core_index]


def separate_layers(model: LoopedForCausalLM) -> LoopedForCausalLM:
    twin = copy.deepcopy(model)
    twin.model.loop_lora = SeparateLayers(model, USED[model.config.loop_lora_beyond])
    return twin


@pytest.mark.parametrize("model_type", KINDS)
@torch.no_grad()
def test_updates_equal_merged_weights(model_type):
    model = tiny_loop_lora(model_type, **PRELUDE_AND_CODA)
    logits = model(INPUT_IDS).logits
    torch.testing.assert_close(logits, separate_layers(model)(INPUT_IDS).logits, atol=2e-5, rtol=2e-5)
    # every kind of update counts
    for suffix in ("_A", "_weight", "_bias"):
        without = copy.deepcopy(model)
        parameters = [p for name, p in without.model.loop_lora.named_parameters() if name.endswith(suffix)]
        for parameter in parameters:
            parameter.zero_()
        assert torch.equal(without(INPUT_IDS).logits, logits) == (not parameters), suffix


@pytest.mark.parametrize("beyond", USED)
@pytest.mark.parametrize("num_loops", [1, 3, 5])
def test_loops_beyond_the_trained_ones(beyond, num_loops):
    model = tiny_loop_lora(loop_lora_beyond=beyond, **PRELUDE_AND_CODA)
    twin = separate_layers(model)
    assert [model.model.loop_lora.update_index(loop) for loop in range(5)] == USED[beyond]
    with torch.no_grad():
        expected = twin(INPUT_IDS, num_loops=num_loops).logits
        torch.testing.assert_close(model(INPUT_IDS, num_loops=num_loops).logits, expected, atol=2e-5, rtol=2e-5)
    expected = twin.generate(INPUT_IDS, num_loops=num_loops, **GREEDY)
    assert torch.equal(model.generate(INPUT_IDS, num_loops=num_loops, **GREEDY), expected)


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text", "olmo2", "phi3", "gpt_neox"])
@torch.no_grad()
def test_it_starts_as_no_update_bit_for_bit(model_type):
    plain = tiny_looped(model_type)
    model = tiny_looped(model_type, loop_lora_rank=4, loop_lora_vectors=True)
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert missing and not unexpected
    assert all(name.startswith("model.loop_lora.") for name in missing)
    assert torch.equal(model(INPUT_IDS).logits, plain(INPUT_IDS).logits)
    for name, parameter in model.model.loop_lora.named_parameters():
        assert bool(parameter.any()) == name.endswith("_A"), name
        if name.endswith("_A"):
            # tiny_looped doubles what it gets
            assert parameter.abs().max() <= 2 * parameter.shape[-1] ** -0.5


def test_what_is_updated_and_in_what_shape():
    model = tiny_looped(loop_lora_rank=48, loop_lora_target_modules=["q_proj", "mlp.down_proj"], loop_lora_num_loops=2)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.model.loop_lora[3].named_parameters()}
    assert shapes == {
        "self_attn_q_proj_A": (2, 48, 64),
        "self_attn_q_proj_B": (2, 64, 48),
        "mlp_down_proj_A": (2, 48, 96),
        "mlp_down_proj_B": (2, 64, 48),
    }
    # no update is larger than the matrix: k_proj maps 64 to 32
    model = tiny_looped("qwen2", loop_lora_rank=1000, loop_lora_target_modules=["k_proj"], loop_lora_vectors=True)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.model.loop_lora[0].named_parameters()}
    assert shapes == {
        "self_attn_k_proj_A": (3, 32, 64),
        "self_attn_k_proj_B": (3, 32, 32),
        "self_attn_q_proj_bias": (3, 64),
        "self_attn_k_proj_bias": (3, 32),
        "self_attn_v_proj_bias": (3, 32),
        "input_layernorm_weight": (3, 64),
        "post_attention_layernorm_weight": (3, 64),
    }


def gradients(model, **kwargs):
    model.zero_grad()
    model(INPUT_IDS, labels=INPUT_IDS, use_cache=False, **kwargs).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("beyond", USED)
def test_each_update_gets_the_gradient_of_its_own_loops(beyond):
    model = tiny_loop_lora(loop_lora_beyond=beyond, injection="add", state_init="zeros", **PRELUDE_AND_CODA).train()
    for num_loops, num_backprop_loops in ((3, None), (2, None), (3, 1), (5, 4), (5, 2)):
        used = USED[beyond][:num_loops][-(num_backprop_loops or num_loops) :]
        if set(used) == {None}:
            continue
        for name, gradient in gradients(model, num_loops=num_loops, num_backprop_loops=num_backprop_loops).items():
            if name.startswith("model.loop_lora."):
                assert [bool(update.any()) for update in gradient] == [index in used for index in range(3)], name


def test_the_gradient_is_that_of_separate_layers():
    model = tiny_loop_lora(loop_lora_vectors=True, **PRELUDE_AND_CODA)
    twin = separate_layers(model)
    gradients(model)
    twin(INPUT_IDS, labels=INPUT_IDS, use_cache=False).loss.backward()
    updates = model.model.loop_lora[1]
    for loop in range(3):
        layer = twin.model.loop_lora.copies[loop][1]
        # d/dA of B A is B^T d/dW, d/dB is d/dW A^T
        of_weight = layer.self_attn.q_proj.weight.grad
        lora_A, lora_B = updates.self_attn_q_proj_A, updates.self_attn_q_proj_B
        torch.testing.assert_close(lora_A.grad[loop], lora_B[loop].T @ of_weight, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(lora_B.grad[loop], of_weight @ lora_A[loop].T, atol=1e-5, rtol=1e-4)
        of_gain = layer.input_layernorm.weight.grad
        torch.testing.assert_close(updates.input_layernorm_weight.grad[loop], of_gain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gpt_neox"])
def test_gradient_checkpointing_changes_no_gradient_bit_for_bit(model_type):
    model = tiny_loop_lora(model_type, injection="add", state_init="zeros", **PRELUDE_AND_CODA).train()
    plain = {depth: gradients(model, num_loops=depth) for depth in (3, 5)}
    model.activation_checkpointing_enable()
    for depth in plain:
        checkpointed = gradients(model, num_loops=depth)
        assert all(torch.equal(checkpointed[name], plain[depth][name]) for name in plain[depth])


def test_the_backward_pass_runs_every_loop_again_with_its_own_update(monkeypatch):
    """A loop index kept as state would be the last one here for every loop."""
    model = tiny_loop_lora().train()
    model.activation_checkpointing_enable()
    pointers = [update.data_ptr() for update in model.model.loop_lora[0].self_attn_q_proj_A]
    linear, loops_run = nn.functional.linear, []

    def record(hidden_states, matrix, bias=None):
        if matrix.data_ptr() in pointers:
            loops_run.append(pointers.index(matrix.data_ptr()))
        return linear(hidden_states, matrix, bias)

    monkeypatch.setattr(nn.functional, "linear", record)
    loss = model(INPUT_IDS, labels=INPUT_IDS).loss
    assert loops_run == [0, 1, 2]
    loss.backward()
    assert loops_run == [0, 1, 2, 2, 1, 0]


def test_compiled_without_a_graph_break():
    model = tiny_loop_lora(**PRELUDE_AND_CODA)
    expected = {depth: gradients(model, num_loops=depth) for depth in (1, 4)}
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for depth in expected:
        model.zero_grad()
        compiled(INPUT_IDS, labels=INPUT_IDS, use_cache=False, num_loops=depth).loss.backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[depth][name])
    with torch.no_grad():
        logits = compiled(INPUT_IDS, past_key_values=StaticCache(model.config, max_cache_len=16)).logits
        torch.testing.assert_close(logits, model(INPUT_IDS).logits)


def test_threads_at_different_depths_do_not_mix_loops():
    model = tiny_loop_lora(loop_lora_beyond="cyclic", **PRELUDE_AND_CODA)
    expected = {num_loops: model.generate(INPUT_IDS, num_loops=num_loops, **GREEDY) for num_loops in (1, 2, 3, 5)}
    assert len({tuple(tokens.flatten().tolist()) for tokens in expected.values()}) == 4
    wrong = []
    start = threading.Barrier(len(expected))

    def run(num_loops: int) -> None:
        start.wait()
        for _ in range(4):
            if not torch.equal(model.generate(INPUT_IDS, num_loops=num_loops, **GREEDY), expected[num_loops]):
                wrong.append(num_loops)

    threads = [threading.Thread(target=run, args=(num_loops,)) for num_loops in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@torch.no_grad()
def test_views_and_copies_of_the_model():
    model = tiny_loop_lora(**PRELUDE_AND_CODA)
    expected = {num_loops: model(INPUT_IDS, num_loops=num_loops).logits for num_loops in (2, 3)}
    assert torch.equal(model.with_num_loops(2)(INPUT_IDS).logits, expected[2])
    deep = copy.deepcopy(model)
    for parameter in model.model.loop_lora.parameters():
        parameter.zero_()
    assert torch.equal(deep(INPUT_IDS).logits, expected[3])
    assert not torch.equal(model(INPUT_IDS).logits, expected[3])


@torch.no_grad()
def test_functions_put_on_a_module_run_with_the_update():
    """Device maps, kernels and `module.compile()` leave something on the instance that calls the original module."""
    model = tiny_loop_lora(**PRELUDE_AND_CODA)
    expected = model(INPUT_IDS).logits
    called = []

    class Hook(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            called.append(type(module).__name__)
            return args, kwargs

    layer = model.model.core_layers()[0]
    for module in (layer, layer.self_attn, layer.mlp.up_proj):
        add_hook_to_module(module, Hook())
    assert torch.equal(model(INPUT_IDS).logits, expected)
    assert called == ["LlamaDecoderLayer", "LlamaAttention", "Linear"] * 3
    layer.compile(backend="eager")
    assert torch.equal(model(INPUT_IDS).logits, expected)
    seen = []
    handle = layer.mlp.register_forward_hook(lambda module, args, output: seen.append(output))
    assert torch.equal(model(INPUT_IDS).logits, expected)
    assert len(seen) == 3 and not torch.equal(seen[0], seen[1])
    handle.remove()
    layer.mlp.forward = lambda hidden_states: hidden_states
    with pytest.raises(ValueError, match="cannot reach the modules inside LlamaMLP, whose forward was replaced"):
        model(INPUT_IDS)


@torch.no_grad()
def test_a_module_that_was_replaced_is_named():
    model = tiny_loop_lora()
    layer = model.model.core_layers()[0]
    layer.self_attn = nn.Sequential(layer.self_attn)
    with pytest.raises(ValueError, match="cannot reach 'q_proj' inside Sequential"):
        model(INPUT_IDS)
    model = tiny_loop_lora()
    layer = model.model.core_layers()[0]
    layer.input_layernorm = nn.Sequential(layer.input_layernorm)
    with pytest.raises(ValueError, match="cannot reach the weight of Sequential"):
        model(INPUT_IDS)


@torch.no_grad()
def test_updates_may_be_kept_in_higher_precision():
    model = tiny_loop_lora(**PRELUDE_AND_CODA)
    expected = model(INPUT_IDS).logits
    model.to(torch.bfloat16)
    model.model.loop_lora.float()
    logits = model(INPUT_IDS).logits
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, atol=0.1, rtol=0.1)


@torch.no_grad()
def test_merging_in_low_precision_rounds_once():
    model = tiny_loop_lora().to(torch.bfloat16)
    layer = model.model.core_layers()[0]
    update = model.model.loop_lora[0]
    merged = model.model.loop_lora.merged_state_dict(layer, 0, 1)
    difference = update.mlp_up_proj_B[1].float() @ update.mlp_up_proj_A[1].float()
    expected = (layer.mlp.up_proj.weight.float() + difference).bfloat16()
    assert torch.equal(merged["mlp.up_proj.weight"], expected)
    # what no update changes is not copied
    no_update = tiny_loop_lora(loop_lora_beyond="none")
    layer = no_update.model.core_layers()[0]
    unchanged = no_update.model.loop_lora.merged_state_dict(layer, 0, 3)
    assert unchanged["mlp.up_proj.weight"].data_ptr() == layer.mlp.up_proj.weight.data_ptr()


@torch.no_grad()
def test_what_cannot_be_merged_is_named():
    model = tiny_loop_lora()
    layer = model.model.core_layers()[0]
    layer.mlp.up_proj.weight = nn.Parameter(layer.mlp.up_proj.weight.to(torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match="'mlp.up_proj.weight' is quantized .torch.uint8."):
        model.model.loop_lora.merged_state_dict(layer, 0, 0)
    layer.mlp.up_proj = nn.Sequential(layer.mlp.up_proj)
    with pytest.raises(ValueError, match="no 'mlp.up_proj.weight': unload or merge its adapter"):
        model.model.loop_lora.merged_state_dict(layer, 0, 0)


@torch.no_grad()
def test_loading_at_another_loop_count_keeps_the_updates(tmp_path):
    model = tiny_loop_lora(**PRELUDE_AND_CODA)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, num_loops=5)
    assert loaded.config.loop_lora_num_loops == 3
    assert torch.equal(loaded(INPUT_IDS).logits, model(INPUT_IDS, num_loops=5).logits)


@torch.no_grad()
def test_updates_can_be_added_while_loading(tmp_path):
    plain = tiny_looped()
    plain.save_pretrained(tmp_path)
    loaded = LoopedForCausalLM.from_pretrained(tmp_path, loop_lora_rank=2, num_loops=4)
    assert loaded.config.loop_lora_num_loops == 4
    assert torch.equal(loaded(INPUT_IDS).logits, plain(INPUT_IDS, num_loops=4).logits)
    assert all(parameter.isfinite().all() for parameter in loaded.model.loop_lora.parameters())
    assert not torch.equal(with_random_updates(loaded)(INPUT_IDS).logits, plain(INPUT_IDS, num_loops=4).logits)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loop_lora_rank": -1}, "`loop_lora_rank` must be an integer of at least 1, got -1"),
        ({"loop_lora_rank": 4, "loop_lora_num_loops": 0}, "`loop_lora_num_loops` must be .* at least 1, got 0"),
        ({"loop_lora_rank": 4, "loop_lora_beyond": "first"}, "loop_lora_beyond.*first"),
        ({"loop_lora_vectors": True}, "`loop_lora_vectors` needs `loop_lora_rank` of at least 1"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LoopedConfig(backbone_config=tiny_backbone("llama"), **fields)


def test_a_target_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="`loop_lora_target_modules` names 'c_attn', but .* self_attn.q_proj, "):
        tiny_looped(loop_lora_rank=4, loop_lora_target_modules=["q_proj", "c_attn"])


def test_tensor_parallel_plans_leave_updated_layers_whole():
    plan = tiny_looped().tp_plan
    assert any(name.startswith("model.backbone.layers.") for name in plan)
    kept = tiny_looped(loop_lora_rank=4).tp_plan
    assert kept == {name: plan[name] for name in plan if not name.startswith("model.backbone.layers.")}


@pytest.mark.parametrize("injection", ["none", "concat"])
@torch.no_grad()
def test_unrolled_layers_have_the_updates_of_their_loops(injection):
    model = tiny_looped(loop_lora_rank=4, loop_lora_beyond="cyclic", injection=injection, **PRELUDE_AND_CODA)
    with_random_updates(model)
    if injection == "concat":
        # as at the start: every loop sees the prelude's output alone, so that only the last one counts
        model.model.injection.proj.weight.copy_(torch.eye(64, 128).roll(64, dims=1))
    for num_loops in (1, 2, 5):
        expected = model(INPUT_IDS, num_loops=num_loops).logits
        torch.testing.assert_close(unroll(model, num_loops)(INPUT_IDS).logits, expected, atol=2e-5, rtol=2e-5)


def test_without_hf_loop_it_loads_by_the_code_beside_the_weights(tmp_path):
    model = tiny_loop_lora(**PRELUDE_AND_CODA)
    model.save_pretrained(tmp_path / "model")
    code = """
import sys, torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
torch.save(model(torch.load(sys.argv[2])).logits.detach(), sys.argv[3])
"""
    torch.save(INPUT_IDS, tmp_path / "input_ids.pt")
    arguments = [tmp_path / "model", tmp_path / "input_ids.pt", tmp_path / "logits.pt"]
    environment = {**os.environ, "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BLOCK_HF_LOOP + code, *arguments]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), model(INPUT_IDS).logits.detach())
