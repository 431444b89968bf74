"""What a recipe trains where its family is `looped`."""

from dataclasses import fields
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..layer_ranges import plan_layers
from ..models import LoopedConfig, LoopedForCausalLM
from ..retrofitting import retrofit
from ..retrofitting.layer_selection import select_layers
from ..text_parts import decoder_config, load_decoder
from .arguments import LoopTrainingArguments
from .data import TrainingData
from .new_backbone import check_vocabulary, new_backbone_config
from .sections import ModelSection
from .trainer import LoopTrainer


DEFAULT_NUM_LOOPS = 4


def looped_trainer(
    model: PreTrainedModel, section: ModelSection, args: LoopTrainingArguments, data: TrainingData
) -> LoopTrainer:
    """The trainer of a recipe's looped model, with its teacher where the arguments ask for one."""
    return LoopTrainer(
        model=model,
        args=args,
        train_dataset=data.train_dataset,
        eval_dataset=data.eval_dataset,
        data_collator=data.collator,
        processing_class=data.tokenizer,
        teacher=load_teacher(str(section.pretrained), args) if args.distillation_weight > 0 else None,
    )


def build_model(section: ModelSection, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Builds the looped model of section `model`, with fresh weights or from a pretrained one.

    Args:
        section: The section `model` of a recipe.
        tokenizer: Gives the vocabulary size and the special token ids of a new backbone.

    Raises:
        ValueError: The backbone's vocabulary is smaller than the tokenizer's, a field is refused by the config, or the
            tensors of a pretrained model are not those of its configuration.
    """
    if section.pretrained is not None:
        # in single precision whatever the stored type: small updates vanish in 16-bit weights
        model = load_decoder(section.pretrained, dtype=torch.float32)
        if not _is_looped(model.config):
            model = retrofit(model, **_layout(section))
        elif section.num_loops is not None:
            model.config.num_loops = section.num_loops
    else:
        backbone_config = new_backbone_config(section.backbone or {}, tokenizer)
        model = LoopedForCausalLM(LoopedConfig(backbone_config=backbone_config, **_layout(section)))
    check_vocabulary(model, tokenizer)
    return model


def load_teacher(pretrained: str, args: LoopTrainingArguments) -> PreTrainedModel:
    """Loads the model that the student was before its layers were looped.

    Its weights do not train, so they take the type that the training computes in.
    """
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    return load_decoder(pretrained, dtype=dtype)


def check_model(section: ModelSection) -> None:
    """Refuses a section `model` of a looped model that no config accepts, before any data is loaded for it.

    Raises:
        ValueError: Names the field.
    """
    layout = _layout(section)
    if section.pretrained is not None:
        backbone_config = decoder_config(section.pretrained)
        if _is_looped(backbone_config):
            _refuse_layout(section)
            return
        core_layers, fold = layout.pop("core_layers", None), layout.pop("fold", None)
        num_prelude_layers, num_coda_layers = section.num_prelude_layers, section.num_coda_layers
        plan = plan_layers(backbone_config.num_hidden_layers, num_prelude_layers, core_layers, num_coda_layers)
        num_folds = layout["num_loops"] if fold is not None else 1
        if len(plan.core) % num_folds:
            raise ValueError(f"model.fold: {len(plan.core)} core layers cannot be shared by {num_folds} loops")
        kept_core = plan.core[: len(plan.core) // num_folds]
        backbone_config = select_layers(backbone_config, [*plan.prelude, *kept_core, *plan.coda])
        layout |= {"num_prelude_layers": len(plan.prelude), "num_coda_layers": len(plan.coda)}
    else:
        backbone_config = new_backbone_config(section.backbone or {})
    LoopedConfig(backbone_config=backbone_config, **layout)


def _is_looped(config: PreTrainedConfig) -> bool:
    return config.model_type == LoopedConfig.model_type


def _refuse_layout(section: ModelSection) -> None:
    for item in fields(ModelSection):
        value = getattr(section, item.name)
        if item.name not in ("backbone", "pretrained", "num_loops") and value != item.default:
            raise ValueError(
                f"model.{item.name} cannot be chosen, got {value!r}: {section.pretrained} is a looped model already"
            )


def _layout(section: ModelSection) -> dict[str, Any]:
    others = ("family", "backbone", "pretrained")
    given = {name: value for name, value in vars(section).items() if name not in others and value is not None}
    return {"num_loops": DEFAULT_NUM_LOOPS, **given}
