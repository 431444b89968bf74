"""The text of recipes, YAML and overrides, read by OmegaConf: `5e-4` is a number, and a repeated key is an error."""

from collections.abc import Iterable
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..field_values import parse_value
from ..files import read_text
from ..paths import nearest_path
from ..published_files import TOKEN


# how the names of fields end that hold a secret; those of numbers, such as `pad_token_id`, do not
SECRET_NAMES = ("token", "password", "secret", "api_key")


def read_sections(path: Path, overrides: Iterable[str], debug: bool) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Read a recipe with overrides applied.

    Args:
        path (`Path`): the YAML file.
        overrides (`Iterable[str]`): strings `section.key=value`, applied last.
        debug (`bool`): whether to apply the overrides in the section `debug`, which is left out of the result.

    Returns:
        `tuple[dict, dict]`: the sections, and the sections to save beside a model: references such as `${oc.env:NAME}`
            stand there as they were written, and access tokens are left out.

    Raises:
        ValueError: there is no such file, it is no YAML or holds something else than a mapping, an override cannot be
            read, or there is nothing to apply for `debug`.
    """
    if not path.is_file():
        nearest = nearest_path(path)
        raise ValueError("no such recipe" + (f"; did you mean {nearest}?" if nearest is not None else ""))
    text = read_text(path)
    try:
        config = OmegaConf.load(StringIO(text))
        if not isinstance(config, DictConfig) or not config:
            raise ValueError("a recipe is a mapping with the sections model, data and training")
        changes: Any = OmegaConf.to_container(config, resolve=False)
        changes = changes.get("debug")
        config.pop("debug", None)
        if debug:
            if not isinstance(changes, dict) or not changes:
                raise ValueError(f"the recipe has no section 'debug' of overrides, got {changes!r}")
            for key, value in changes.items():
                _override(config, key, value)
        for override in overrides:
            key, separator, value = override.partition("=")
            if not separator:
                raise ValueError(f"an override must read section.key=value, got {override!r}")
            _override(config, key.strip(), parse_value(value, f"the override {override!r}"))
        sections: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        return sections, _without_secrets(OmegaConf.to_container(config, resolve=False))
    except yaml.YAMLError as error:
        problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        raise ValueError(f"not valid YAML{f': {problem}' if problem else ''}{place}") from error
    except OSError as error:
        # what OmegaConf calls a file that holds one number
        raise ValueError(f"a recipe is a mapping with the sections model, data and training: {error}") from error
    except OmegaConfBaseException as error:
        raise ValueError(" ".join(str(error).split())) from error


def _without_secrets(value: Any) -> Any:
    """Leave out what is named as a secret, such as `hub_token`, or is one; a reference to one is none."""
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    if isinstance(value, dict):
        return {name: _without_secrets(item) for name, item in value.items() if not _is_secret(name, item)}
    return value


def _is_secret(name: Any, value: Any) -> bool:
    if not isinstance(value, str) or "${" in value:
        return False
    return TOKEN.search(value) is not None or str(name).lower().endswith(SECRET_NAMES)


def _override(config: DictConfig, key: Any, value: Any) -> None:
    if not isinstance(key, str) or "." not in key.strip("."):
        raise ValueError(f"an override must name section.key, got {key!r}")
    # as a whole: a mapping that is given replaces the one that is there
    OmegaConf.update(config, key, value, merge=False)
