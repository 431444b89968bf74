# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Which recurrent models a model over time may run; here, so that it finds them where hf_loop is not installed."""

from .configuration_hierarchical import HierarchicalConfig
from .configuration_looped import LoopedConfig
from .configuration_recurrent import TimeConfig


TimeConfig.backbone_config_classes = {
    config_class.model_type: config_class for config_class in (LoopedConfig, HierarchicalConfig)
}

__all__ = ["TimeConfig"]
