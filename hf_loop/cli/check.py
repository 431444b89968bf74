"""`hf-loop check`: tell whether an architecture can be opened, and by which families."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .load import load_config, load_plain_model


if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def check(
    model: Annotated[
        str,
        typer.Argument(help="A plain checkpoint (folder, repository on the Hub, .gguf file), or a model type."),
    ],
    weights: Annotated[
        bool, typer.Option("--weights", help="Also hold the pretrained model itself to one loop over its layers.")
    ] = False,
) -> None:
    """Check that one loop over a decoder's layers is the decoder, and that a cache changes nothing."""
    config = _find_config(model)

    from ..models.backbone import Backbone, find_spec, is_tested
    from ..models.backbone_check import check_one_loop, check_twin

    spec = find_spec(config)
    result = check_twin(config, spec, Backbone)
    if result.difference is not None:
        raise ValueError(f"{config.model_type} cannot be opened: {result.difference}")
    kind = "tested by hf_loop" if is_tested(config) else "not tested by hf_loop, checked here"
    print(f"model type    {config.model_type}, {kind}")
    print(f"twin          {result.num_layers} layers, random weights, left padding")
    print("one loop      the base model's logits, bit for bit")
    print(f"cache         at two loops the logits differ by at most {result.cache_difference:.2g}")
    if weights:
        difference = check_one_loop(load_plain_model(model), spec, Backbone)
        if difference is not None:
            raise ValueError(f"{model} cannot be opened: {difference}")
        print("weights       one loop over the pretrained layers is the model, bit for bit")
    for family, refusal in _refusals(config).items():
        print(f"{family:<14}{'yes' if refusal is None else 'no: ' + refusal}")


def _find_config(model: str) -> "PreTrainedConfig":
    """Read the configuration of a checkpoint, or make the default one of a model type."""
    from transformers import CONFIG_MAPPING

    from ..text_parts import text_config

    if model in CONFIG_MAPPING and not Path(model).exists():
        return text_config(CONFIG_MAPPING[model](), model)
    config = load_config(model)
    if hasattr(config, "backbone_config"):
        raise ValueError(f"{model} is a {config.model_type.removesuffix('_lm')} model already")
    return config


def _refusals(config: "PreTrainedConfig") -> dict[str, str | None]:
    """Return each family's reason to refuse the decoder, `None` where it takes it."""
    import copy

    import torch

    from ..models import FAMILIES

    refusals: dict[str, str | None] = {}
    for name, family in FAMILIES.items():
        if family.causal is None:
            continue
        refusals[name] = None
        try:
            with torch.device("meta"):
                family.causal(family.config(backbone_config=copy.deepcopy(config)))
        except ValueError as error:
            refusals[name] = " ".join(str(error).split())
    return refusals
