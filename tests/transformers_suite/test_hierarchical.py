"""transformers' own model tests for the hierarchical family."""

import re
import unittest

from hf_loop import (
    HierarchicalConfig,
    HierarchicalForCausalLM,
    HierarchicalForPuzzle,
    HierarchicalModel,
    HierarchicalPuzzleConfig,
)
from hf_loop.models import HierarchicalPuzzleModel

from .family import FamilyTest, FamilyTester, modeling, tensor_parallel


class SharedStackTester(FamilyTester):
    config_class = HierarchicalConfig
    base_model_class = HierarchicalModel
    causal_lm_class = HierarchicalForCausalLM
    schedule = {"num_loops": 1, "low_cycles": 1, "shared_stack": True}


class TwoStacksTester(SharedStackTester):
    num_backbone_layers = 2
    schedule = {"num_loops": 2, "low_cycles": 1, "injection": "add", "state_init": "zeros"}


class SharedStackHierarchicalTest(FamilyTest, unittest.TestCase):
    model_tester_class = SharedStackTester


class TwoStacksHierarchicalTest(FamilyTest, unittest.TestCase):
    model_tester_class = TwoStacksTester
    SKIPS = {"test_num_layers_is_small": "wants two layer calls; two cycles of two stacks are four"}


class PuzzleTester(FamilyTester):
    config_class = HierarchicalPuzzleConfig
    base_model_class = HierarchicalPuzzleModel
    causal_lm_class = HierarchicalForPuzzle

    def get_config(self):
        return HierarchicalPuzzleConfig.from_preset(
            "trm",
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_attention_heads=self.num_attention_heads,
            num_hidden_layers=1,
            num_loops=1,
            low_cycles=1,
            # one entry of hidden states for every cell
            num_puzzles=0,
            num_puzzle_tokens=0,
        )

    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        # a puzzle has no mask
        return config, {"input_ids": inputs["input_ids"]}


# not the FSDP mixin, which makes causal models of a configuration: see test_hierarchical_puzzle_sharding.py
class PuzzleTest(modeling.ModelTesterMixin, tensor_parallel.TensorParallelTesterMixin, unittest.TestCase):
    all_model_classes = (HierarchicalForPuzzle,)
    SKIPS = {
        "test_causal_lm_loss_honors_shift_labels": "a puzzle's answer is not shifted",
        "test_init_weights_can_init_buffers": "the starting states are drawn at random",
        "test_inputs_embeds": "a puzzle is read as tokens",
        "test_tp_generation": "a puzzle is solved, not continued",
        "test_tp_generation_quantized": "a puzzle is solved, not continued",
    }

    @property
    def model_tester(self):
        return PuzzleTester()

    def setUp(self):
        super().setUp()
        if self._testMethodName in self.SKIPS:
            self.skipTest(f"SKIPS: {self.SKIPS[self._testMethodName]}")
        if re.search("_pad_left(?!_no_attn_mask|_output_attentions)", self._testMethodName):
            self.skipTest("SKIPS: a puzzle is padded at its end")

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        return {**inputs, "labels": inputs["input_ids"]} if return_labels else inputs
