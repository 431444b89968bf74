"""The text of recipes, YAML and overrides, read by OmegaConf: `5e-4` is a number, and a repeated key is an error."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..field_values import parse_value


def read_sections(path: Path, overrides: Iterable[str], debug: bool) -> dict[Any, Any]:
    """Read a recipe with overrides applied.

    Args:
        path (`Path`): the YAML file.
        overrides (`Iterable[str]`): strings `section.key=value`, applied last.
        debug (`bool`): whether to apply the overrides in the section `debug`, which is left out of the result.

    Raises:
        ValueError: there is no such file, it is no YAML or holds something else than a mapping, an override cannot be
            read, or there is nothing to apply for `debug`.
    """
    if not path.is_file():
        raise ValueError("no such recipe")
    try:
        config = OmegaConf.load(path)
        if not isinstance(config, DictConfig) or not config:
            raise ValueError("a recipe is a mapping with the sections model, data and training")
        changes: Any = OmegaConf.to_container(config, resolve=False)
        changes = changes.get("debug") or {}
        config.pop("debug", None)
        if debug and not changes:
            raise ValueError("the recipe has no section 'debug'")
        for key, value in (changes if debug else {}).items():
            _override(config, key, value)
        for override in overrides:
            key, separator, text = override.partition("=")
            if not separator:
                raise ValueError(f"an override must read section.key=value, got {override!r}")
            _override(config, key.strip(), parse_value(text, f"the override {override!r}"))
        sections: Any = OmegaConf.to_container(config, resolve=True)
        return sections
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        raise ValueError(f"not valid YAML{f': {problem}' if problem else ''}{place}") from error
    except OmegaConfBaseException as error:
        raise ValueError(" ".join(str(error).split())) from error


def _override(config: DictConfig, key: str, value: Any) -> None:
    if "." not in key:
        raise ValueError(f"an override must name section.key, got {key!r}")
    # as a whole: a mapping that is given replaces the one that is there
    OmegaConf.update(config, key, value, merge=False)
