"""Training adapters of models that were made recurrent in memory: checkpoints, resuming, cards and pushes."""

import json
import logging

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

from hf_loop import LoopTrainer, retrofit

from ..hub_processes import run_python
from ..hub_server import HubServer
from .tiny import logged, tiny_arguments, tiny_dataset, tiny_model


FAMILIES = {
    "looped": {"num_loops": 2},
    "feedback": {"block_size": 4, "feedback_length": 2},
    "sleep": {"sleep_window": 4},
}


@pytest.fixture
def plain(tmp_path):
    """The folder of a pretrained decoder."""
    LlamaForCausalLM(tiny_model().config.backbone_config).save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def train(family, plain, output_dir, resume=None):
    torch.manual_seed(0)
    model = get_peft_model(retrofit(plain, family, **FAMILIES[family]), LoraConfig(task_type="CAUSAL_LM"))
    fields = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    if family == "looped":
        trainer_class, args = LoopTrainer, tiny_arguments(output_dir, **fields)
    else:
        common = {"logging_steps": 1, "use_cpu": True, "per_device_train_batch_size": 4, "disable_tqdm": True}
        trainer_class, args = Trainer, TrainingArguments(output_dir=str(output_dir), **common, **fields)
    trainer = trainer_class(model=model, args=args, train_dataset=tiny_dataset())
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_saves_its_checkpoints_and_goes_on_from_one(family, plain, tmp_path):
    whole = train(family, plain, tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoint-2"
    stored = json.loads((checkpoint / "adapter_config.json").read_text())
    # the plain decoder is not what the adapter belongs to
    assert stored["base_model_name_or_path"] is None
    resumed = train(family, plain, tmp_path / "resumed", resume=str(checkpoint))
    assert logged(resumed, "loss") == logged(whole, "loss")
    input_ids = tiny_dataset()["input_ids"][:2]
    torch.manual_seed(0)
    loaded = PeftModel.from_pretrained(
        retrofit(plain, family, **FAMILIES[family]), tmp_path / "run" / "checkpoint-4"
    ).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids).logits, whole.model.eval()(input_ids).logits)


@pytest.mark.parametrize("native", [False, True])
def test_the_card_of_an_adapter_is_pefts(native, plain, tmp_path, monkeypatch, caplog):
    # transformers 5.24 asks for a release of PEFT that came after it, for adapters of its own
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.21.0")
    model = retrofit(plain, num_loops=2)
    if native:
        model.add_adapter(LoraConfig())
    else:
        model = get_peft_model(model, LoraConfig())
    trainer = LoopTrainer(
        model=model, args=tiny_arguments(tmp_path / "run", max_steps=1), train_dataset=tiny_dataset()
    )
    trainer.train()
    # before there is anything in the folder, and after
    trainer.create_model_card()
    trainer.save_model()
    trainer.create_model_card()
    assert "Training hyperparameters" in (tmp_path / "run" / "README.md").read_text()
    assert not (tmp_path / "run" / "config.json").exists()
    assert not [record for record in caplog.records if "card" in record.message]


def test_a_card_that_cannot_be_written_is_logged(tmp_path, monkeypatch, caplog):
    trainer = LoopTrainer(model=tiny_model(), args=tiny_arguments(tmp_path), train_dataset=tiny_dataset())
    trainer.save_model()
    (tmp_path / "results.json").write_text("{")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("hf_loop"), "propagate", True, raising=False)
    trainer.create_model_card()
    monkeypatch.setattr(Trainer, "create_model_card", lambda *args, **kwargs: 1 / 0)
    trainer.create_model_card()
    messages = [record.message for record in caplog.records]
    assert sum("hf_loop's model card of" in message for message in messages) == 2
    assert any("Trainer's model card is not written: division by zero" in message for message in messages)


def test_an_adapter_is_pushed_with_a_card(tmp_path):
    code = """
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig
from hf_loop import LoopedConfig, LoopedForCausalLM, LoopTrainer, LoopTrainingArguments

llama = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
model = LoopedForCausalLM(LoopedConfig(backbone_config=llama))
model.save_pretrained("base")
args = LoopTrainingArguments("run", max_steps=1, use_cpu=True, save_strategy="no", hub_model_id="me/adapter")
rows = Dataset.from_dict({"input_ids": [[3, 4, 5]] * 4, "labels": [[3, 4, 5]] * 4})
adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM"))
trainer = LoopTrainer(model=adapted, args=args, train_dataset=rows)
trainer.train()
trainer.push_to_hub()
# a damaged file beside it costs the card, not the push
model.write_model_card = lambda folder, repo_id: 1 / 0
trainer.push_to_hub(commit_message="again")
adapted.merge_and_unload().push_to_hub("whole")
"""
    with HubServer() as hub:
        run_python(code, hub, tmp_path)
        files = hub.files("me/adapter")
        assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= files.keys()
        assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "base"
        assert "library_name: peft" in files["README.md"].decode()
        assert {"config.json", "model.safetensors", "README.md"} <= hub.files("me/whole").keys()
