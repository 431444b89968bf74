# Copyright 2026 The hf_loop authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The recurrent backbones of models with a time schedule, set here so that code on the Hub finds them too."""

from .configuration_hierarchical import HierarchicalConfig
from .configuration_looped import LoopedConfig
from .configuration_recurrent import TimeConfig


TimeConfig.backbone_config_classes = {
    config_class.model_type: config_class for config_class in (LoopedConfig, HierarchicalConfig)
}

__all__ = ["TimeConfig"]
