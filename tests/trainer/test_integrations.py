"""Depth sampling together with PEFT and with TRL's trainer."""

from dataclasses import dataclass

import pytest

from hf_loop import LoopTrainer, LoopTrainingArguments

from .tiny import logged, tiny_arguments, tiny_dataset, tiny_model


def test_lora_at_sampled_depth(tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_model(), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    frozen = {name: weight.clone() for name, weight in model.named_parameters() if not weight.requires_grad}
    trainer = LoopTrainer(model=model, args=tiny_arguments(tmp_path), train_dataset=tiny_dataset())
    trainer.train()
    assert logged(trainer, "mean_loops") == [trainer.depth_at(step).num_loops for step in range(6)]
    assert logged(trainer, "loss")[-1] < logged(trainer, "loss")[0]
    weights = dict(model.named_parameters())
    assert all(weights[name].equal(weight) for name, weight in frozen.items())


def test_muon_leaves_lora_to_adamw(tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_model(), peft.LoraConfig(r=4, target_modules=["q_proj"]))
    trainer = LoopTrainer(model=model, args=tiny_arguments(tmp_path, use_muon=True), train_dataset=tiny_dataset())
    with pytest.raises(ValueError, match="no trainable matrix"):
        trainer.create_optimizer()


def test_sft_trainer_at_the_configured_depth(tmp_path):
    trl = pytest.importorskip("trl")
    trainer = trl.SFTTrainer(model=tiny_model(injection="add"), **sft_kwargs(tmp_path, trl.SFTConfig))
    trainer.train()
    assert logged(trainer, "loss")[-1] < logged(trainer, "loss")[0] - 0.05


def test_sft_trainer_at_sampled_depth(tmp_path):
    trl = pytest.importorskip("trl")

    @dataclass
    class LoopSFTConfig(LoopTrainingArguments, trl.SFTConfig):
        pass

    class LoopSFTTrainer(LoopTrainer, trl.SFTTrainer):
        pass

    depths = []
    model = tiny_model(injection="add")
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: depths.append(kwargs.get("num_loops")), with_kwargs=True
    )
    trainer = LoopSFTTrainer(model=model, **sft_kwargs(tmp_path, LoopSFTConfig))
    trainer.train()
    assert depths == logged(trainer, "mean_loops") == [trainer.depth_at(step).num_loops for step in range(6)]
    assert logged(trainer, "loss")[-1] < logged(trainer, "loss")[0] - 0.05


def sft_kwargs(output_dir, config_class):
    from hf_loop.trainer.data import byte_tokenizer

    tokenizer = byte_tokenizer()
    config = config_class(
        output_dir=str(output_dir),
        max_steps=6,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        bf16=False,
        pad_token=tokenizer.eos_token,
    )
    return {"args": config, "train_dataset": tiny_dataset().remove_columns("labels"), "processing_class": tokenizer}
