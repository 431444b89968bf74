"""The one place that loads a model's weights from a folder or from the Hub. Every tensor must fit.

Where a checkpoint lacks a weight, transformers fills it with random numbers; where it has one too many, transformers
leaves it out. Both give a warning only, and whatever is then measured, trained or written is another model. Here both
are errors. Allowed is what the model's own class allows: tied weights, which are stored once, and names that the class
ignores (rotary tables in old files, layers for multi-token prediction). New heads are no exception: no command loads a
model to give it one.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import get_peft_model_state_dict
from transformers import GenerationConfig, GgufConfig, PreTrainedConfig, PreTrainedModel

from . import gguf_files, models
from .configurations import CONFIG_FILE, is_adapter, read_config
from .files import fault_named, read_json, tensor_shapes
from .models.transformers_seams import captured_load_report, unconverted_tensors
from .weight_files import WEIGHT_FILES, check_weight_files, count_stored_parameters, shard_files


# most tensors that a message names
NUM_NAMED = 3
ADAPTER_FILE = "adapter_model.safetensors"
GENERATION_FILE = "generation_config.json"


def load_pretrained(
    model_class: Any, path: str | os.PathLike | None, *, name: str | os.PathLike | None = None, **options: Any
) -> PreTrainedModel:
    """Load a model as `model_class.from_pretrained` does, but refuse a checkpoint that does not fill it exactly.

    Args:
        model_class (`type`): a model class or one of transformers' Auto classes.
        path (`str`, `os.PathLike` or `None`): a folder, a repository on the Hub, or a GGUF file, whose weights are
            unpacked; `None` where `options` hold the `state_dict`.
        name (`str` or `os.PathLike`, *optional*): what messages call the checkpoint, `path` by default.
        options: further arguments of `from_pretrained`.

    Returns:
        `PreTrainedModel`: the model, in evaluation mode.

    Raises:
        ValueError: if tensors are missing, unexpected or of another shape, or a weight file is damaged; the message
            names the first of them and the checkpoint.
        OSError: if there is no such checkpoint, or it lacks a file.
    """
    name = path if name is None else name
    model, faults = load_with_faults(model_class, path, name, **options)
    check_loaded(faults, name, type(model).__name__)
    return model


def load_with_faults(
    model_class: Any, path: str | os.PathLike | None, name: object, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """Load a model and list the tensors that do not fit, for callers that allow some of them.

    Args:
        model_class (`type`): as in [`load_pretrained`].
        path (`str`, `os.PathLike` or `None`): as in [`load_pretrained`].
        name (`object`): what messages call the checkpoint.
        options: further arguments of `from_pretrained`.

    Returns:
        `tuple`: the model, and the dictionary that [`check_loaded`] takes.

    Raises:
        ValueError: if a weight file is damaged, or a weight cannot be put together from the checkpoint's tensors.
        OSError: if there is no such checkpoint, or it lacks a file.
    """
    source = {"pretrained_model_name_or_path": None} if path is None else gguf_files.locate(path)
    if "gguf_file" in source:
        # without this the weights may stay quantized, which is slow on a CPU and cannot be saved
        source["quantization_config"] = GgufConfig(gguf_file=source["gguf_file"], dequantize=True)
        # stored types are those of quantized blocks; "auto" would find none
        options = {key: value for key, value in options.items() if (key, value) != ("dtype", "auto")}
    # the reader of GGUF files checks them itself
    elif path is not None and Path(path).is_dir():
        check_weight_files(path)
        # transformers looks into it before it knows what it has, and the error would not name it
        read_generation_config(Path(path))
        if not is_adapter(path):
            _check_size(model_class, Path(path))
    report: list[str] = []
    try:
        with captured_load_report(report), fault_named(name):
            # report tensors of another shape with the others; transformers' own error would not name them
            options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
            model, faults = model_class.from_pretrained(**source, **options)
    except ValueError as error:
        unconverted = unconverted_tensors(report)
        if not unconverted:
            raise
        raise ValueError(_describe(name, "a model of its configuration", {"unusable": unconverted})) from error
    if path is not None:
        method = _stored_quantization(path, options)
        if method is not None and not getattr(model, "is_quantized", False):
            config: Any = model.config.get_text_config(decoder=True)
            # written with the configuration, and carried along by whatever is made of the model
            getattr(config, "decoder_config", config).unpacked_from = method
    return model, faults


def read_generation_config(folder: Path) -> GenerationConfig | None:
    """Read the generation configuration of a folder, `None` if it has none.

    Raises:
        ValueError: if the file is damaged, or a setting has a value that none may have; the message names the file.
    """
    file = folder / GENERATION_FILE
    if not file.is_file():
        return None
    read_json(file)
    with fault_named(file):
        return GenerationConfig.from_pretrained(folder)


def _check_size(model_class: Any, folder: Path) -> None:
    """Refuse a configuration of far more weights than the folder holds, before memory is taken for them.

    transformers makes every weight that a checkpoint lacks.
    """
    config = read_config(folder)
    num_stored = count_stored_parameters(folder)
    if num_stored is None or getattr(config, "quantization_config", None) is not None:
        return
    expected = getattr(model_class, "config_class", None)
    if expected is not None and not isinstance(config, expected):
        # the language model of a composite checkpoint
        config = config.get_text_config(decoder=True)
    with fault_named(folder / CONFIG_FILE), torch.device("meta"):
        # an Auto class or a class of models
        make = model_class.from_config if hasattr(model_class, "from_config") else model_class
        num_parameters = make(config).num_parameters()
    if num_parameters > 2 * num_stored:
        raise ValueError(
            f"{folder / CONFIG_FILE} describes a model of {num_parameters:,} weights; the folder holds {num_stored:,}"
        )


def _stored_quantization(path: str | os.PathLike, options: dict[str, Any]) -> str | None:
    """Say how the weights of a checkpoint are quantized, `None` where they are not."""
    if gguf_files.is_gguf(path):
        types = gguf_files.quantized_types(path)
        return f"GGUF {', '.join(types)}" if types else None
    try:
        stored = PreTrainedConfig.get_config_dict(path, **options)[0]
    except OSError:
        # an adapter's folder, which transformers opens with its base
        return None
    return (stored.get("quantization_config") or {}).get("quant_method")


def check_loaded(faults: dict[str, Any], name: object, model_name: str) -> None:
    """Refuse what `from_pretrained(..., output_loading_info=True)` reports as not fitting.

    Raises:
        ValueError: if tensors are missing, unexpected or of another shape.
    """
    misshapen = [
        f"{tensor} {tuple(shape)} instead of {tuple(expected)}"
        for tensor, shape, expected in faults["mismatched_keys"]
    ]
    problems = {"missing": faults["missing_keys"], "unexpected": faults["unexpected_keys"], "misshapen": misshapen}
    if any(problems.values()):
        raise ValueError(_describe(name, model_name, problems))


def check_finite(model: torch.nn.Module, name: object) -> None:
    """Refuse weights that are not numbers or are infinite: whatever is measured with them means nothing.

    Args:
        model (`torch.nn.Module`): the model; weights that are offloaded or quantized are not looked at.
        name (`object`): what the message calls it.

    Raises:
        ValueError: if there are such weights; the message names the first tensor.
    """
    for tensor, weight in model.named_parameters():
        is_plain = type(weight) is torch.nn.Parameter and weight.is_floating_point() and not weight.is_meta
        if is_plain and not torch.isfinite(weight).all():
            raise ValueError(f"the weights of {name} are not finite numbers: {tensor} holds NaN or infinity")


def check_model_folder(folder: str | os.PathLike) -> None:
    """Refuse a folder whose weights do not fill the model that its configuration names. Nothing is kept in memory.

    Of quantized weights, and of a class that is neither transformers' nor ours, only the files' headers are read: only
    loading can tell which tensors such a model has.

    Args:
        folder (`str` or `os.PathLike`): a model folder with safetensors files.

    Raises:
        ValueError: as in [`load_pretrained`].
        OSError: if a shard is missing.
    """
    check_weight_files(folder)
    config = read_config(folder)
    model_class = architecture_of(config)
    if model_class is not None and getattr(config, "quantization_config", None) is None:
        load_pretrained(model_class, folder, device_map="meta")


def architecture_of(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """Return the class that wrote a checkpoint, where it is transformers' or ours."""
    name = (config.architectures or [""])[0]
    return getattr(models, name, None) or getattr(transformers, name, None)


def check_resumable(model: Any, folder: str | os.PathLike) -> None:
    """Refuse a training checkpoint that does not fill `model` exactly, before training resumes from it.

    transformers' `Trainer` only warns of tensors that do not fit. A checkpoint without safetensors files, as FSDP
    writes it, is left to the trainer.

    Args:
        model (`PreTrainedModel` or `PeftModel`): the model that is trained; a `PeftModel` stores its adapter only.
        folder (`str` or `os.PathLike`): the checkpoint.

    Raises:
        ValueError: if tensors are missing, unexpected or of another shape, or a file is damaged.
        OSError: if a shard is missing.
    """
    check_weight_files(folder)
    has_adapter = hasattr(model, "peft_config")
    file_name = ADAPTER_FILE if has_adapter else WEIGHT_FILES[0]
    file, index = Path(folder) / file_name, Path(folder) / f"{file_name}.index.json"
    files = [file] if file.is_file() else shard_files(index) if index.is_file() else []
    if files:
        stored = {name: shape for file in files for name, shape in tensor_shapes(file).items()}
        check_shapes(get_peft_model_state_dict(model) if has_adapter else model, stored, folder)


def check_shapes(
    model: PreTrainedModel | Mapping[str, torch.Tensor], stored: Mapping[str, tuple[int, ...]], name: object
) -> None:
    """Refuse tensors that do not fill `model` exactly, by their names and shapes.

    Args:
        model (`PreTrainedModel` or `Mapping`): the model, with or without memory, or its tensors by name.
        stored (`Mapping[str, tuple[int, ...]]`): the shape of every stored tensor, under the model's names.
        name (`object`): what messages call the checkpoint.

    Raises:
        ValueError: if tensors are missing, unexpected or of another shape.
    """
    tensors = model.state_dict() if isinstance(model, PreTrainedModel) else model
    tied = set(model.all_tied_weights_keys) if isinstance(model, PreTrainedModel) else set()
    expected = {tensor: tuple(value.shape) for tensor, value in tensors.items()}
    faults = {
        "missing_keys": expected.keys() - stored.keys() - tied,
        "unexpected_keys": stored.keys() - expected.keys(),
        "mismatched_keys": [
            (tensor, shape, expected[tensor])
            for tensor, shape in stored.items()
            if expected.get(tensor, shape) != shape
        ],
    }
    check_loaded(faults, name, type(model).__name__ if isinstance(model, PreTrainedModel) else "the adapter")


def _describe(name: object, model_name: str, problems: dict[str, Iterable[str]]) -> str:
    parts = []
    for problem, tensors in problems.items():
        named = sorted(tensors, key=_natural_order)
        if named:
            more = f" and {len(named) - NUM_NAMED} more" if len(named) > NUM_NAMED else ""
            parts.append(f"{len(named)} {problem} ({', '.join(named[:NUM_NAMED])}{more})")
    return f"the tensors of {name} are not those of {model_name}: {'; '.join(parts)}"


def _natural_order(tensor: str) -> list[tuple[int, str]]:
    """Key that sorts layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in tensor.split(".")]
