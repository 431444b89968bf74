"""Looped models as policy and reference model of TRL's GRPO and DPO, at the depth that was asked for."""

from dataclasses import dataclass

import pytest
import torch
from datasets import Dataset
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from hf_loop import LoopTrainer, LoopTrainingArguments
from hf_loop.trainer.data import byte_tokenizer

from ..models.looped_variants import tiny_looped
from .tiny import logged, tiny_model


trl = pytest.importorskip("trl")
COMMON = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
}
PROMPTS = Dataset.from_dict({"prompt": ["one", "two", "three", "four"]})
PAIRS = PROMPTS.add_column("chosen", [" yes", " right"] * 2).add_column("rejected", [" no", " left"] * 2)


def policy(**config):
    backbone_config = tiny_model().config.backbone_config
    backbone_config.vocab_size = len(byte_tokenizer())
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(type(tiny_model().config)(backbone_config=backbone_config, **config))


def depths_run(model) -> list[int]:
    """The depth of every call of the looped model, with or without its head, from now on."""
    run = []
    model.model.register_forward_hook(lambda module, args, outputs: run.append(int(outputs.num_loops[0])))
    return run


def grpo(tmp_path, model, **fields):
    rewards = lambda completions, **kwargs: [float(len(text)) for text in completions]  # noqa: E731
    options = {**COMMON, "num_generations": 2, "max_completion_length": 4, **fields}
    config = trl.GRPOConfig(output_dir=str(tmp_path / "out"), **options)
    return trl.GRPOTrainer(
        model, reward_funcs=rewards, args=config, train_dataset=PROMPTS, processing_class=byte_tokenizer()
    )


@pytest.mark.skipif("dory" not in CONFIG_MAPPING, reason="transformers has no dory before 5.24")
def test_a_head_with_a_scale_for_every_token_is_refused(tmp_path):
    model = tiny_looped("dory", injection="unit_add")
    model.resize_token_embeddings(len(byte_tokenizer()))
    with pytest.raises(ValueError, match="a dory decoder cannot be trained by this trainer of TRL"):
        grpo(tmp_path, model).train()


def test_grpo_samples_and_scores_at_the_depth_of_the_configuration(tmp_path):
    policy(num_loops=3).save_pretrained(tmp_path / "model")
    depth = {"num_loops": 4}
    trainer = grpo(tmp_path, str(tmp_path / "model"), model_init_kwargs=depth, beta=0.1, generation_kwargs=depth)
    of_policy, of_reference = depths_run(trainer.model), depths_run(trainer.ref_model)
    trainer.train()
    assert set(of_policy) == set(of_reference) == {4}
    assert logged(trainer, "kl")[0] == pytest.approx(0, abs=1e-6)


def test_grpo_that_would_score_at_another_depth_is_refused(tmp_path):
    trainer = grpo(tmp_path, policy(num_loops=3), generation_kwargs={"num_loops": 4})
    with pytest.raises(ValueError, match="`num_loops` must be that of the model's configuration, 3, while TRL trains"):
        trainer.train()
    # afterwards the model is free again
    model = trainer.model.eval()
    assert model.generate(torch.tensor([[5, 6]]), num_loops=4, max_new_tokens=2, pad_token_id=0).shape[1] <= 4


def test_sampled_depth_is_refused_where_a_trainer_samples(tmp_path):
    for trainer_class in (trl.GRPOTrainer, trl.RLOOTrainer):
        with pytest.raises(ValueError, match=f"cannot stand in front of {trainer_class.__name__}"):
            type("LoopSampling", (LoopTrainer, trainer_class), {})(model=policy())


def test_a_trainer_that_gives_its_steps_no_names_is_refused(tmp_path):
    class Lists(LoopTrainer):
        def get_train_dataloader(self):
            return [[{"input_ids": [5]}]]

    args = LoopTrainingArguments(output_dir=str(tmp_path), max_steps=1, use_cpu=True)
    with pytest.raises(TypeError, match="inputs of Lists must be the model's, by name, for LoopTrainer .* got list"):
        Lists(policy(), args, train_dataset=PROMPTS).train()


def test_dpo_loads_its_reference_at_the_depth_of_the_policy(tmp_path):
    policy(num_loops=3).save_pretrained(tmp_path / "model")
    args = trl.DPOConfig(output_dir=str(tmp_path / "out"), model_init_kwargs={"num_loops": 2}, **COMMON)
    options = {"args": args, "train_dataset": PAIRS, "processing_class": byte_tokenizer()}
    trainer = trl.DPOTrainer(str(tmp_path / "model"), **options)
    of_policy, of_reference = depths_run(trainer.model), depths_run(trainer.ref_model)
    trainer.train()
    assert of_policy == of_reference == [2, 2]
    # where nothing has moved yet, policy and reference are one
    assert logged(trainer, "loss")[0] == pytest.approx(0.6931, abs=1e-4)


@dataclass
class LoopDPOConfig(LoopTrainingArguments, trl.DPOConfig):
    pass


class LoopDPOTrainer(LoopTrainer, trl.DPOTrainer):
    pass


def test_dpo_at_sampled_depth_has_its_reference_at_the_policys(tmp_path):
    policy(num_loops=3).save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", num_loops=2)
    args = LoopDPOConfig(output_dir=str(tmp_path / "out"), **COMMON)
    options = {"args": args, "train_dataset": PAIRS, "processing_class": byte_tokenizer()}
    with pytest.raises(ValueError, match="ref_model must have the model's num_loops, 2, got 3"):
        LoopDPOTrainer(model, **options)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", num_loops=2)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "model", num_loops=2)
    trainer = LoopDPOTrainer(model, ref_model=reference, **options)
    of_policy, of_reference = depths_run(model), depths_run(reference)
    trainer.train()
    assert of_policy == of_reference == [trainer.depth_at(step).num_loops for step in range(2)]


@pytest.mark.parametrize("model_type", ["gemma2", "cohere", "granite"])
def test_trl_scores_as_the_model_does_where_logits_are_scaled_or_bounded(model_type):
    from trl.trainer.utils import add_fused_lm_head

    model = tiny_looped(model_type)
    view = model.with_num_loops(2)
    input_ids = torch.randint(3, 90, (2, 6))
    for scored, depth in ((model, 3), (view, 2)):
        logits = model(input_ids, num_loops=depth).logits
        expected = logits[:, :-1].log_softmax(-1).gather(-1, input_ids[:, 1:, None])[..., 0]
        add_fused_lm_head(scored)
        log_probs = scored(input_ids=input_ids, labels=input_ids, fused_lm_head=True).log_probs
        torch.testing.assert_close(log_probs, expected, atol=2e-5, rtol=2e-5)
