"""Trainers write the card of the model's family, with the run that `Trainer` describes as a section."""

import pytest
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

from hf_loop import DeepSupervisionArguments, DeepSupervisionTrainer, LoopTrainer, LoopTrainingArguments
from hf_loop.trainer.card_trainer import CardTrainer

from ..models.composed_variants import make_composed
from ..models.feedback_variants import make_feedback
from ..models.hierarchical_variants import tiny_hierarchical
from .tiny import tiny_dataset, tiny_model
from .tiny_puzzles import puzzle_model, puzzle_rows


def write(trainer_class, arguments_class, model, folder, rows):
    args = arguments_class(str(folder), max_steps=1, use_cpu=True, save_strategy="no", disable_tqdm=True)
    trainer = trainer_class(model=model, args=args, train_dataset=rows)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    return (folder / "README.md").read_text()


@pytest.mark.parametrize("make", [tiny_hierarchical, lambda: make_composed("sleep", "looped")])
def test_models_with_loops(make, tmp_path):
    model = make()
    text = write(LoopTrainer, LoopTrainingArguments, model, tmp_path, tiny_dataset(4, length=8))
    assert f"(`{model.config.model_type}`): a schedule over the layers" in text
    assert "| trained depth |" in text and "## Training\n" in text


def test_models_without_loops(tmp_path):
    text = write(CardTrainer, TrainingArguments, make_feedback(), tmp_path, tiny_dataset(4, length=8))
    assert "| `block_size` | `4` |" in text and "## Training\n" in text
    # the stock trainer describes the run alone
    text = write(Trainer, TrainingArguments, make_feedback(), tmp_path / "stock", tiny_dataset(4, length=8))
    assert "block_size" not in text


def test_models_of_transformers(tmp_path):
    model = LlamaForCausalLM(tiny_model().config.backbone_config)
    text = write(CardTrainer, TrainingArguments, model, tmp_path, tiny_dataset(4, length=8))
    assert "block_size" not in text and "Training" in text


def test_puzzle_models(tmp_path):
    text = write(DeepSupervisionTrainer, DeepSupervisionArguments, puzzle_model(), tmp_path, puzzle_rows())
    assert "| `max_segments` |" in text and "## Training\n" in text and "Nothing was measured" in text
