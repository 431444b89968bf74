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
"""Generation with a sleep model: how many passes a window that fills is slept over."""

from typing import Any

from .checks import check_positive_int
from .memory_generation import MemoryGenerationMixin


class SleepGenerationMixin(MemoryGenerationMixin):
    """`generate(..., num_sleep_passes=n)`, from the call, a `GenerationConfig` or the model's own, in that order."""

    def generation_settings(self: Any, generation_config, **kwargs):
        num_sleep_passes = kwargs.pop("num_sleep_passes", None)
        generation_config, model_kwargs = super().generation_settings(generation_config, **kwargs)
        # `GenerationConfig.update` keeps an argument it has a field for: hand it back to the forward pass
        if num_sleep_passes is None:
            num_sleep_passes = getattr(generation_config, "num_sleep_passes", None)
        if num_sleep_passes is not None:
            model_kwargs["num_sleep_passes"] = check_positive_int("num_sleep_passes", num_sleep_passes)
        return generation_config, model_kwargs


__all__ = ["SleepGenerationMixin"]
