"""transformers' own model tests for the hierarchical family."""

import unittest

from hf_loop import HierarchicalConfig, HierarchicalForCausalLM, HierarchicalModel

from .family import FamilyTest, FamilyTester


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
