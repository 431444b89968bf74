"""Loading a looped model, or making one from a plain checkpoint, for the commands that run a model."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from .. import register
from .options import parse_layer_range


if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from ..models import LoopedForCausalLM


@dataclass
class LayerRange:
    """Which layers of a plain checkpoint to loop, as the command line gave it.

    Args:
        prelude (`int`, *optional*): Layers before the loop.
        coda (`int`, *optional*): Layers after the loop.
        core (`str`, *optional*): The looped layers as `FIRST-LAST`, instead of the other two.

    Raises:
        ValueError: If `core` is given together with `prelude` or `coda`, or cannot be read.
    """

    prelude: int | None = None
    coda: int | None = None
    core: str | None = None

    def __post_init__(self) -> None:
        if self.core is not None:
            if self.prelude is not None or self.coda is not None:
                raise ValueError("--core says where the loop starts and ends; leave out --prelude and --coda.")
            parse_layer_range(self.core)

    @property
    def is_given(self) -> bool:
        """Whether any of the options was used."""
        return not (self.prelude is None and self.coda is None and self.core is None)

    def prelude_and_coda(self, num_layers: int) -> tuple[int, int]:
        """The number of layers before and after the loop, in a model of `num_layers` layers.

        Raises:
            ValueError: If the range does not fit the model.
        """
        if self.core is None:
            return self.prelude or 0, self.coda or 0
        first, last = parse_layer_range(self.core)
        if last >= num_layers:
            raise ValueError(f"--core: {self.core} does not fit a model whose layers are 0 to {num_layers - 1}.")
        return first, num_layers - 1 - last


def load_model(name: str, layers: LayerRange | None = None) -> "LoopedForCausalLM":
    """Loads a causal language model that runs in loops.

    Args:
        name (`str`): A folder, a repository on the Hub, or a `.gguf` file (unpacked to full weights).
        layers (`LayerRange`, *optional*): For a checkpoint that is not looped: the layers to loop, by default all.
            It is then looped without training, so one loop is the original model.

    Returns:
        `LoopedForCausalLM`: The model, in evaluation mode.

    Raises:
        ValueError: If a weight file is truncated, or `layers` is given for a model that is looped already.
        OSError: If there is no such model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

    from ..evaluation.weights import check_weight_files
    from ..retrofitting import retrofit

    register()
    layers = layers or LayerRange()
    path = Path(name)
    if path.suffix == ".gguf":
        file_name = _gguf_name(path)
        model = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=file_name,
            # without this the weights stay quantized, which is slow on a CPU and cannot be saved
            quantization_config=GgufConfig(gguf_file=file_name, dequantize=True),
        )
    else:
        _check_folder(name)
        check_weight_files(path)
        config = AutoConfig.from_pretrained(name)
        if hasattr(config, "num_loops"):
            if layers.is_given:
                raise ValueError(f"{name} is a looped model already; its layer range cannot be chosen.")
            return AutoModelForCausalLM.from_pretrained(name).eval()
        # a range that does not fit is found before the weights are read
        layers.prelude_and_coda(config.get_text_config().num_hidden_layers)
        model = AutoModelForCausalLM.from_pretrained(name)
    prelude, coda = layers.prelude_and_coda(model.config.get_text_config().num_hidden_layers)
    return retrofit(model, num_prelude_layers=prelude, num_coda_layers=coda).eval()


def default_device() -> "torch.device":
    """The accelerator that torch finds, or the CPU."""
    import torch

    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """Loads the tokenizer that belongs to [`load_model`]'s `name`.

    Raises:
        ValueError: If there is none.
        OSError: If there is no such model.
    """
    from transformers import AutoTokenizer

    # the tokenizer's class is found through the model's configuration
    register()
    path = Path(name)
    if path.suffix == ".gguf":
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=_gguf_name(path))
    else:
        _check_folder(name)
        if path.is_dir() and not any(path.glob("tokenizer*")):
            raise ValueError(f"{name} holds no tokenizer.")
        tokenizer = AutoTokenizer.from_pretrained(name)
    if tokenizer is None:
        raise ValueError(f"transformers knows no tokenizer for {name}.")
    return tokenizer


def _gguf_name(path: Path) -> str:
    """The name of a GGUF file that exists and can be read."""
    if not path.is_file():
        raise OSError(f"There is no file {path}.")
    if find_spec("gguf") is None:
        raise ValueError(f"{path} cannot be read without the package gguf; install it with `pip install gguf`.")
    return path.name


def _check_folder(name: str) -> None:
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise OSError(f"The folder {name} has no config.json, so it is not a model folder.")
    # a repository's name is `name` or `owner/name`; anything else can only be meant as a folder
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise OSError(f"There is no folder {name}.")
