"""Models of this library in the layouts of published looped models, which other engines run."""

import os
from pathlib import Path
from types import ModuleType

from transformers import PreTrainedModel

from ..output_folders import whole_folder
from .converters import CONVERTERS


# the converters that also write, by the name of the layout
LAYOUTS: dict[str, ModuleType] = {
    converter.__name__.rpartition(".")[2]: converter for converter in CONVERTERS if hasattr(converter, "save")
}


def export(model: PreTrainedModel, path: str | os.PathLike, layout: str, *, num_loops: int | None = None) -> None:
    """Write a model in the layout of a published looped model: the shared layers once, and the number of loops.

    What `convert` reads it writes, for engines that loop by themselves: `"nanbeige"` for llama.cpp, mlx-lm, SGLang and
    vLLM, `"dory"`, `"inkling2_loop"` and `"hrm_text"` for transformers and what runs its classes. Every engine
    computes the logits of `model` at `num_loops`. For a model that has no such shape, [`unroll`] writes the loops out.

    Args:
        model (`PreTrainedModel`): a hierarchical model for `"hrm_text"`, a looped one for the others.
        path (`str` or `os.PathLike`): the folder to write. The tokenizer is not: save it into the same folder.
        layout (`str`): `"nanbeige"`, `"dory"`, `"inkling2_loop"` or `"hrm_text"`.
        num_loops (`int`, *optional*): the number of loops, which the engine cannot change; `model.config.num_loops` if
            not given.

    Raises:
        ValueError: there is no such layout, or it cannot say what the model does; the message names the field. Nothing
            is written then.
    """
    converter = find_layout(layout)
    with whole_folder(Path(path)) as folder:
        converter.save(model, folder, num_loops)


def find_layout(layout: str) -> ModuleType:
    """The converter that writes a layout.

    Raises:
        ValueError: there is none.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"`layout` must be one of {', '.join(map(repr, LAYOUTS))}, got {layout!r}")
    return LAYOUTS[layout]
