"""Which parameter is trained by what, and Muon with AdamW as one optimizer."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from hf_loop import LoopTrainer
from hf_loop.trainer.muon import Muon
from hf_loop.trainer.optimizer import MuonAdamW, muon_parameter_names

from .tiny import logged, tiny_arguments, tiny_dataset, tiny_model


def make_trainer(tmp_path, model, **fields):
    return LoopTrainer(model=model, args=tiny_arguments(tmp_path, **fields), train_dataset=tiny_dataset())


@pytest.mark.parametrize("injection", ["none", "concat", "diagonal"])
@pytest.mark.parametrize("use_muon", [False, True])
def test_every_parameter_is_in_exactly_one_group(tmp_path, injection, use_muon):
    model = tiny_model(injection=injection, loop_norm="own")
    model.model.backbone.layers[0].mlp.up_proj.weight.requires_grad_(False)
    optimizer = make_trainer(tmp_path, model, use_muon=use_muon, weight_decay=0.1).create_optimizer()
    in_groups = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(in_groups) == len(set(in_groups))
    assert set(in_groups) == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def test_muon_trains_the_matrices_of_the_layers():
    model = tiny_model(injection="concat", state_init="learned", loop_norm="own")
    names = muon_parameter_names(model)
    assert {name.split(".", 4)[4] for name in names} == {
        *(f"self_attn.{part}_proj.weight" for part in "qkvo"),
        *(f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    }
    assert len(names) == 2 * 7
    assert all(name.startswith("model.backbone.layers.") for name in names)


def test_stacked_experts_go_to_adamw():
    config = Qwen3MoeConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        moe_intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
    )
    model = Qwen3MoeForCausalLM(config)
    stacked = {name for name, parameter in model.named_parameters() if parameter.ndim == 3}
    assert stacked
    assert not stacked & muon_parameter_names(model)


@pytest.mark.parametrize("use_muon", [False, True])
def test_vectors_and_the_injection_do_not_decay(tmp_path, use_muon):
    model = tiny_model(injection="diagonal", loop_norm="own")
    optimizer = make_trainer(tmp_path, model, use_muon=use_muon, weight_decay=0.1).create_optimizer()
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        exempt = "injection" in name or "norm" in name
        assert decay[id(parameter)] == (0.0 if exempt else 0.1), name
    assert decay[id(model.model.injection.A_log)] == 0.0


@pytest.mark.parametrize("use_muon", [False, True])
def test_per_loop_lora_goes_to_adamw_and_only_its_matrices_decay(tmp_path, use_muon):
    model = tiny_model(loop_lora_rank=2, loop_lora_vectors=True)
    optimizer = make_trainer(tmp_path, model, use_muon=use_muon, weight_decay=0.1).create_optimizer()
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    updates = dict(model.model.loop_lora.named_parameters())
    assert {name.rpartition("_")[2] for name in updates} == {"A", "B", "weight"}
    for name, parameter in updates.items():
        assert groups[id(parameter)]["weight_decay"] == (0.0 if name.endswith("_weight") else 0.1), name
        assert not groups[id(parameter)].get("use_muon"), name


def test_learning_rates_follow_one_schedule(tmp_path):
    trainer = make_trainer(
        tmp_path, tiny_model(), use_muon=True, learning_rate=1e-3, muon_learning_rate=4e-3, max_steps=4
    )
    trainer.train()
    rates = {group["use_muon"]: group["lr"] for group in trainer.optimizer.param_groups}
    assert rates == {True: pytest.approx(0.0), False: pytest.approx(0.0)}
    initial = {group["use_muon"]: group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert initial == {True: 4e-3, False: 1e-3}


def test_both_parts_step_like_the_optimizers_alone():
    torch.manual_seed(0)
    matrix, vector = torch.nn.Parameter(torch.randn(6, 4)), torch.nn.Parameter(torch.randn(4))
    alone_matrix, alone_vector = copy.deepcopy(matrix), copy.deepcopy(vector)
    together = MuonAdamW(
        [
            {"params": [matrix], "use_muon": True, "lr": 0.1, "weight_decay": 0.01},
            {"params": [vector], "use_muon": False, "lr": 0.2, "weight_decay": 0.0},
        ]
    )
    muon = Muon([alone_matrix], lr=0.1, weight_decay=0.01)
    adamw = torch.optim.AdamW([alone_vector], lr=0.2, weight_decay=0.0)
    for step in range(4):
        if step == 2:  # a checkpoint in between changes nothing
            together.load_state_dict(copy.deepcopy(together.state_dict()))
        for parameter, alone in ((matrix, alone_matrix), (vector, alone_vector)):
            parameter.grad = torch.randn_like(parameter)
            alone.grad = parameter.grad.clone()
        together.step()
        muon.step()
        adamw.step()
        together.zero_grad()
        assert matrix.grad is None
    assert torch.equal(matrix, alone_matrix)
    assert torch.equal(vector, alone_vector)


def test_muon_learns_and_resumes_exactly(tmp_path):
    def run(folder, resume=None, **fields):
        trainer = make_trainer(
            tmp_path / folder, tiny_model(injection="diagonal"), use_muon=True, max_steps=6, **fields
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run("whole", save_strategy="steps", save_steps=3)
    resumed = run("resumed", resume=str(tmp_path / "whole" / "checkpoint-3"))
    assert logged(whole, "loss")[3:] == logged(resumed, "loss")[3:]
    for (name, weight), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(weight, other), name
    assert logged(whole, "loss")[-1] < logged(whole, "loss")[0] - 0.1


def test_muon_without_layers_to_train_is_refused(tmp_path):
    model = tiny_model()
    for parameter in model.model.backbone.layers.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="use_muon=True, but the model has no trainable matrix"):
        make_trainer(tmp_path, model, use_muon=True).create_optimizer()


def test_plain_models_are_refused(tmp_path):
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(ValueError, match="must have num_loops in its config, got LlamaForCausalLM"):
        make_trainer(tmp_path, model)
