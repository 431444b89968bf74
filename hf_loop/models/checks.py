# Copyright 2026 The hf_loop authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Checks shared by configurations and models; their errors name the field and the value."""

import difflib
import functools
import operator
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_args

import torch
from huggingface_hub.dataclasses import strict as hub_strict
from huggingface_hub.errors import StrictDataclassError


ConfigType = TypeVar("ConfigType")

# names of the number of loops in other code: Huginn, Ouro, HRM and TRM, dory, and what builds on them
LOOPS_ELSEWHERE = (
    *("num_steps", "total_ut_steps", "num_ut_steps", "H_cycles", "n_recurrent_loops", "num_recurrences"),
    *("mean_recurrence", "num_recurrent_steps", "recurrent_depth", "n_loops", "loops", "loop_count", "num_cycles"),
)


def whole_number(value: Any) -> int | None:
    """Return `value` as an `int` if it is a whole number: Python's, numpy's, or a tensor of no dimensions.

    Args:
        value (`Any`): the value. Booleans, floats and arrays of one element do not count as whole numbers.

    Returns:
        `int` or `None`: the number, `None` if `value` is not a whole number.
    """
    # the usual case, kept simple for torch.compile
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
        name (`str`): the argument or field that has the value, for the message.
        value (`Any`): the value to check, see `whole_number`.
        least (`int`, *optional*, defaults to 0): the smallest number allowed.

    Raises:
        ValueError: if `value` is not a whole number, or is below `least`.
    """
    number = whole_number(value)
    if number is None or number < least:
        raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r}")
    return number


# by name, the least and the most that a number of a configuration can be. More layers, loops or cycles could not be
# listed, and larger sizes not be multiplied in 64 bits
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("vocab_size", "hidden_size", "num_attention_heads"), (1, 1 << 24)),
    **dict.fromkeys(("intermediate_size", "num_key_value_heads", "head_dim"), (0, 1 << 24)),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "low_cycles", "stack_repeats"), (1, 1 << 12)),
    **dict.fromkeys(("num_prelude_layers", "num_coda_layers"), (0, 1 << 12)),
    "num_labels": (0, 1 << 20),
    "loop_step": (1e-6, 1),
}
# by the ends of names
ENDINGS: dict[str, tuple[float, float]] = {"_eps": (0, 1), "epsilon": (0, 1), "dropout": (0, 1), "_range": (0, 1e6)}
INTEGERS = (-(1 << 31), 1 << 31)
FLOATS = (-1e300, 1e300)
MOST_CALLS = 1 << 20
# fields of every configuration that transformers takes as they are
COMMON_TYPES: dict[str, tuple[type, ...]] = {
    "architectures": (list, tuple),
    "attn_implementation": (str, dict),
    "dtype": (str, torch.dtype, dict),
    "id2label": (dict,),
    "num_labels": (int,),
    "quantization_config": (dict,),
}


def check_range(name: str, value: Any, meaning: str | None = None) -> None:
    """Refuse a number that a field of its name cannot have; anything that is no number is let through.

    Args:
        name (`str`): the field, for the message.
        value (`Any`): its value.
        meaning (`str`, *optional*): the name that the range belongs to, by default that of the field.

    Raises:
        ValueError: if the number is out of range, infinite, or not a number, or a boolean is given for a size.
    """
    meaning = meaning or name.rpartition(".")[2]
    if isinstance(value, bool) and meaning in RANGES:
        kind = "an integer" if isinstance(RANGES[meaning][0], int) else "a number"
        raise ValueError(f"`{name}` must be {kind}, got {value!r}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        others = INTEGERS if isinstance(value, int) else FLOATS
        ending = next((limits for end, limits in ENDINGS.items() if meaning.endswith(end)), others)
        least, most = RANGES.get(meaning, ending)
        # of what is not a number both comparisons are false
        if not least <= value <= most:
            limits = "a finite number" if isinstance(value, float) and most == FLOATS[1] else f"from {least} to {most}"
            raise ValueError(f"`{name}` must be {limits}, got {value!r}")


def check_values(fields: Mapping[str, Any], config_class: Any, where: str = "") -> None:
    """Check the ranges of numbers among the fields of a configuration, and the types that transformers does not check.

    Args:
        fields (`Mapping[str, Any]`): values by the names of their fields.
        config_class (`type`): the configuration's class, which may have names of its own for the usual fields.
        where (`str`, *optional*): what messages put before the name of a field.

    Raises:
        ValueError: if a value is out of range (see [`check_range`]) or of another type.
    """
    meanings = {own: usual for usual, own in config_class.attribute_map.items()}
    for name, value in fields.items():
        check_range(f"{where}{name}", value, meanings.get(name, name))
        kinds = COMMON_TYPES.get(name, (object,))
        # transformers counts up to the number of labels at once
        is_unset = value is None and name != "num_labels"
        # objects in place of a quantization's dictionary can be made one
        if not is_unset and not isinstance(value, kinds) and not hasattr(value, "to_dict"):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"`{where}{name}` must be {names}, got {value!r}")


def make_config(config_class: Any, fields: dict[str, Any], where: str) -> Any:
    """Make a configuration of transformers, and turn whatever its class makes of wrong values into a `ValueError`.

    Args:
        config_class (`type`): the configuration's class.
        fields (`dict[str, Any]`): its fields.
        where (`str`): what messages call the configuration.

    Raises:
        ValueError: if a value is refused, or the class fails on it.
    """
    check_values(fields, config_class, f"{where}.")
    try:
        return config_class(**fields)
    except ValueError:
        raise
    except (StrictDataclassError, TypeError) as error:
        raise ValueError(f"`{where}`: {error.__cause__ or error}") from error
    except Exception as error:  # the classes of transformers fail in many ways on values that they do not expect
        raise ValueError(f"`{where}` of a {config_class.model_type}: {type(error).__name__}: {error}") from error


def check_num_calls(num_loops: int, per_loop: int) -> None:
    """Refuse a depth whose layer calls are too many to list.

    Args:
        num_loops (`int`): loops.
        per_loop (`int`): layer calls of a loop.

    Raises:
        ValueError: if they are.
    """
    if num_loops * per_loop > MOST_CALLS:
        raise ValueError(
            f"`num_loops` must be at most {MOST_CALLS // per_loop}, with {per_loop} layer calls each, got {num_loops}"
        )


def check_positive_int(name: str, value: Any) -> int:
    """Return `value` as an `int` if it is a whole number of at least 1; raise `ValueError` as `check_int` if not."""
    return check_int(name, value, 1)


def check_count(name: str, value: Any) -> int:
    """Return a number of loops, passes or segments as an `int`.

    Args:
        name (`str`): the argument, for the message.
        value (`Any`): its value.

    Raises:
        ValueError: if it is not a whole number of at least 1, or so large that the call would not end.
    """
    number = check_positive_int(name, value)
    if number > MOST_CALLS:
        raise ValueError(f"`{name}` must be at most {MOST_CALLS}, got {value!r}")
    return number


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    number = whole_number(value)
    return value if number is None else number


def nearest(name: str, candidates: Iterable[str], cutoff: float = 0.75) -> str | None:
    """Return the candidate that `name` may be a misspelling of, `None` if there is none.

    Args:
        name (`str`): the unknown name.
        candidates (`Iterable[str]`): the known names.
        cutoff (`float`, *optional*, defaults to 0.75): how similar they must be, from 0 to 1.
    """
    lowered = {candidate.lower(): candidate for candidate in candidates}
    matches = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=cutoff)
    return lowered[matches[0]] if matches else None


def check_depth_names(given: Iterable[str], keywords: Iterable[str], where: str) -> None:
    """Refuse a misnamed number of loops or passes in an object that accepts any name, such as a `GenerationConfig`.

    Args:
        given (`Iterable[str]`): names in the object.
        keywords (`Iterable[str]`): arguments of the model's forward pass.
        where (`str`): the object, for the message.

    Raises:
        TypeError: if a name looks like the number of loops or passes of any family, and is not an argument.
    """
    for name in given:
        meant = "num_loops" if name in LOOPS_ELSEWHERE else nearest(name, ("num_loops", "num_sleep_passes"), 0.8)
        if meant is not None and name not in keywords:
            hint = f"; did you mean `{meant}`?" if meant in keywords else ""
            raise TypeError(f"`{name}`, given to the {where}, is no keyword of the model{hint}")


def strict(cls: type[ConfigType]) -> type[ConfigType]:
    """Decorate a configuration with `huggingface_hub`'s `@strict`, except that a refused value is a `ValueError`.

    The original raises exceptions that are not `ValueError`s, with the reason on two lines. Here whole numbers of
    numpy and torch are converted to `int` before its check, and booleans are refused as integers.
    """
    cls = hub_strict(cls)
    counts = frozenset(field.name for field in fields(cls) if _is_count(field.type))  # ty: ignore[invalid-argument-type]
    cls.__setattr__ = _with_whole_numbers(cls.__setattr__, counts)
    # what transformers makes of a value that it does not expect
    failures = (AttributeError, LookupError, ArithmeticError)
    cls.__init__ = _as_value_error(cls.__init__, failures)
    for method_name in ("__setattr__", "validate"):
        setattr(cls, method_name, _as_value_error(getattr(cls, method_name)))
    return cls


def _is_count(annotation: Any) -> bool:
    """Return whether a field holds an integer or integers, and no boolean or float."""
    kinds = get_args(annotation)
    if not kinds:
        # `type(annotation)`, for the members of a `Literal[1, 2]`
        return annotation is int or type(annotation) is int
    return not {bool, float} & set(kinds) and any(_is_count(kind) for kind in kinds)


def _with_whole_numbers(set_attribute, counts: frozenset[str]):
    @functools.wraps(set_attribute)
    def wrapper(self, key, value):
        check_range(key, value)
        set_attribute(self, key, plain_count(key, value) if key in counts else value)

    return wrapper


def plain_count(name: str, value: Any) -> Any:
    """Convert a whole number, or those in a list, to `int`; anything else is returned as it is.

    Raises:
        ValueError: if `value` is or contains a boolean.
    """
    if isinstance(value, bool) or (isinstance(value, list | tuple) and any(isinstance(item, bool) for item in value)):
        raise ValueError(f"`{name}` must be an integer, got {value!r}")
    return _plain(value)


def _as_value_error(method: Any, failures: tuple[type[Exception], ...] = ()) -> Any:
    @functools.wraps(method)
    def wrapper(self, *args, **kwargs):
        try:
            return method(self, *args, **kwargs)
        except StrictDataclassError as error:
            raise ValueError(str(error.__cause__ or error)) from error
        except failures as error:
            raise ValueError(f"a {type(self).__name__} cannot be made: {type(error).__name__}: {error}") from error

    return wrapper
