"""transformers' own model tests for the looped family."""

import unittest

from hf_loop import (
    LoopedConfig,
    LoopedForCausalLM,
    LoopedForSequenceClassification,
    LoopedForTokenClassification,
    LoopedModel,
)

from .family import FamilyTest, FamilyTester


class PlainTester(FamilyTester):
    config_class = LoopedConfig
    base_model_class = LoopedModel
    causal_lm_class = LoopedForCausalLM
    other_classes = (LoopedForSequenceClassification, LoopedForTokenClassification)
    schedule = {"num_loops": 2}


class PreludeCodaTester(PlainTester):
    num_backbone_layers = 3
    schedule = {
        "num_prelude_layers": 1,
        "num_coda_layers": 1,
        "num_loops": 2,
        "injection": "concat",
        "state_init": "learned",
    }


class PlainLoopedTest(FamilyTest, unittest.TestCase):
    model_tester_class = PlainTester


class PreludeCodaLoopedTest(FamilyTest, unittest.TestCase):
    model_tester_class = PreludeCodaTester
    SKIPS = {"test_num_layers_is_small": "wants two layer calls; prelude, two loops and coda are four"}
