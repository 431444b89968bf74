# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The base class of all models: what they support, and how they are saved and pushed."""

import inspect
import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from .adapters import complete_adapter_config, refuse_adapter
from .backbone import adopt_backbone
from .configuration_recurrent import RecurrentConfig
from .cost import floating_point_ops
from .files import use_umask_mode
from .keyword_checks import known_keywords
from .offloading import check_weights_are_here, is_saved_offloaded
from .scaled_head import ScaledHead
from .transformers_seams import (
    BeforeUpload,
    as_before_on_error,
    auto_class_of,
    let_trainer_ask_model,
    recordable,
    saves_adapter_only,
)


logger = logging.get_logger(__name__)


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
class RecurrentPreTrainedModel(BeforeUpload, PreTrainedModel):  # trf-ignore: TRF013 subclasses call `post_init`
    """A model that runs a backbone on a schedule, with or without a head."""

    config_class = RecurrentConfig
    config: Any
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["cache", "past_key_values"]
    # the backbone itself refuses what it does not support, when it is made
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = recordable("hidden_states", "attentions", "router_logits")
    # tags of the family on the Hub, besides the library's and the model type
    family_tags: tuple[str, ...] = ()
    # why PEFT cannot add a prompt or a prefix, `None` if it can
    no_prompt_learning: str | None = None
    # where this model was last saved, if it was not loaded from anywhere
    saved_in: str | None = None
    # what to tell a caller who gives a number of loops to a model without
    no_loops = "it has no loops"
    # why engines with their own attention cannot run the model, `None` if they can
    no_engine: str | None = None
    # keywords that a family cannot take, with the reasons that `check_keywords` gives
    refused_keywords: dict[str, str] = {}
    # keywords that `check_keywords` accepts
    known_keywords: frozenset[str] = frozenset()
    # set by the installed package; code that came with a checkpoint pushes transformers' own card
    write_model_card: Any = None

    def __init__(self, config: Any, *args, **kwargs):
        expected: Any = self.config_class
        # not by `isinstance`: loading a local folder twice makes two classes
        if config.model_type != expected.model_type:
            raise ValueError(
                f"`config` of a {type(self).__name__} must be a {expected.__name__}, got a {type(config).__name__}"
            )
        super().__init__(config, *args, **kwargs)

    @classmethod
    def is_custom_code(cls) -> bool:
        """Return whether weights are initialized without `transformers.initialization`, which keeps loaded weights.

        transformers assumes so of all code that is not its own, and then skips modules without tensors: the buffers of
        a backbone that fills them from outside its layers would stay uninitialized.
        """
        return False

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, ScaledHead):
            module.reset_scale()

    def post_init(self):
        super().post_init()
        backbone: Any = getattr(self.base_model, "backbone", None)
        if backbone is not None:
            self.known_keywords = known_keywords(backbone, self.refused_keywords)
            # the class names what any backbone may record, the instance what this one does
            recorded, recorders = backbone._can_record_outputs or {}, self._can_record_outputs or {}
            self._can_record_outputs = {name: recorders[name] for name in recorders if name in recorded}
        self.add_model_tags(["hf_loop", *self.family_tags, self.config.model_type])

    @property
    def argument_names(self) -> frozenset[str]:
        """Names of the arguments of `forward`, without the numbers of loops if the model has no loops."""
        names = inspect.signature(self.forward).parameters.keys()
        return frozenset(names if self.config.has_loops else names - {"num_loops", "num_backprop_loops"})

    @property
    def about_loops(self) -> str:
        """Hint for a caller who misspells `num_loops`, or gives it to a model without loops."""
        return "; did you mean `num_loops`?" if self.config.has_loops else f": {self.no_loops}"

    def adopt(self, backbone: PreTrainedModel) -> None:
        """Use the backbone's attention function, and its support for compilation and attention back-ends."""
        adopt_backbone(self, backbone)

    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True, *args, **kwargs):
        """Save as transformers does. Adapters that are made later name `save_directory` as their base model.

        Raises:
            ValueError: if the model is inside a `PeftModel`, which saves the adapter, or its weights are offloaded in
                a way that transformers cannot gather.
        """
        is_adapter = saves_adapter_only(self)
        if not is_adapter:
            refuse_adapter(self, "saving the whole model (`PeftModel.save_pretrained` writes the adapter)")
            if kwargs.get("state_dict") is None and not is_saved_offloaded(self):
                check_weights_are_here(self, "model")
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process:
            use_umask_mode(save_directory)
        if is_adapter and is_main_process:
            peft_config: Any = self.peft_config[self.active_adapters()[0]]
            auto_class = auto_class_of(self) if peft_config.task_type is None else None
            complete_adapter_config(save_directory, self.config, auto_class)
        elif not is_adapter and (not self.name_or_path or self.name_or_path == self.saved_in):
            self.name_or_path = self.saved_in = str(save_directory)

    def set_attn_implementation(self, *args, **kwargs):
        """Set the attention function of all parts as transformers does, or of none if one of them refuses it.

        Raises:
            ValueError: if the backbone does not support it.
        """
        with as_before_on_error(self):
            super().set_attn_implementation(*args, **kwargs)

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """Count the floating-point operations of a training step: six times its tokens times the parameters, each as
        often as it is called, see `cost.py`. `Trainer` sums them up as `total_flos`.

        Args:
            inputs (`Mapping`): the arguments of `forward`.
        """
        return floating_point_ops(self, inputs)

    def train(self, mode: bool = True):
        # the stock `Trainer` calls this before its first step
        let_trainer_ask_model()
        return super().train(mode)

    def before_upload(self, folder: str, repo_id: str) -> None:
        if self.name_or_path == str(folder):
            # the temporary folder of the upload
            self.name_or_path = self.saved_in = repo_id
        self.write_card(folder, repo_id)

    def write_card(self, folder: str, repo_id: str) -> None:
        """Write hf_loop's model card into a folder to push. If that fails, log it and keep the existing card."""
        if self.write_model_card is None:
            return
        try:
            self.write_model_card(folder, repo_id)
        except Exception as error:
            logger.warning(f"hf_loop's model card of {repo_id} is not written: {error}")


__all__ = ["RecurrentPreTrainedModel"]
