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
"""Checks shared by the configurations and models: bad input gets a `ValueError` that names the field and the value."""

import functools
from typing import TypeVar

from huggingface_hub.dataclasses import strict as hub_strict
from huggingface_hub.errors import StrictDataclassError


ConfigType = TypeVar("ConfigType")


def check_positive_int(name: str, value: object) -> int:
    """Return `value` if it is a whole number of at least 1.

    Args:
        name (`str`): the argument or field the value was given for, used in the message.
        value (`object`): the value to check. Booleans are not numbers here.

    Raises:
        ValueError: `value` is not an integer, or is below 1.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}")
    return value


def strict(cls: type[ConfigType]) -> type[ConfigType]:
    """`huggingface_hub`'s `@strict` for a configuration, except that a refused value is a `ValueError`.

    The original raises its own exception types, which are not `ValueError`s and spread the reason over two lines.
    """
    cls = hub_strict(cls)
    for method_name in ("__init__", "__setattr__", "validate"):
        setattr(cls, method_name, _as_value_error(getattr(cls, method_name)))
    return cls


def _as_value_error(method):
    @functools.wraps(method)
    def wrapper(*args, **kwargs):
        try:
            return method(*args, **kwargs)
        except StrictDataclassError as error:
            raise ValueError(str(error.__cause__ or error)) from error

    return wrapper
