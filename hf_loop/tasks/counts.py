"""Whole numbers as people pass them: Python's, numpy's and torch's.

As in `models/checks.py`, of which there is nothing here, since tasks stand alone.
"""

import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any, TypeVar, get_args


FunctionType = TypeVar("FunctionType", bound=Callable[..., Any])


def whole_number(value: Any) -> int | None:
    """`value` as an `int`, or `None` if it is no whole number. Booleans, floats and arrays of one element are none."""
    if isinstance(value, bool) or getattr(value, "ndim", 0) or str(getattr(value, "dtype", "")) == "torch.bool":
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def plain_counts(function: FunctionType) -> FunctionType:
    """Decorate a function so that the whole numbers it is given are Python's; its own checks see to the others.

    Arguments annotated as integers, or as sequences of them, are converted as `whole_number` says.
    """
    signature = inspect.signature(function)
    counts = frozenset(name for name, parameter in signature.parameters.items() if _is_count(parameter.annotation))

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        given = signature.bind(*args, **kwargs)
        for name in counts & given.arguments.keys():
            given.arguments[name] = _plain(given.arguments[name])
        return function(*given.args, **given.kwargs)

    return wrapper  # ty: ignore[invalid-explicit-return]


def _is_count(annotation: Any) -> bool:
    kinds = get_args(annotation)
    return annotation is int if not kinds else any(_is_count(kind) for kind in kinds)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    number = whole_number(value)
    return value if number is None else number
