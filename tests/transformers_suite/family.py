"""What transformers' own model tests need to know of one of our families."""

import os
import warnings
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from .mixins import MixinsUnavailableError, import_mixins


try:
    configuration = import_mixins("test_configuration_common")
    fsdp = import_mixins("test_fsdp_mixin")
    generation = import_mixins("generation.test_utils")
    modeling = import_mixins("test_modeling_common")
    tensor_parallel = import_mixins("test_tensor_parallel_mixin")
    training = import_mixins("test_training_mixin")
except MixinsUnavailableError as error:
    # where changes are checked, a suite that did not run is a failure
    if os.environ.get("CI"):
        raise
    pytest.skip(str(error), allow_module_level=True)

# transformers runs its distributed tests for a few of its families only, by these lists of model types
fsdp.FSDP_DISTRIBUTED_TEST_MODEL_TYPES = None
tensor_parallel.TP_DISTRIBUTED_TEST_MODEL_TYPES = None
# ranks of a tiny model share cores
fsdp._get_available_fsdp_workers = lambda: 4


class FamilyTester:
    """A tiny model of one family and its inputs, under the names transformers' tests ask for.

    Args:
        config_class, base_model_class, causal_lm_class (`type`): the family's classes.
        other_classes (`tuple[type, ...]`): its further heads.
        num_backbone_layers (`int`): layers of the tiny backbone.
        schedule (`dict`): the family's own configuration fields.
    """

    config_class: Any
    base_model_class: type[PreTrainedModel]
    causal_lm_class: type[PreTrainedModel]
    other_classes: tuple[type[PreTrainedModel], ...] = ()
    num_backbone_layers = 1
    schedule: dict[str, Any] = {}

    batch_size = 13
    seq_length = 7
    vocab_size = 99
    hidden_size = 32
    intermediate_size = 32
    num_attention_heads = 2
    num_key_value_heads = 2
    is_training = True

    @property
    def num_hidden_layers(self) -> int:
        # one entry of hidden states and attentions per layer call
        return self.get_config().num_hidden_layers

    def get_config(self) -> PreTrainedConfig:
        backbone_config = LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_backbone_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            max_position_embeddings=512,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        return self.config_class(backbone_config=backbone_config, **self.schedule)

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
        input_ids = modeling.ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        return self.get_config(), {"input_ids": input_ids, "attention_mask": torch.tril(torch.ones_like(input_ids))}


class FamilyTest(
    modeling.ModelTesterMixin,
    generation.GenerationTesterMixin,
    training.TrainingTesterMixin,
    tensor_parallel.TensorParallelTesterMixin,
    fsdp.FSDPTesterMixin,
):
    """transformers' tests of a decoder; a subclass names its `model_tester_class`, and is a `unittest.TestCase`."""

    model_tester_class: type[FamilyTester]
    # tests we skip ourselves, with the reason
    SKIPS: dict[str, str] = {}

    @property
    def model_tester(self) -> FamilyTester:
        return self.model_tester_class()

    @property
    def all_model_classes(self) -> tuple[type[PreTrainedModel], ...]:
        tester = self.model_tester_class
        return (tester.base_model_class, tester.causal_lm_class, *tester.other_classes)

    def setUp(self):
        super().setUp()
        if self._testMethodName in self.SKIPS:
            self.skipTest(f"SKIPS: {self.SKIPS[self._testMethodName]}")
        # the tests of a model without a head are chosen by this table, which `AutoModel.register` does not fill
        tester = self.model_tester_class
        MODEL_MAPPING_NAMES[tester.config_class.model_type] = tester.base_model_class.__name__

    def test_bc_cache_name_forward(self):
        # transformers warns of the older name of the cache, which is to go; here both names stay
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config).eval()
            with torch.no_grad(), warnings.catch_warnings(action="error"):
                logits = [
                    model(**inputs, **{name: DynamicCache(config=config)})[0] for name in ("cache", "past_key_values")
                ]
            assert torch.equal(*logits), model_class.__name__

    def test_config(self):
        configuration.ConfigTester(self, config_class=self.model_tester_class.config_class).run_common_tests()
