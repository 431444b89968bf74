"""What a recipe trains where its family is `hierarchical`: a puzzle model, under deep supervision."""

from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from ..loading import load_pretrained
from ..models import HierarchicalForPuzzle, HierarchicalPuzzleConfig
from .data import TrainingData
from .deep_supervision import DeepSupervisionArguments, DeepSupervisionTrainer
from .new_backbone import check_vocabulary
from .sections import HierarchicalSection


# of a mixer over positions before the data say how many there are
UNKNOWN_LENGTH = 64


def check_hierarchical_model(section: HierarchicalSection) -> None:
    """Refuses a section `model` of a puzzle model that no config accepts, before any data is made for it.

    Raises:
        ValueError: Names the field, or what `pretrained` is instead of a puzzle model.
    """
    if section.pretrained is None:
        _new_config(section, UNKNOWN_LENGTH, 1)
        return
    config = AutoConfig.from_pretrained(section.pretrained)
    if config.model_type != HierarchicalPuzzleConfig.model_type:
        raise ValueError(f"model.pretrained must be a puzzle model, {section.pretrained} is a {config.model_type}")


def build_hierarchical_model(
    section: HierarchicalSection, tokenizer: PreTrainedTokenizerBase, num_cells: int
) -> PreTrainedModel:
    """Builds the puzzle model of section `model`, with fresh weights or from a pretrained one.

    Args:
        section: The section `model` of a recipe.
        tokenizer: Gives the vocabulary size of a new model.
        num_cells: Cells of a puzzle, which a mixer over positions is made for.

    Raises:
        ValueError: The vocabulary is smaller than the tokenizer's, a field is refused by the config, or the tensors
            of a pretrained model are not those of its configuration.
    """
    if section.pretrained is None:
        model: Any = HierarchicalForPuzzle(_new_config(section, num_cells, len(tokenizer)))
    else:
        # in single precision whatever the stored type: small updates vanish in 16-bit weights
        options: dict[str, Any] = {"dtype": torch.float32, **section.hierarchical}
        model = load_pretrained(AutoModelForMaskedLM, section.pretrained, **options)
    check_vocabulary(model, tokenizer)
    return model


def hierarchical_trainer(
    model: PreTrainedModel, section: HierarchicalSection, args: DeepSupervisionArguments, data: TrainingData
) -> DeepSupervisionTrainer:
    """The trainer of a recipe's puzzle model."""
    return DeepSupervisionTrainer(
        model=model,
        args=args,
        train_dataset=cast(Any, data.train_dataset),
        eval_dataset=data.eval_dataset,
        data_collator=data.collator,
        processing_class=data.tokenizer,
    )


def _new_config(section: HierarchicalSection, num_cells: int, vocab_size: int) -> HierarchicalPuzzleConfig:
    fields = {"vocab_size": vocab_size, **section.hierarchical}
    if fields.get("token_mixer") == "mlp" and "max_position_embeddings" not in fields:
        num_tokens = fields.get("num_puzzle_tokens")
        if num_tokens is None:
            # the preset's own number, which its mixer is not needed for
            others = {key: value for key, value in fields.items() if key != "token_mixer"}
            num_tokens = HierarchicalPuzzleConfig.from_preset(str(section.preset), **others).num_puzzle_tokens
        fields["max_position_embeddings"] = num_cells + num_tokens
    return HierarchicalPuzzleConfig.from_preset(str(section.preset), **fields)
