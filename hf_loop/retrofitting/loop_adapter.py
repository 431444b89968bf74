"""Per-loop LoRA by itself: added to a looped model, saved beside an ordinary PEFT adapter, and loaded again.

PEFT saves what it added and nothing else, so a folder with its `adapter_model.safetensors` gets two more files here:
`loop_lora.safetensors` and `loop_lora_config.json`.
"""

import copy
import json
import os
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import nn

from ..files import atomic_path, read_safetensors, write_text
from ..models import LoopedConfig, LoopedModel, LoopedPreTrainedModel
from ..models.checks import check_positive_int
from ..models.loop_lora import LoopLora
from ..models.offloading import check_weights_are_here


WEIGHTS_FILE = "loop_lora.safetensors"
CONFIG_FILE = "loop_lora_config.json"
FORMAT_VERSION = "1"
FIELDS = (
    "loop_lora_rank",
    "loop_lora_num_loops",
    "loop_lora_beyond",
    "loop_lora_target_modules",
    "loop_lora_vectors",
)
# an adapter belongs to these layers of the backbone
PLACES = ("num_prelude_layers", "num_core_layers")


def add_loop_lora(
    model: nn.Module,
    *,
    rank: int,
    num_loops: int | None = None,
    beyond: Literal["last", "cyclic", "none"] = "last",
    target_modules: list[str] | None = None,
    vectors: bool = False,
) -> None:
    """Give a looped model per-loop LoRA that changes nothing yet, in place. Nothing is frozen.

    Args:
        model (`nn.Module`): a looped model, with or without a head, with or without PEFT around it.
        rank (`int`): rank of every update.
        num_loops (`int`, *optional*): loops with an update of their own, by default the model's `num_loops`.
        beyond (`str`): which update later loops use: `"last"`, `"cyclic"` or `"none"`.
        target_modules (`list[str]`, *optional*): names, or their ends, of the linear maps that get an update; all of
            the core's by default.
        vectors (`bool`): whether gains of norms and biases differ per loop too.

    Raises:
        ValueError: the model is not looped or has per-loop LoRA already, or an argument is out of range.
    """
    looped = _looped_model(model)
    check_weights_are_here(looped, "model")
    if looped.loop_lora is not None:
        raise ValueError(f"`model` has per-loop LoRA already, of `loop_lora_rank` {looped.config.loop_lora_rank}")
    fields = {
        "loop_lora_rank": check_positive_int("rank", rank),
        "loop_lora_num_loops": looped.config.num_loops if num_loops is None else num_loops,
        "loop_lora_beyond": beyond,
        "loop_lora_target_modules": target_modules,
        "loop_lora_vectors": vectors,
    }
    _install(model, looped, fields, _make_loop_lora(looped.config, fields))


def save_loop_adapter(model: nn.Module, folder: str | os.PathLike) -> None:
    """Write the per-loop LoRA of a looped model into `folder`, beside whatever else is there.

    Args:
        model (`nn.Module`): as in [`add_loop_lora`].
        folder (`str` or `os.PathLike`): made if it does not exist. Each file is written whole or not at all.

    Raises:
        ValueError: the model is not looped, or has no per-loop LoRA.
    """
    looped = _looped_model(model)
    if looped.loop_lora is None:
        raise ValueError("`model` has no per-loop LoRA to save")
    check_weights_are_here(looped.loop_lora, "model")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {name: getattr(looped.config, name) for name in (*FIELDS, *PLACES)}
    config["base_model_name_or_path"] = looped.config.name_or_path or None
    tensors = {name: tensor.contiguous().cpu() for name, tensor in looped.loop_lora.state_dict().items()}
    metadata = {"format": "pt", "format_version": FORMAT_VERSION}
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        save_file(tensors, temporary, metadata)
    write_text(folder / CONFIG_FILE, json.dumps({"format_version": FORMAT_VERSION, **config}, indent=2) + "\n")


def load_loop_adapter(model: nn.Module, folder: str | os.PathLike) -> None:
    """Put per-loop LoRA from `folder` on a looped model, in place; nothing is changed if it does not fit.

    Args:
        model (`nn.Module`): as in [`add_loop_lora`]. Per-loop LoRA of the same form that it has is overwritten.
        folder (`str` or `os.PathLike`): where [`save_loop_adapter`] wrote.

    Raises:
        ValueError: the files are missing, damaged or of a later format; or the adapter is for another number of loops,
            for other layers or of another form than the model's. Names the field or tensor and both values.
    """
    folder = Path(folder)
    looped = _looped_model(model)
    check_weights_are_here(looped, "model")
    config = _read_config(folder / CONFIG_FILE)
    _check_fit(looped, config, folder)
    fields = {name: config[name] for name in FIELDS}
    described = _make_loop_lora(looped.config, fields)
    tensors = _read_tensors(folder / WEIGHTS_FILE)
    _check_tensors(tensors, described, folder)
    _install(model, looped, fields, described if looped.loop_lora is None else looped.loop_lora)
    with torch.no_grad():
        for name, parameter in looped.loop_lora.named_parameters():
            parameter.copy_(tensors[name])


def _looped_model(model: nn.Module) -> LoopedModel:
    looped = [module for module in model.modules() if isinstance(module, LoopedModel)]
    if len(looped) != 1:
        raise ValueError(f"`model` must be a looped model, got {type(model).__name__}")
    return looped[0]


def _make_loop_lora(config: LoopedConfig, fields: dict[str, Any]) -> LoopLora:
    """The module that `fields` describe, on no device."""
    config = copy.copy(config)
    for name, value in fields.items():
        setattr(config, name, value)
    # from the configuration: the layers themselves may hold adapters or quantized maps by now
    with torch.device("meta"):
        loop_lora: LoopLora = LoopedModel(config).loop_lora
    return loop_lora


def _install(model: nn.Module, looped: LoopedModel, fields: dict[str, Any], loop_lora: LoopLora) -> None:
    if looped.loop_lora is None:
        device = next(looped.core_layers()[0].parameters()).device
        loop_lora.to_empty(device=device).to(looped.dtype)
        for layer in loop_lora:
            looped._init_weights(layer)
        looped.loop_lora = loop_lora.train(looped.training)
    loop_lora.beyond = fields["loop_lora_beyond"]
    for module in model.modules():
        if isinstance(module, LoopedPreTrainedModel):
            for name, value in fields.items():
                setattr(module.config, name, value)


def _check_fit(looped: LoopedModel, config: dict[str, Any], folder: Path) -> None:
    expected = {name: getattr(looped.config, name) for name in PLACES}
    if looped.loop_lora is None:
        expected["loop_lora_num_loops"] = looped.config.num_loops
    else:
        expected |= {name: getattr(looped.config, name) for name in FIELDS if name != "loop_lora_beyond"}
    for name, value in expected.items():
        if config[name] != value:
            raise ValueError(f"the adapter in {folder} has {name} {config[name]!r}, but the model needs {value!r}")


def _check_tensors(tensors: dict[str, torch.Tensor], loop_lora: LoopLora, folder: Path) -> None:
    expected = loop_lora.state_dict()
    for problem, names in (
        ("lacks", expected.keys() - tensors.keys()),
        ("has unknown", tensors.keys() - expected.keys()),
    ):
        if names:
            raise ValueError(f"{folder / WEIGHTS_FILE} {problem} tensors: {', '.join(sorted(names))}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{list(tensor.shape)}, but the model needs {list(expected[name].shape)}"
            raise ValueError(f"{folder / WEIGHTS_FILE} has {name} of shape {shapes}")


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"{file.parent} holds no per-loop LoRA: there is no {file.name}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} is not a JSON object")
    _check_version(file, config.get("format_version"))
    for name in (*FIELDS, *PLACES):
        if name not in config:
            raise ValueError(f"{file} has no `{name}`")
    return config


def _read_tensors(file: Path) -> dict[str, torch.Tensor]:
    if not file.is_file():
        raise ValueError(f"{file.parent} holds no per-loop LoRA: there is no {file.name}")
    tensors, metadata = read_safetensors(file)
    _check_version(file, metadata.get("format_version"))
    return tensors


def _check_version(file: Path, version: object) -> None:
    if version != FORMAT_VERSION:
        raise ValueError(f"{file} has format_version {version!r}; this version of hf_loop reads {FORMAT_VERSION!r}")
