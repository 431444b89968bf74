"""Loads a recurrent model, or loops a plain checkpoint, for the commands that run a model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import register
from ..gguf_files import is_gguf
from ..layer_ranges import LayerPlan, parse_layer_range, plan_layers


if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from ..models import LoopedForCausalLM


@dataclass
class LayerRange:
    """Which layers of a plain checkpoint to loop, as the command line gave it.

    Args:
        prelude (`int`, *optional*): layers before the loop.
        coda (`int`, *optional*): layers after the loop.
        core (`str`, *optional*): the looped layers as `FIRST-LAST`; layers between it and a given prelude or coda are
            left out.

    Raises:
        ValueError: if `core` cannot be read.
    """

    prelude: int | None = None
    coda: int | None = None
    core: str | None = None

    def __post_init__(self) -> None:
        if self.core is not None:
            parse_layer_range(self.core, "--core")

    @property
    def is_given(self) -> bool:
        """Whether any of the options was used."""
        return not (self.prelude is None and self.coda is None and self.core is None)

    def plan(self, num_layers: int) -> LayerPlan:
        """Return the layers before, in and after the loop of a model of `num_layers` layers.

        Raises:
            ValueError: if the range does not fit the model.
        """
        return plan_layers(num_layers, self.prelude, self.core, self.coda)


def load_model(name: str, layers: LayerRange | None = None) -> "LoopedForCausalLM":
    """Load a causal language model that runs in loops.

    Args:
        name (`str`): a folder, a repository on the Hub, or a `.gguf` file (unpacked to full weights).
        layers (`LayerRange`, *optional*): for a checkpoint that is not looped: the layers to loop, by default all. It
            is then looped without training, so one loop is the original model.

    Returns:
        `LoopedForCausalLM`: the model, in evaluation mode.

    Raises:
        ValueError: if a weight file is truncated, its tensors are not those of the model, or `layers` is given for a
            model that is looped already.
        OSError: if there is no such model.
    """
    model: Any = load_recurrent_model(name, layers)
    if not hasattr(model.config, "num_loops"):
        raise ValueError(f"{name} is a {model.config.model_type} model, which does not run in loops")
    return model


def load_recurrent_model(name: str, layers: LayerRange | None = None) -> "PreTrainedModel":
    """Load a causal language model of any family; a plain checkpoint is looped, as in [`load_model`].

    Args:
        name (`str`): as in [`load_model`].
        layers (`LayerRange`, *optional*): as in [`load_model`].

    Returns:
        `PreTrainedModel`: the model, in evaluation mode.

    Raises:
        ValueError: if a weight file is truncated, its tensors are not those of the model, or `layers` is given for a
            model that is recurrent already.
        OSError: if there is no such model.
    """
    from transformers import AutoModelForCausalLM

    from ..loading import check_finite, load_pretrained
    from ..models import family_of
    from ..retrofitting import retrofit

    layers = layers or LayerRange()
    config = load_config(name)
    family = family_of(config)
    if family is not None:
        check_language_model(config, name)
        if layers.is_given:
            raise ValueError(f"{name} is a {family.name} model already; its layer range cannot be chosen")
        model = load_pretrained(AutoModelForCausalLM, name)
        check_finite(model, name)
        return model
    # refuse a range that does not fit before the weights are read
    layers.plan(config.num_hidden_layers)
    base = load_plain_model(name)
    given: dict[str, Any] = {
        "num_prelude_layers": layers.prelude,
        "core_layers": layers.core,
        "num_coda_layers": layers.coda,
    }
    return retrofit(base, num_loops=1, **given).eval()


def load_puzzle_model(name: str) -> "PreTrainedModel":
    """Load a puzzle model.

    Args:
        name (`str`): a folder or a repository on the Hub.

    Raises:
        ValueError: if a weight file is truncated, or its tensors are not those of the model.
        OSError: if there is no such model.
    """
    from transformers import AutoModelForMaskedLM

    from ..loading import load_pretrained

    register()
    return load_pretrained(AutoModelForMaskedLM, name)


def check_language_model(config: "PreTrainedConfig", name: str) -> None:
    """Refuse a model of a family that solves puzzles.

    Raises:
        ValueError: if it is one.
    """
    from ..models import family_of

    family = family_of(config)
    if family is not None and family.causal is None:
        raise ValueError(f"{name} is a puzzle model, which fills boards and continues no text")


def load_config(name: str) -> "PreTrainedConfig":
    """Read the configuration of a checkpoint, and check that its weight files are complete.

    Of a checkpoint with other parts than text, such as images, it is that of the text part.

    Args:
        name (`str`): as in [`load_model`].

    Raises:
        ValueError: if a weight file is truncated, or the checkpoint has no text part that runs by itself.
        OSError: if there is no such model, or a shard of it is missing.
    """
    from ..text_parts import decoder_config
    from ..weight_files import check_weight_files

    register()
    try:
        config = decoder_config(name)
    except ValueError as error:
        if _is_published(name):
            advice = "make it one of hf_loop's with hf-loop convert"
            raise ValueError(f"{name} is a published looped checkpoint: {advice}") from error
        raise
    if not is_gguf(name):
        check_weight_files(name)
    return config


def _is_published(name: str) -> bool:
    """Whether a checkpoint is one that hf-loop convert takes."""
    from ..retrofitting.checkpoint import read_config
    from ..retrofitting.converters import CONVERTERS

    try:
        source = read_config(name)
    except (OSError, ValueError):
        return False
    return any(converter.recognizes(source) for converter in CONVERTERS)


def load_plain_model(name: str, dtype: str = "auto") -> "PreTrainedModel":
    """Load a causal language model without changing it; of a checkpoint with images or sound, load the text part.

    Args:
        name (`str`): as in [`load_model`], of a checkpoint whose configuration was read by [`load_config`].
        dtype (`str`, *optional*, defaults to `"auto"`): the type of the weights, by default as they are stored; a
            `.gguf` file is then unpacked to float32.

    Raises:
        ValueError: if the checkpoint's tensors are not those of the model, or not finite numbers.
    """
    from ..loading import check_finite
    from ..text_parts import load_decoder

    model = load_decoder(name, dtype=dtype)
    check_finite(model, name)
    return model


def default_device() -> "torch.device":
    """Return the accelerator that torch finds, or the CPU."""
    import torch

    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a checkpoint.

    Args:
        name (`str`): as in [`load_model`].

    Raises:
        ValueError: if there is none, or its files are damaged.
        OSError: if there is no such model.
    """
    from .. import tokenizing

    # the tokenizer's class is found through the model's configuration
    register()
    return tokenizing.load_tokenizer(name)
