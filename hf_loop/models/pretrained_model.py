# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What the models of the families share before they compute: what they support, and how they are saved and pushed."""

import os
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging

from .adapters import complete_adapter_config, refuse_adapter
from .backbone import adopt_backbone
from .configuration_recurrent import RecurrentConfig
from .keyword_checks import known_keywords
from .offloading import check_weights_are_here, is_saved_offloaded
from .transformers_seams import BeforeUpload, auto_class_of, recordable, saves_adapter_only


logger = logging.get_logger(__name__)


# trf-ignore: TRF057 auto_docstring knows the classes inside transformers only and would drop this text
class RecurrentPreTrainedModel(BeforeUpload, PreTrainedModel):  # trf-ignore: TRF013 subclasses call `post_init`
    """A model that runs a backbone on a schedule, with or without a head."""

    config_class = RecurrentConfig
    config: Any
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["cache", "past_key_values"]
    # what a backbone does not support it refuses itself, when it is made
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = recordable("hidden_states", "attentions", "router_logits")
    # tags of the family on the Hub, besides the library's and the model type
    family_tags: tuple[str, ...] = ()
    # why a prompt or a prefix of PEFT cannot stand before the tokens, where it cannot
    no_prompt_learning: str | None = None
    # where this model was last written to, as long as it was not loaded from anywhere
    saved_in: str | None = None
    # why it has no number of loops, where it has none
    no_loops = "it has no loops"
    # what `check_keywords` says of keywords that a family cannot take
    refused_keywords: dict[str, str] = {}
    # what it lets through; of a model with a backbone
    known_keywords: frozenset[str] = frozenset()
    # set where hf_loop is installed; code that came with a checkpoint pushes transformers' own card
    write_model_card: Any = None

    def __init__(self, config: Any, *args, **kwargs):
        expected: Any = self.config_class
        # by model type: a local folder loads its classes twice
        if config.model_type != expected.model_type:
            raise ValueError(
                f"`config` of a {type(self).__name__} must be a {expected.__name__}, got a {type(config).__name__}"
            )
        super().__init__(config, *args, **kwargs)

    @classmethod
    def is_custom_code(cls) -> bool:
        """Whether weights are drawn past `transformers.initialization`, which leaves alone what was loaded: never.

        transformers takes it for granted of code that is not its own, and then skips modules without tensors: a
        backbone that fills its layers' buffers from outside would be loaded with whatever was in the memory.
        """
        return False

    def post_init(self):
        super().post_init()
        backbone: Any = getattr(self.base_model, "backbone", None)
        if backbone is not None:
            self.known_keywords = known_keywords(backbone, self.refused_keywords)
            # the class says what some backbone may record, and this is what ours does
            recorded, recorders = backbone._can_record_outputs or {}, self._can_record_outputs or {}
            self._can_record_outputs = {name: recorders[name] for name in recorders if name in recorded}
        self.add_model_tags(["hf_loop", *self.family_tags, self.config.model_type])

    @property
    def about_loops(self) -> str:
        """What a caller is told who gives a number of loops under another name, or where there are none."""
        return "; did you mean `num_loops`?" if self.config.has_loops else f": {self.no_loops}"

    def adopt(self, backbone: PreTrainedModel) -> None:
        """Compile, and choose attention functions, wherever the backbone can."""
        adopt_backbone(self, backbone)

    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True, *args, **kwargs):
        """As transformers', and an adapter that is made later names `save_directory` as its base.

        Raises:
            ValueError: if the model is inside a `PeftModel`, which writes the adapter: weights saved from here would
                not load. Or they are offloaded, in a way that leaves nothing here to be written.
        """
        is_adapter = saves_adapter_only(self)
        if not is_adapter:
            refuse_adapter(self, "saving the whole model (`PeftModel.save_pretrained` writes the adapter)")
            if kwargs.get("state_dict") is None and not is_saved_offloaded(self):
                check_weights_are_here(self, "model")
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_adapter and is_main_process:
            peft_config: Any = self.peft_config[self.active_adapters()[0]]
            auto_class = auto_class_of(self) if peft_config.task_type is None else None
            complete_adapter_config(save_directory, self.config, auto_class)
        elif not is_adapter and (not self.name_or_path or self.name_or_path == self.saved_in):
            self.name_or_path = self.saved_in = str(save_directory)

    def before_upload(self, folder: str, repo_id: str) -> None:
        if self.name_or_path == str(folder):
            # a folder for the time of the upload
            self.name_or_path = self.saved_in = repo_id
        self.write_card(folder, repo_id)

    def write_card(self, folder: str, repo_id: str) -> None:
        """Write hf_loop's model card into a folder that is pushed. A card that cannot be written is not worth a push:
        what is wrong is logged, and the card that is there stays."""
        if self.write_model_card is None:
            return
        try:
            self.write_model_card(folder, repo_id)
        except Exception as error:
            logger.warning(f"hf_loop's model card of {repo_id} is not written: {error}")


__all__ = ["RecurrentPreTrainedModel"]
