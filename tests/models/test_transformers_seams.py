"""Each touch of another library's private part does under the installed release what its docstring says."""

import inspect
import logging
from types import SimpleNamespace

import pytest
import torch
import transformers
from accelerate import cpu_offload
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    CompileConfig,
    DynamicCache,
    GPTJConfig,
    GPTJModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MixtralForCausalLM,
    T5Config,
    Trainer,
    TrainingArguments,
)

from hf_loop.models import compile_seams, decoding_seams, module_seams
from hf_loop.models import transformers_seams as seams
from hf_loop.models.outputs import RecurrentCausalLMOutputWithPast, RecurrentModelOutputWithPast

from .tiny_backbones import tiny_backbone


def tiny_llama() -> LlamaModel:
    return LlamaModel(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )


class TakesCache:
    @seams.takes_cache
    def forward(self, ids, cache=None, **kwargs):
        return cache, kwargs


def test_attention_functions_and_modes_come_back_after_an_error():
    model = LlamaForCausalLM(tiny_backbone("llama")).train()
    model.set_attn_implementation("eager")
    with pytest.raises(RuntimeError, match="amid"), seams.as_before_on_error(model):
        model.eval().set_attn_implementation("sdpa")
        raise RuntimeError("amid")
    assert seams.attention_function(model.config) == "eager" and model.model.layers[0].training
    with seams.as_before_on_error(model):
        model.eval().set_attn_implementation("sdpa")
    assert seams.attention_function(model.config) == "sdpa" and not model.training


def test_a_configuration_keeps_its_attention_function():
    config = LlamaConfig(attn_implementation="eager")
    with seams.attention_kept(config):
        # as transformers does with a configuration that becomes part of another
        config._attn_implementation = None
    assert seams.attention_function(config) == "eager" and config._attn_implementation is not None


def test_parameters_stay_while_an_engine_moves_them():
    register = nn.Module.register_parameter

    def register_on_meta(module, name, parameter):
        register(module, name, parameter)
        module._parameters[name] = nn.Parameter(parameter.to("meta"))

    nn.Module.register_parameter = register_on_meta
    try:
        with module_seams.parameters_here():
            here = nn.Linear(2, 2)
        moved = nn.Linear(2, 2)
    finally:
        nn.Module.register_parameter = register
    assert (here.weight.device.type, moved.weight.device.type) == ("cpu", "meta")


def test_cache_name_is_what_transformers_own_models_take():
    assert seams.CACHE_NAME in inspect.signature(LlamaModel.forward).parameters
    assert transformers.__version__ == seams.RELEASE


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_takes_cache_by_either_name(name):
    cache = DynamicCache()
    assert TakesCache().forward(1, **{name: cache}) == (cache, {})
    assert TakesCache().forward(1, **{name: None}) == (None, {})
    assert TakesCache().forward(1, cache) == (cache, {})
    assert name in inspect.signature(TakesCache.forward).parameters


def test_takes_cache_refuses_both_names_at_once():
    with pytest.raises(ValueError, match="two names of one argument"):
        TakesCache().forward(1, cache=DynamicCache(), past_key_values=DynamicCache())


def test_a_paged_cache_is_not_taken_for_a_cache_of_layers_where_it_has_that_name():
    paged = object()
    taken, kwargs = TakesCache().forward(1, cache=paged, past_key_values=None)
    expected = (None, {"paged_cache": paged}) if seams.CACHE_NAME == "past_key_values" else (paged, {})
    assert (taken, kwargs) == expected


@pytest.mark.parametrize("output_class", [RecurrentModelOutputWithPast, RecurrentCausalLMOutputWithPast])
def test_outputs_offer_the_cache_under_both_names(output_class):
    cache = DynamicCache()
    outputs = output_class(**seams.named_cache(cache))
    assert outputs.cache is outputs.past_key_values is outputs[seams.CACHE_NAME] is seams.cache_of(outputs) is cache


def test_layer_cache_name_is_the_argument_of_transformers_layers():
    layer = tiny_llama().layers[0]
    assert seams.layer_cache_name(type(layer)) == seams.CACHE_NAME


def test_recordable_states_are_recorded_by_the_backbone():
    class Outer(transformers.PreTrainedModel):
        config_class = LlamaConfig
        _supports_sdpa = True
        _can_record_outputs = seams.recordable("hidden_states")

        def __init__(self, config):
            super().__init__(config)
            self.backbone = tiny_llama()
            self.post_init()

        @seams.capture_outputs
        def forward(self, input_ids, **kwargs):
            states = self.backbone.embed_tokens(input_ids)
            rotary = self.backbone.rotary_emb(states, torch.arange(2)[None])
            states = self.backbone.layers[0](states, position_embeddings=rotary)
            return RecurrentModelOutputWithPast(last_hidden_state=states)

    outputs = Outer(tiny_llama().config)(torch.tensor([[1, 2]]), output_hidden_states=True)
    assert len(outputs.hidden_states) == 2


def test_attention_function_is_adopted_and_chosen():
    backbone, outer = tiny_llama(), tiny_llama()
    backbone.set_attn_implementation("eager")
    seams.adopt_attention(outer, backbone)
    assert seams.attention_function(outer.config) == "eager"
    config = LlamaConfig(num_hidden_layers=1)
    seams.choose_attention_function(config, "eager")
    assert seams.attention_function(LlamaModel(config).config) == "eager"


def test_before_upload_is_called_with_the_whole_folder(monkeypatch, tmp_path):
    seen = []

    class Uploader:
        def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
            seen.append(("upload", working_dir, repo_id, kwargs))

    class Model(seams.BeforeUpload, Uploader):
        def before_upload(self, folder, repo_id):
            seen.append(("before", folder, repo_id))

    Model()._upload_modified_files("folder", "me/model", token="t")
    assert seen == [("before", "folder", "me/model"), ("upload", "folder", "me/model", {"token": "t"})]
    assert hasattr(transformers.PreTrainedModel, "_upload_modified_files")
    assert "_upload_modified_files" in inspect.getsource(transformers.PreTrainedModel.push_to_hub)


@pytest.mark.parametrize("logits_to_keep", [0, 1, 2, torch.tensor([0, 2])])
def test_keep_logits(logits_to_keep):
    states = torch.arange(6.0).view(1, 3, 2)
    kept = {0: states, 1: states[:, -1:], 2: states[:, -2:]}.get(
        logits_to_keep if isinstance(logits_to_keep, int) else -1, states[:, [0, 2]]
    )
    torch.testing.assert_close(seams.keep_logits(states, logits_to_keep), kept)


def test_selected_indices():
    assert seams.selected_indices(True, 3) == {0, 1, 2}
    assert seams.selected_indices(False, 3) == seams.selected_indices(None, 3) == set()
    assert seams.selected_indices(-1, 3) == {2}
    assert seams.selected_indices([0, -1, 7], 3) == {0, 2}


def test_steps_are_checkpointed_where_transformers_switches_it_on():
    class Model(seams.CheckpointsSteps, transformers.PreTrainedModel):
        config_class = LlamaConfig
        supports_gradient_checkpointing = True
        steps = "blocks"

    model = Model(LlamaConfig(num_hidden_layers=1)).train()
    calls = []
    weight = torch.ones(1, requires_grad=True)

    def step(states):
        calls.append(1)
        return (states * weight).sin()

    model.run_step(step, torch.ones(1)).sum().backward()
    assert len(calls) == 1
    model.activation_checkpointing_enable()
    model.run_step(step, torch.ones(1)).sum().backward()
    assert len(calls) == 3, "the step is run again in the backward pass"
    with torch.no_grad():
        model.run_step(step, torch.ones(1))
    assert len(calls) == 4
    with pytest.raises(ValueError, match="use_reentrant"):
        model.activation_checkpointing_enable({"use_reentrant": True})


def test_make_model_takes_the_dtype_of_the_configuration():
    config = LlamaConfig(num_hidden_layers=1, hidden_size=8, intermediate_size=8, num_attention_heads=1, vocab_size=8)
    config.dtype = torch.bfloat16
    assert seams.make_model(LlamaModel, config).dtype == torch.bfloat16


def test_float32_names_are_those_that_half_precision_leaves_alone():
    class Model(LlamaModel):
        def __init__(self, config):
            super().__init__(config)
            self.own = torch.nn.Linear(2, 2, dtype=torch.float32)

    config = LlamaConfig(num_hidden_layers=1, hidden_size=8, intermediate_size=8, num_attention_heads=1, vocab_size=8)
    assert seams.float32_names(Model, config) == {"own.weight", "own.bias"}
    assert config.dtype is None


def test_prepare_inputs_puts_them_on_the_trainers_device(tmp_path):
    trainer = Trainer(tiny_llama(), TrainingArguments(tmp_path, report_to="none", use_cpu=True))
    inputs = {"input_ids": torch.tensor([[1]])}
    assert seams.prepare_inputs(trainer, inputs)["input_ids"].device.type == "cpu"


class _Steps(decoding_seams.GenerationHooks, LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.taken = []

    def generation_settings(self, generation_config, **kwargs):
        self.taken.append("settings")
        return super().generation_settings(generation_config, **kwargs)

    def make_generation_cache(self, *args, **kwargs):
        self.taken.append("cache")
        return super().make_generation_cache(*args, **kwargs)

    def make_logits_processors(self, *args, model_kwargs, **kwargs):
        self.taken.append("processors")
        return super().make_logits_processors(*args, model_kwargs=model_kwargs, **kwargs)

    def next_model_kwargs(self, *args, **kwargs):
        self.taken.append("next")
        return super().next_model_kwargs(*args, **kwargs)

    def make_candidate_generator(self, *args, **kwargs):
        self.taken.append("candidates")
        return super().make_candidate_generator(*args, **kwargs)

    def decode(self, input_ids, *args, **kwargs):
        config = kwargs["generation_config"]
        self.pad_token = decoding_seams.pad_token_of(config, input_ids.device)
        arguments = {name: kwargs[name] for name in ("position_ids", seams.CACHE_NAME)}
        self.logits = decoding_seams.prefill(self, input_ids, config, arguments).logits
        arguments[seams.CACHE_NAME].crop(-input_ids.shape[1])
        return super().decode(input_ids, *args, **kwargs)


def test_generate_takes_the_steps_that_our_models_change():
    model = _Steps(tiny_backbone("llama")).eval()
    prompt = torch.arange(3, 8)[None].repeat(1, 2)
    model.generate(prompt, max_new_tokens=2, prompt_lookup_num_tokens=2, do_sample=False, eos_token_id=None)
    assert model.taken[:3] == ["settings", "cache", "processors"]
    assert set(model.taken[3:]) == {"next", "candidates"}


def test_a_decoding_method_gets_what_generate_has_prepared():
    model, prompt = _Steps(tiny_backbone("llama")).eval(), torch.arange(3, 8)[None]
    tokens = model.generate(prompt, max_new_tokens=2, do_sample=False, eos_token_id=None, pad_token_id=9)
    assert model.pad_token == 9
    torch.testing.assert_close(model.logits[:, -1], model(prompt).logits[:, -1])
    assert tokens[0, 5] == model.logits[0, -1].argmax()
    assert tokens[0, 6] == model(tokens[:, :6]).logits[0, -1].argmax()


def test_a_module_view_shares_all_that_it_is_not_given():
    block = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    block.compile(backend="eager")
    view = module_seams.module_view(block, {"1": nn.Identity()})
    states = torch.randn(3, 2)
    assert torch.equal(view(states), block[0](states)) and not torch.equal(view(states), block(states))
    assert module_seams.child_module(view, "0") is block[0] and module_seams.child_module(view, "2") is None
    norm = module_seams.module_view(block[1], parameters={"weight": torch.zeros(2)})
    assert not norm(states).any() and module_seams.own_parameter(norm, "bias") is block[1].bias
    assert module_seams.own_parameter(norm, "gain") is None
    block.forward = lambda states: states
    with pytest.raises(ValueError, match="whose forward was replaced"):
        module_seams.module_view(block)
    assert module_seams.module_view(block, is_lenient=True).forward is block.forward


def test_trl_scores_by_a_forward_of_its_own():
    add_fused_lm_head = pytest.importorskip("trl.trainer.utils").add_fused_lm_head
    model = LlamaForCausalLM(tiny_backbone("llama"))
    assert not seams.is_scored_by_trl(model)
    add_fused_lm_head(model)
    assert seams.is_scored_by_trl(model) and seams.is_scored_by_trl(module_seams.module_view(model))


def test_a_forward_can_be_replaced_inside_the_hooks_of_accelerate():
    linear = nn.Linear(2, 2)
    cpu_offload(linear, execution_device=torch.device("cpu"))
    states = torch.randn(3, 2)
    weights = {}
    for inside in (True, False):
        view = module_seams.module_view(linear)
        module_seams.replace_forward(view, lambda states: linear.weight * 1.0, inside_hooks=inside)
        weights[inside] = view(states)
    assert weights[False].is_meta and not weights[True].is_meta and linear.weight.is_meta
    assert module_seams.is_hooked(linear) and module_seams.inner_forward(linear) is not linear.forward
    assert not module_seams.is_hooked(nn.Linear(2, 2))


def test_a_checkpointed_layer_is_run_as_it_is_where_nothing_is_differentiated():
    model = LlamaModel(tiny_backbone("llama")).train()
    layer = model.layers[0]
    assert not module_seams.drops_cache(layer)
    model.activation_checkpointing_enable()
    assert not module_seams.drops_cache(layer)
    with torch.no_grad():
        assert module_seams.drops_cache(layer) and not module_seams.drops_cache(
            module_seams.without_checkpointing(layer)
        )
    assert layer.gradient_checkpointing


def test_causal_model_class_is_that_of_the_auto_classes():
    assert seams.causal_model_class(LlamaConfig()) is LlamaForCausalLM
    assert seams.causal_model_class(T5Config()) is None


@pytest.mark.parametrize("level", [logging.WARNING, logging.ERROR])
def test_the_report_of_tensors_that_do_not_fit_is_captured_and_not_logged(level, tmp_path, capsys, caplog):
    LlamaForCausalLM(tiny_backbone("llama")).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {"other": torch.zeros(1)}, file, {"format": "pt"})
    report: list[str] = []
    # a user may have turned warnings off
    with caplog.at_level(level, "transformers"), seams.captured_load_report(report):
        LlamaForCausalLM.from_pretrained(tmp_path)
    assert len(report) == 1
    assert "other" in report[0]
    assert "other" not in capsys.readouterr().err
    # outside it is logged again
    LlamaForCausalLM.from_pretrained(tmp_path)
    assert len(report) == 1


def test_weights_that_could_not_be_put_together_are_named(tmp_path):
    MixtralForCausalLM(tiny_backbone("mixtral")).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = next(tensor for tensor in tensors if "experts.1.w1" in tensor)
    save_file(tensors | {name: tensors[name][:-1].clone()}, file, {"format": "pt"})
    report: list[str] = []
    with seams.captured_load_report(report), pytest.raises(RuntimeError):
        MixtralForCausalLM.from_pretrained(tmp_path, ignore_mismatched_sizes=True)
    assert seams.unconverted_tensors(report) == ["model.layers.0.mlp.experts.gate_up_proj"]


def test_gptj_rotary_is_where_the_decoder_has_it():
    decoder = GPTJModel(GPTJConfig(n_embd=8, n_layer=1, n_head=1, rotary_dim=4, vocab_size=8, n_positions=8))
    assert hasattr(decoder, "rotary_emb") == (seams.GPTJ_ROTARY == "rotary_emb")


def test_the_stock_trainer_asks_the_model_for_its_operations():
    seams.let_trainer_ask_model()
    counting = SimpleNamespace(model=SimpleNamespace(floating_point_ops=lambda inputs: 7))
    assert Trainer.floating_point_ops(counting, {}) == 7
    plain = LlamaForCausalLM(tiny_backbone("llama"))
    count = Trainer.floating_point_ops(SimpleNamespace(model=plain), {"input_ids": torch.ones(2, 3)})
    assert count == 6 * 6 * plain.num_parameters(exclude_embeddings=True)


def test_a_bidirectional_mask_hides_padding_alone():
    config = LlamaConfig(hidden_size=8, num_attention_heads=1, attn_implementation="sdpa")
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    seen = seams.create_bidirectional_mask(config=config, inputs_embeds=torch.zeros(2, 3, 8), attention_mask=mask)
    assert torch.equal(seen.expand(2, 1, 3, 3)[:, 0], mask.bool()[:, None].expand(2, 3, 3))


def test_a_function_is_compiled_with_graphs_of_its_own():
    counts = [0, 0]

    def count_in(index):
        def backend(graph, inputs):
            counts[index] += 1
            return graph.forward

        return backend

    compiled = [compile_seams.compile_apart(_double, backend=count_in(index)) for index in (0, 1)]
    for function in (*compiled, *compiled):
        assert torch.equal(function(torch.ones(2)), torch.full((2,), 2.0))
    assert counts == [1, 1]


def _double(states):
    return 2 * states


class _Compiled(compile_seams.CompiledGeneration, LlamaForCausalLM):
    def make_compiled_call(self, compiled_call, compile_config):
        assert callable(compiled_call)
        return compile_config


def test_generate_asks_for_the_compiled_call():
    config = CompileConfig(backend="eager", mode=None)
    assert _Compiled(tiny_backbone("llama")).get_compiled_call(config) == config


class _Uncompiled(compile_seams.CompiledGeneration, LlamaForCausalLM):
    def make_compiled_call(self, compiled_call, compile_config):
        self.asked = True
        return self.__call__


def test_generate_compiles_on_a_cpu_if_told_to():
    model = _Uncompiled(tiny_backbone("llama")).eval()
    options = {"cache_implementation": "static", "max_new_tokens": 2, "do_sample": False, "eos_token_id": None}
    model.generate(torch.arange(3, 8)[None], **options)
    assert not hasattr(model, "asked") or torch.accelerator.is_available()
    model.generate(torch.arange(3, 8)[None], **options, compile_config=compile_seams.compile_on_any_device())
    assert model.asked


def test_recorded_outputs_are_noticed():
    noticed = []
    model = LlamaModel(tiny_backbone("llama"))
    model.layers[0].register_forward_hook(lambda *_: noticed.append(compile_seams.records_outputs()))
    for flag in (False, True):
        model(torch.arange(3, 8)[None], output_hidden_states=flag)
    assert noticed == [False, True]


def test_logits_processors_are_those_of_generate():
    model = LlamaForCausalLM(tiny_llama().config)
    settings = {"repetition_penalty": 1.5, "min_new_tokens": 2, "eos_token_id": 2}
    config, _ = model._prepare_generation_config(None, **settings)
    processors = decoding_seams.logits_processors(model, config, 3, "cpu")
    for num_new, end in ((1, -torch.inf), (2, 1.0)):
        ids = torch.full((1, 3 + num_new), 5)
        assert torch.allclose(processors(ids, torch.ones(1, 8)), torch.tensor([[1, 1, end, 1, 1, 1 / 1.5, 1, 1]]))


def test_a_backend_records_the_calls_of_its_graphs():
    backend = compile_seams.RecordingBackend("eager")
    compiled, states = compile_seams.compile_apart(_double, backend=backend), torch.ones(2)
    compiled(states)
    with backend.recorded_calls() as calls:
        doubled = compiled(states)
    compiled(states)
    (call,) = calls
    assert call.args[0] is states and call.outputs[0] is doubled
    assert torch.equal(call.function(torch.full((2,), 3.0))[0], torch.full((2,), 6.0))
    assert compile_seams.all_on_cpu([states, 2]) and not compile_seams.all_on_cpu([states.to("meta")])


def test_hooks_are_noticed():
    block = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    assert not compile_seams.has_hooks([block])
    block[0][0].register_forward_hook(lambda *_: None)
    assert compile_seams.has_hooks([block])
