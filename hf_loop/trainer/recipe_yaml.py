"""The YAML of recipes."""

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError


class RecipeLoader(yaml.SafeLoader):
    """YAML as most people read it: `5e-4` is a number, `no` and `on` are words, and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ConstructorError(None, None, f"the key {key!r} is repeated", node.start_mark)
        return super().construct_mapping(node, deep)


_NUMBER_TAG, _BOOL_TAG = "tag:yaml.org,2002:float", "tag:yaml.org,2002:bool"
RecipeLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_NUMBER_TAG, _BOOL_TAG)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
RecipeLoader.add_implicit_resolver(_BOOL_TAG, re.compile(r"^(true|True|false|False)$"), list("tTfF"))
RecipeLoader.add_implicit_resolver(
    _NUMBER_TAG,
    re.compile(r"^[-+]?(\d+\.\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|\d+[eE][-+]?\d+)$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a file whose top level is a mapping.

    Raises:
        ValueError: In one line: there is no such file, it is no YAML, or it holds something else.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such recipe")
    try:
        sections = yaml.load(path.read_text(encoding="utf-8"), Loader=RecipeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        raise ValueError(f"{path}: not valid YAML{f': {problem}' if problem else ''}{place}") from error
    if not isinstance(sections, dict):
        raise ValueError(f"{path}: a recipe is a mapping with the sections model, data and training")
    return sections
