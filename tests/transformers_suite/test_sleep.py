"""transformers' own model tests for the sleep family."""

import unittest

from hf_loop import SleepConfig, SleepForCausalLM, SleepModel

from .family import FamilyTest, FamilyTester


class SleepTester(FamilyTester):
    config_class = SleepConfig
    base_model_class = SleepModel
    causal_lm_class = SleepForCausalLM
    num_backbone_layers = 2
    # a window that is longer than half of the tests' inputs: they sleep once, and are in the middle of the next
    schedule = {"sleep_window": 4, "fast_weight_layers": [0]}

    @property
    def num_hidden_layers(self) -> int:
        # one entry of hidden states per layer of the backbone
        return self.num_backbone_layers


class SleepTest(FamilyTest, unittest.TestCase):
    model_tester_class = SleepTester
    SKIPS = {
        "test_attention_outputs": "wants one map per layer; a layer has one per window and pass",
        "test_retain_grad_hidden_states_attentions": "hidden states are put together from windows, beside the way to "
        "the logits",
        "test_model_rope_scaling_from_config_1_dynamic": "no position is beyond a window, which is short",
        "test_gradient_checkpointing_enable_disable": "windows are checkpointed, not layers",
        "test_peft_gradient_checkpointing_enable_disable": "windows are checkpointed, not layers",
        "test_training_gradient_checkpointing": "windows are checkpointed, not layers",
        "test_training_gradient_checkpointing_use_reentrant_false": "windows are checkpointed, not layers",
        "test_training_gradient_checkpointing_use_reentrant_true": "re-entrant checkpointing is refused",
    }
