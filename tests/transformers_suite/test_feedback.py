"""transformers' own model tests for the feedback family."""

import unittest

from hf_loop import FeedbackConfig, FeedbackForCausalLM, FeedbackModel

from .family import FamilyTest, FamilyTester


class FeedbackTester(FamilyTester):
    config_class = FeedbackConfig
    base_model_class = FeedbackModel
    causal_lm_class = FeedbackForCausalLM
    num_backbone_layers = 2
    # the tests' inputs of seven tokens are a whole block and the greater part of the next
    schedule = {"block_size": 4, "num_memory_segments": 1, "feedback_length": 2}


class FeedbackTest(FamilyTest, unittest.TestCase):
    model_tester_class = FeedbackTester
    SKIPS = {
        "test_attention_outputs": "wants one map per layer; a layer has one per block",
        "test_retain_grad_hidden_states_attentions": "hidden states are put together from blocks, beside the way "
        "to the logits",
        "test_gradient_checkpointing_enable_disable": "blocks are checkpointed, not layers",
        "test_peft_gradient_checkpointing_enable_disable": "blocks are checkpointed, not layers",
        "test_training_gradient_checkpointing": "blocks are checkpointed, not layers",
        "test_training_gradient_checkpointing_use_reentrant_false": "blocks are checkpointed, not layers",
        "test_training_gradient_checkpointing_use_reentrant_true": "re-entrant checkpointing is refused",
    }
