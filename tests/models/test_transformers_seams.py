"""Each touch of another library's private part does under the installed release what its docstring says."""

import inspect

import pytest
import torch
import transformers
from transformers import DynamicCache, LlamaConfig, LlamaModel, Trainer, TrainingArguments

from hf_loop.models import transformers_seams as seams
from hf_loop.models.outputs import RecurrentCausalLMOutputWithPast, RecurrentModelOutputWithPast


def tiny_llama() -> LlamaModel:
    return LlamaModel(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )


class TakesCache:
    @seams.takes_cache
    def forward(self, ids, cache=None, **kwargs):
        return cache, kwargs


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
            return self.backbone(input_ids, **kwargs)

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


def test_prepare_inputs_puts_them_on_the_trainers_device(tmp_path):
    trainer = Trainer(tiny_llama(), TrainingArguments(tmp_path, report_to="none", use_cpu=True))
    inputs = {"input_ids": torch.tensor([[1]])}
    assert seams.prepare_inputs(trainer, inputs)["input_ids"].device.type == "cpu"
