"""What the model cards share: the file, the mark of a card that hf_loop wrote, and the templates."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCardData


CARD_FILE = "README.md"
FIGURES_FOLDER = "figures"
# hf_loop overwrites a card that has this line; any other card belongs to its author
CARD_MARKER = "<!-- Written by hf_loop from config.json and results.json. -->"
# in `model_cards/` of a checkout -> in the wheel, beside this module
TEMPLATES = {"template.md": "model_card_template.md", "puzzle_template.md": "puzzle_card_template.md"}


def render_card(template: str, card_data: ModelCardData, **values: Any) -> str:
    """Render a card.

    Args:
        template (`str`): the name of its template in `model_cards/`.
        card_data (`ModelCardData`): its header.
        values: what the template names besides.

    Returns:
        `str`: the card's text, with its YAML header.
    """
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    rendered = environment.from_string(read_template(template))
    return rendered.render(card_data=card_data.to_yaml(), marker=CARD_MARKER, **values)


def read_template(name: str) -> str:
    """Read a template from the wheel or, in a checkout, from `model_cards/`."""
    packaged = files("hf_loop.evaluation") / TEMPLATES[name]
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return (Path(__file__).parents[2] / "model_cards" / name).read_text(encoding="utf-8")
