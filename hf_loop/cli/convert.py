"""`hf-loop convert`: convert a published looped checkpoint to a model folder of this library, or back."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..field_values import parse_field_values
from ..output_folders import whole_folder
from .load import load_config, load_model
from .options import FieldValues, Quiet
from .output import spinner
from .save import check_new_folder, size_on_disk


if TYPE_CHECKING:
    from transformers import PreTrainedModel


def convert(
    source: Annotated[str, typer.Argument(help="The published checkpoint: a folder, or a repository on the Hub.")],
    output_dir: Annotated[Path, typer.Argument(help="Where the converted model goes; new or empty.")],
    to: Annotated[
        str | None,
        typer.Option(
            metavar="LAYOUT",
            help="Convert back: SOURCE is a model of this library, written as engines read that published layout: "
            "nanbeige (llama.cpp, mlx-lm, SGLang, vLLM), dory, inkling2_loop or hrm_text (transformers). "
            "--set takes num_loops.",
        ),
    ] = None,
    set_: FieldValues = None,
    dtype: Annotated[
        str | None, typer.Option(help="Type of the weights, such as bfloat16; by default as they are stored.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Convert Huginn, its retrofits, Ouro, Nanbeige, Dory, Inkling-2, Parcae, LoopedLM, HRM, TRM or HRM-Text."""
    overrides = parse_field_values(set_ or [])
    # the configuration has a field `dtype`, but setting it would not convert the weights
    if "dtype" in overrides:
        raise ValueError("--set: give the type of the weights as --dtype")
    check_new_folder(output_dir)

    from rich.console import Console

    from .. import register

    register()
    # refuse a wrong type before the weights are read
    torch_dtype = parse_dtype(dtype)
    console = Console()
    if to is not None:
        _convert_back(console, source, output_dir, to, overrides, torch_dtype, quiet)
        return
    from ..retrofitting import convert as convert_checkpoint
    from ..retrofitting.conversion import copy_tokenizer

    with spinner(f"converting {source}", quiet):
        model = convert_checkpoint(source, dtype=torch_dtype, **overrides)
        with whole_folder(output_dir) as folder:
            model.save_pretrained(folder)
            copy_tokenizer(source, folder)
    print_facts(console, model, output_dir)


def _convert_back(
    console: Any, source: str, output_dir: Path, layout: str, overrides: dict[str, Any], dtype: Any, quiet: bool
) -> None:
    """Write a model of this library in a published layout, with its tokenizer, and print what the engine will run."""
    from ..models import family_of
    from ..retrofitting import export
    from ..retrofitting.checkpoint import locate, tokenizer_files
    from ..retrofitting.exporting import find_layout

    # refuse what does not fit before the weights are read
    find_layout(layout)
    num_loops = overrides.pop("num_loops", None)
    if overrides:
        raise ValueError(f"--set: with --to only num_loops can be set, got {', '.join(overrides)}")
    # a published checkpoint is named as one, with what to do with it
    config = load_config(source)
    if family_of(config) is None:
        raise ValueError(
            f"{source} is a plain {config.model_type!r} model: with --to, SOURCE is a model of hf_loop; make one with "
            "hf-loop retrofit"
        )
    with spinner(f"converting {source}", quiet):
        model: Any = load_model(source)
        with whole_folder(output_dir) as folder:
            export(_cast(model, dtype), folder, layout, num_loops=num_loops)
            for file in tokenizer_files(locate(source)):
                shutil.copy(file, folder)
    console.print(
        f"{output_dir}: {layout}, {num_loops or model.config.num_loops} loops, {model.num_parameters():,} parameters, "
        f"{size_on_disk(output_dir)}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _cast(model: Any, dtype: Any) -> Any:
    """Cast the weights of a model, without those that it has in float32 in any case."""
    from ..models.transformers_seams import float32_names

    if dtype is not None:
        fixed = float32_names(type(model), model.config)
        for name, parameter in model.named_parameters():
            if name not in fixed:
                parameter.data = parameter.data.to(dtype)
    return model


def parse_dtype(name: str | None) -> Any:
    """Return torch's floating-point type of a name.

    Args:
        name (`str`, *optional*): such as `bfloat16`.

    Raises:
        ValueError: if there is no such type.
    """
    import torch

    if name is None:
        return None
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"--dtype: {name!r} is not a floating-point type; give float32, bfloat16 or float16")
    return dtype


def print_facts(console: Any, model: "PreTrainedModel", output_dir: Path) -> None:
    """Print what the model is, how large it is, and what to run next."""
    from ..models import family_of

    config: Any = model.config
    family: Any = family_of(config)
    lines = [
        f"model type  {config.model_type} over {config.backbone_config.model_type}",
        f"parameters  {model.num_parameters():,} in {str(model.dtype).removeprefix('torch.')}",
        f"schedule    {family.describe(config)}",
        f"size        {size_on_disk(output_dir)} in {output_dir}",
    ]
    if not model.can_generate():
        lines.append("It solves puzzles: load it with AutoModelForMaskedLM, and call its `solve`.")
    elif not any(output_dir.glob("tokenizer*")):
        lines.append("The source has no tokenizer; copy the base model's beside the weights.")
    else:
        loops = ",".join(str(count) for count in sorted({1, max(config.num_loops // 2, 1), config.num_loops}))
        lines.append(f"Next: hf-loop generate {output_dir} 'The capital of France is' --loops {loops}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
