"""Checks the names and types of fields of configurations and recipes, and reads their values from text."""

import difflib
import inspect
import re
import types
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


# names that a message lists where none is near the wrong one
MOST_LISTED = 8


def field_types(cls: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that its constructor takes, each with its type.

    Args:
        cls (`type`): a dataclass.
    """
    try:
        hints = get_type_hints(cls)
    except NameError:
        # some annotations of transformers' configurations name classes that their modules do not import
        hints = {item.name: item.type for item in fields(cls) if not isinstance(item.type, str)}
    return {item.name: hints.get(item.name, Any) for item in fields(cls) if item.init}


def check_names(names: Iterable[str], known: Collection[str], where: str, what: str = "key") -> None:
    """Refuse a name that is not known.

    Args:
        names (`Iterable[str]`): the names that were given.
        known (`Collection[str]`): the names that exist.
        where (`str`): the place of the names, for the message.
        what (`str`, *optional*, defaults to `"key"`): the kind of thing that is named, for the message.

    Raises:
        ValueError: if a name is not known; the message names it and the nearest known name.
    """
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1)
            choice = f"; there are {', '.join(known)}" if len(known) <= MOST_LISTED else ""
            hint = f"; did you mean '{nearest[0]}'?" if nearest else choice
            raise ValueError(f"unknown {what} '{name}' in {where}{hint}")


def check_types(values: Mapping[str, Any], types_: Mapping[str, Any], label: str = "`{}`") -> dict[str, Any]:
    """Refuse a value that is not of its field's type, and return the values, with integers for floats made floats.

    Args:
        values (`Mapping[str, Any]`): values by the names of their fields.
        types_ (`Mapping[str, Any]`): the type of every field, as [`field_types`] gives them.
        label (`str`, *optional*): how the message names a field.

    Raises:
        ValueError: if a value is of another type; the message has the field, its type and the value.
    """
    checked: dict[str, Any] = dict(values)
    for name, value in values.items():
        hint = types_[name]
        if not fits(value, hint):
            raise ValueError(f"{label.format(name)} must be {readable(hint)}, got {value!r}")
        kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        # a strict configuration refuses an integer where it wants a float
        if float in kinds and int not in kinds and value is not None:
            checked[name] = float(value)
    return checked


def build(cls: Any, values: Mapping[str, Any], where: str) -> Any:
    """Make a dataclass of values that were read from a file.

    Args:
        cls (`type`): a dataclass.
        values (`Mapping[str, Any]`): values by the names of its fields.
        where (`str`): the place of the values, for the message.

    Raises:
        ValueError: if a field is unknown, missing or of another type, or the class refuses it.
    """
    types_ = field_types(cls)
    check_names(values, types_, where, "field")
    for item in fields(cls):
        if item.name not in values and item.default is MISSING and item.default_factory is MISSING:
            raise ValueError(f"{where} lacks the field '{item.name}'")
    return cls(**check_types(values, types_, f"`{{}}` of {where}"))


def fits(value: Any, hint: Any) -> bool:
    """Tell whether `value` is of the type `hint`. The items of a dictionary are not checked."""
    # imported here, because it needs torch
    from .models.checks import whole_number

    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, member) for member in get_args(hint))
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(hint))
    if origin is list:
        return isinstance(value, list) and all(fits(item, get_args(hint)[0]) for item in value)
    if origin is not None:
        return isinstance(value, origin)
    if hint in (int, float):
        return whole_number(value) is not None or (hint is float and isinstance(value, float))
    return isinstance(value, hint)


def readable(hint: Any) -> str:
    """Format a type as in source code: `int | None`, `'average' | 'first'`, `list[str]`."""
    if hint is types.NoneType:
        return "None"
    if get_origin(hint) in (Union, types.UnionType):
        return " | ".join(map(readable, get_args(hint)))
    if get_origin(hint) is Literal:
        return " | ".join(map(repr, get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint).replace("typing.", "")


def field_docs(documented: Any) -> dict[str, str]:
    """Read the description of every argument from a docstring.

    Args:
        documented (`type` or `Callable`): a class or a function. Without a docstring in transformers' style there are
            no descriptions.
    """
    text = inspect.cleandoc(getattr(documented, "__doc__", None) or "")
    arguments = re.findall(r"^ {4}(\w+) \([^)\n]*\):(.*(?:\n {8}.*)*)", text, re.MULTILINE)
    return {name: " ".join(description.split()) for name, description in arguments}


def parse_field_values(texts: Iterable[str]) -> dict[str, Any]:
    """Read `FIELD=VALUE` pairs, the values as [`parse_value`] does.

    Args:
        texts (`Iterable[str]`): the arguments of `--set`.

    Raises:
        ValueError: if an entry is no pair, names a field again, or has a value that cannot be read.
    """
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--set: {text!r} is not a setting; give FIELD=VALUE, as in num_loops=8.")
        if name in values:
            raise ValueError(f"--set: {name} is set twice.")
        values[name] = parse_value(value, f"--set: {text!r}")
    return values


def parse_value(text: str, where: str) -> Any:
    """Read a value as it would stand in a recipe; `None` is that, too.

    Args:
        text (`str`): the value.
        where (`str`): the place of the value, for the message.

    Raises:
        ValueError: if the text is not YAML.
    """
    # imported here: `hf-loop --help` needs none of it
    import yaml
    from omegaconf import OmegaConf

    try:
        parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
    except yaml.YAMLError as error:
        raise ValueError(f"the value of {where} is not valid YAML") from error
    return None if parsed["value"] == "None" else parsed["value"]
