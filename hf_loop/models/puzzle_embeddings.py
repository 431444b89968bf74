# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""A table of puzzle embeddings that grows: a trained model takes new puzzles, whose embeddings start at zero."""

import copy
from typing import Any

import torch
from torch import nn

from .checks import check_positive_int
from .configuration_hierarchical import HierarchicalPuzzleConfig
from .modeling_hierarchical import HierarchicalPreTrainedModel


# arguments of `from_pretrained` that say where the configuration is
_LOCATION = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
class HierarchicalPuzzlePreTrainedModel(HierarchicalPreTrainedModel):
    """Base class of puzzle models: `from_pretrained(folder, num_puzzles=n)` adds rows to the table that was saved."""

    config_class = HierarchicalPuzzleConfig
    no_prompt_learning = "its positions are the cells of a puzzle"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """Load as transformers does; a `num_puzzles` above that of the checkpoint adds puzzle embeddings of zero.

        Raises:
            ValueError: if `num_puzzles` is below that of the checkpoint.
        """
        load: Any = super().from_pretrained
        wanted = kwargs.get("num_puzzles") if config is None else getattr(config, "num_puzzles", None)
        stored = None
        if wanted is not None and pretrained_model_name_or_path is not None:
            location = {name: kwargs[name] for name in _LOCATION if name in kwargs}
            stored = HierarchicalPuzzleConfig.get_config_dict(pretrained_model_name_or_path, **location)[0].get(
                "num_puzzles"
            )
        # CODEPATH: a model of a single task has no embedding of the task
        if not stored or wanted == stored:
            return load(pretrained_model_name_or_path, *args, config=config, **kwargs)
        if wanted < stored:
            raise ValueError(f"`num_puzzles` must be at least {stored}, as many as the checkpoint has, got {wanted}")
        if config is None:
            kwargs["num_puzzles"] = stored
        else:
            config = copy.deepcopy(config)
            config.num_puzzles = stored
        loaded = load(pretrained_model_name_or_path, *args, config=config, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).grow_puzzle_embeddings(wanted)
        return loaded

    @torch.no_grad()
    def grow_puzzle_embeddings(self, num_puzzles: int) -> None:
        """Add puzzle embeddings, which start at zero.

        Args:
            num_puzzles (`int`): number of embeddings after that.

        Raises:
            ValueError: if the model has none, or more than that.
        """
        model: Any = self
        stored = model.config.num_puzzles
        if not stored or check_positive_int("num_puzzles", num_puzzles) < stored:
            raise ValueError(f"`num_puzzles` must be at least {stored} and the model have some, got {num_puzzles}")
        weight = model.base_model.puzzle_embeddings.weight
        table = nn.Embedding(num_puzzles, weight.shape[1], device=weight.device, dtype=weight.dtype)
        table.weight.zero_()
        table.weight[:stored] = weight
        table.weight.requires_grad_(weight.requires_grad)
        model.base_model.puzzle_embeddings = table.train(model.training)
        model.config.num_puzzles = num_puzzles


__all__ = ["HierarchicalPuzzlePreTrainedModel"]
