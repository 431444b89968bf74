# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Checks shared by the configurations and models: bad input gets a `ValueError` that names the field and the value."""

import difflib
import functools
import operator
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, TypeVar, get_args

import torch
from huggingface_hub.dataclasses import strict as hub_strict
from huggingface_hub.errors import StrictDataclassError


ConfigType = TypeVar("ConfigType")

# what the number of loops is called elsewhere: Huginn, Ouro, HRM and TRM, dory, and code that builds on them
LOOPS_ELSEWHERE = (
    *("num_steps", "total_ut_steps", "num_ut_steps", "H_cycles", "n_recurrent_loops", "num_recurrences"),
    *("mean_recurrence", "num_recurrent_steps", "recurrent_depth", "n_loops", "loops", "loop_count", "num_cycles"),
)


def whole_number(value: Any) -> int | None:
    """Return `value` as an `int` if it is a whole number: Python's, numpy's, or a tensor of no dimensions.

    Args:
        value (`Any`): the value. Booleans, floats and arrays of one element are no whole numbers.

    Returns:
        `int` or `None`: `None` if it is none.
    """
    # what nearly every call gives, and a graph can be compiled for
    if type(value) is int:
        return value
    if isinstance(value, bool) or getattr(value, "ndim", 0) or getattr(value, "dtype", None) is torch.bool:
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def check_int(name: str, value: Any, least: int = 0) -> int:
    """Return `value` as an `int` if it is a whole number of at least `least`.

    Args:
        name (`str`): the argument or field the value was given for, used in the message.
        value (`Any`): the value to check, see `whole_number`.
        least (`int`, *optional*, defaults to 0): the smallest number allowed.

    Raises:
        ValueError: if `value` is not a whole number, or is below `least`.
    """
    number = whole_number(value)
    if number is None or number < least:
        raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r}")
    return number


def check_positive_int(name: str, value: Any) -> int:
    """Return `value` as an `int` if it is a whole number of at least 1.

    Args:
        name (`str`): the argument or field the value was given for, used in the message.
        value (`Any`): the value to check, see `whole_number`.

    Raises:
        ValueError: if `value` is not a whole number, or is below 1.
    """
    return check_int(name, value, 1)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    number = whole_number(value)
    return value if number is None else number


def nearest(name: str, candidates: Iterable[str], cutoff: float = 0.75) -> str | None:
    """The candidate that `name` may be a misspelling of.

    Args:
        name (`str`): the name that is none of them.
        candidates (`Iterable[str]`): the names there are.
        cutoff (`float`, *optional*, defaults to 0.75): how alike they have to be, from 0 to 1.
    """
    lowered = {candidate.lower(): candidate for candidate in candidates}
    matches = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=cutoff)
    return lowered[matches[0]] if matches else None


def check_depth_names(given: Iterable[str], keywords: Iterable[str], where: str) -> None:
    """Refuse a count under a wrong name where any name is taken without a word, as in a `GenerationConfig`.

    Args:
        given (`Iterable[str]`): the names.
        keywords (`Iterable[str]`): what the model's forward pass names.
        where (`str`): what they were given to, for the message.

    Raises:
        TypeError: if a name is none of them, and meant for one, or for the count of another family.
    """
    for name in given:
        meant = "num_loops" if name in LOOPS_ELSEWHERE else nearest(name, ("num_loops", "num_sleep_passes"), 0.8)
        if meant is not None and name not in keywords:
            hint = f"; did you mean `{meant}`?" if meant in keywords else ""
            raise TypeError(f"`{name}`, given to the {where}, is no keyword of the model{hint}")


def strict(cls: type[ConfigType]) -> type[ConfigType]:
    """`huggingface_hub`'s `@strict` for a configuration, except that a refused value is a `ValueError`.

    The original raises its own exception types, which are not `ValueError`s and spread the reason over two lines.
    Whole numbers of numpy and torch become integers before it looks at them, and booleans are none.
    """
    cls = hub_strict(cls)
    counts = frozenset(field.name for field in fields(cls) if _is_count(field.type))  # ty: ignore[invalid-argument-type]
    cls.__setattr__ = _with_whole_numbers(cls.__setattr__, counts)
    for method_name in ("__init__", "__setattr__", "validate"):
        setattr(cls, method_name, _as_value_error(getattr(cls, method_name)))
    return cls


def _is_count(annotation: Any) -> bool:
    """Whether a field holds an integer, or integers, and no boolean or float."""
    kinds = get_args(annotation)
    if not kinds:
        # the second of a `Literal[1, 2]`
        return annotation is int or type(annotation) is int
    return not {bool, float} & set(kinds) and any(_is_count(kind) for kind in kinds)


def _with_whole_numbers(set_attribute, counts: frozenset[str]):
    @functools.wraps(set_attribute)
    def wrapper(self, key, value):
        set_attribute(self, key, plain_count(key, value) if key in counts else value)

    return wrapper


def plain_count(name: str, value: Any) -> Any:
    """A whole number, or those in a list, as Python's; anything else is left to the check of types.

    Raises:
        ValueError: if there is a boolean.
    """
    if isinstance(value, bool) or (isinstance(value, list | tuple) and any(isinstance(item, bool) for item in value)):
        raise ValueError(f"`{name}` must be an integer, got {value!r}")
    return _plain(value)


def _as_value_error(method):
    @functools.wraps(method)
    def wrapper(*args, **kwargs):
        try:
            return method(*args, **kwargs)
        except StrictDataclassError as error:
            raise ValueError(str(error.__cause__ or error)) from error

    return wrapper
