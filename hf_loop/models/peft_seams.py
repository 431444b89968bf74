# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""All uses of unstable parts of PEFT, as `transformers_seams.py` has those of transformers."""

import functools
import importlib.abc
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from .transformers_seams import auto_class_of


class AfterImport(importlib.abc.MetaPathFinder):
    """An import hook that calls `then` once `package` is imported, so that the package need not be imported here.

    Args:
        package (`str`): name of the package.
        then (`Callable`): function without arguments.
    """

    def __init__(self, package: str, then: Callable[[], None]):
        self.package = package
        self.then = then
        if package in sys.modules:
            then()
        else:
            sys.meta_path.insert(0, self)

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.package:
            return None
        finders = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
        specs = (finder.find_spec(fullname, path, target) for finder in finders)
        spec: Any = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                    self.then()

            spec.loader.exec_module = exec_module
        return spec


def adapt_peft(**hooks: Callable[..., Any]) -> None:
    """Make PEFT call `hooks` for recurrent models, now or when it is imported; `adapters.py` has the hooks.

    PEFT has no hook for models of other libraries, so four of its public methods are wrapped. Other models are not
    affected.
    """
    AfterImport("peft", lambda: _wrap_peft(hooks))


def _wrap_peft(hooks: dict[str, Callable[..., Any]]) -> None:
    peft: Any = sys.modules["peft"]
    tuner_class: Any = peft.tuners.tuners_utils.BaseTuner
    if getattr(tuner_class, "asks_hf_loop", False):
        # already wrapped, by the installed package or by code that came with another checkpoint
        return

    def is_recurrent(model):
        return hooks["is_recurrent"](getattr(model, "config", None))

    get_model_config = tuner_class.get_model_config
    inject_adapter = tuner_class.inject_adapter
    add_adapter, save_pretrained = peft.PeftModel.add_adapter, peft.PeftModel.save_pretrained

    @functools.wraps(get_model_config)
    def get_described_config(model):
        return hooks["describe"](model.config) if is_recurrent(model) else get_model_config(model)

    @functools.wraps(inject_adapter)
    def inject_at_its_depth(self, model, adapter_name, *args, **kwargs):
        if is_recurrent(model):
            hooks["restore_depth"](model, self.peft_config[adapter_name], len(self.peft_config) > 1)
        return inject_adapter(self, model, adapter_name, *args, **kwargs)

    @functools.wraps(add_adapter)
    def add_sized_adapter(self, adapter_name, peft_config, *args, **kwargs):
        if peft_config.is_prompt_learning and is_recurrent(self.base_model):
            hooks["restore_depth"](self.base_model, peft_config, len(self.peft_config) > 0)
            hooks["prepare_prompt_learning"](self.base_model, peft_config)
        return add_adapter(self, adapter_name, peft_config, *args, **kwargs)

    @functools.wraps(save_pretrained)
    def save_completed(self, save_directory, *args, **kwargs):
        save_pretrained(self, save_directory, *args, **kwargs)
        arguments = inspect.signature(save_pretrained).bind(self, save_directory, *args, **kwargs).arguments
        model = self.get_base_model()
        if is_recurrent(model) and arguments.get("is_main_process", True):
            for name in arguments.get("selected_adapters") or self.peft_config:
                folder = save_directory if name == "default" else os.path.join(save_directory, name)
                has_task = self.peft_config[name].task_type is not None
                hooks["complete_config"](folder, model.config, None if has_task else auto_class_of(model))

    tuner_class.asks_hf_loop = True
    tuner_class.get_model_config = staticmethod(get_described_config)
    tuner_class.inject_adapter = inject_at_its_depth
    peft.PeftModel.add_adapter = add_sized_adapter
    peft.PeftModel.save_pretrained = save_completed


def adapted_module(model: nn.Module) -> str | None:
    """Return the name of the first module of `model` that is a PEFT adapter, `None` if there is none."""
    # PEFT need not be imported here: a model with an adapter has imported it
    peft: Any = sys.modules.get("peft")
    if peft is None:
        return None
    tuners = peft.tuners.tuners_utils
    kinds = (
        peft.PeftModel,
        peft.PeftMixedModel,
        tuners.BaseTuner,
        tuners.BaseTunerLayer,
        peft.utils.AuxiliaryTrainingWrapper,
    )
    return next((name or type(part).__name__ for name, part in model.named_modules() if isinstance(part, kinds)), None)
