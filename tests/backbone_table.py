"""The table of decoders in hf_loop/models/README.md, made of the entries and of what the sweep found."""

import re
from dataclasses import fields
from pathlib import Path

import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from hf_loop.models.backbone_parts import BackboneSpec
from hf_loop.models.backbone_specs import LIKE_LLAMA, find_spec

from .models.tiny_decoders import causal_model_types, tiny_decoder


README = Path(__file__).parents[1] / "hf_loop" / "models" / "README.md"
START, END = "<!-- decoders -->", "<!-- end of decoders -->"
# where transformers' tables do not tell
OTHER_KINDS = {
    "bert-generation": "an encoder that can be masked",
    "blt": "reads bytes, which it puts together into patches",
    "gemma4_assistant": "drafts for another model, whose states it reads",
    "gemma4_unified_assistant": "drafts for another model, whose states it reads",
    "phi4_multimodal": "reads images and sound beside its tokens",
    "git": "reads images beside its tokens",
    "musicgen": "the decoder of an encoder",
    "musicgen_melody": "the decoder of an encoder",
    "trocr": "the decoder of an encoder",
    "xlnet": "predicts its tokens in any order",
}
NUMBERS = re.compile(r" by up to [\d.e+-]+(?: in its logits)? \(the largest is [\d.e+-]+\)")
REFUSAL = re.compile(r"^`backbone_config.model_type` '[^']*' (cannot be opened|is not a supported backbone): ")


def kind_of(model_type: str) -> str | None:
    """What a causal language model is that is no decoder of tokens alone, `None` for a decoder."""
    if model_type in OTHER_KINDS:
        return OTHER_KINDS[model_type]
    config = CONFIG_MAPPING[model_type]()
    if getattr(config, "is_encoder_decoder", False):
        return "the decoder of an encoder"
    if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "an encoder that can be masked"
    text_config = config.get_text_config(decoder=True)
    if text_config is not config:
        return f"composite: its text part is `{text_config.model_type}`"
    return None


def describe(spec: BackboneSpec) -> str:
    """What an entry says, in words."""
    if spec == LIKE_LLAMA:
        return "default"
    parts = []
    for field in fields(spec):
        value = getattr(spec, field.name)
        if value == field.default or field.name in ("layer_entry", "model_class"):
            continue
        name = field.name.replace("_", " ")
        if callable(value):
            parts.append(value.__name__.replace("_", " "))
        elif value is True:
            parts.append(name)
        elif value is False or value is None:
            parts.append(f"no {name}" if value is None else f"not {name}")
        else:
            parts.append(f"{name} {value}" if isinstance(value, int) else f"{name} `{value}`")
    return ", ".join(parts) or "default"


def layer_kinds(model_type: str) -> str:
    """The kinds of layers that the sweep runs for a model type."""
    config = tiny_decoder(model_type)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"]
    return ", ".join(sorted({kind.removesuffix("_attention") for kind in kinds}))


def reason(result: str) -> str:
    """Why a decoder is refused, without what differs between machines."""
    text = NUMBERS.sub("", REFUSAL.sub("", result))
    return text.replace("|", "\\|").replace("\n", " ")


def count_line(results: dict[str, str]) -> str:
    """Say how many decoders pass the checks."""
    held = sum(not result for result in results.values())
    return (
        f"{held} of {len(results)} decoder types of transformers {transformers.__version__} open and pass these checks"
    )


def make_table(results: dict[str, str]) -> str:
    """One row for every causal language model of transformers."""
    rows = [f"{count_line(results)}.", "", "| `model_type` | class | layers | entry |", "|---|---|---|---|"]
    others = ["| `model_type` | class | why it is none |", "|---|---|---|"]
    for model_type in causal_model_types():
        class_name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
        kind = kind_of(model_type)
        if kind is not None:
            others.append(f"| `{model_type}` | {class_name} | {kind} |")
            continue
        result = results[model_type]
        if result:
            rows.append(f"| `{model_type}` | {class_name} | | refused: {reason(result)} |")
        else:
            entry = describe(find_spec(CONFIG_MAPPING[model_type]()))
            rows.append(f"| `{model_type}` | {class_name} | {layer_kinds(model_type)} | {entry} |")
    return "\n".join([*rows, "", "Causal language models that are no decoders of tokens alone:", "", *others])


def read_table() -> str:
    """The table as it is written."""
    return README.read_text().split(START)[1].split(END)[0].strip()


def write_table(results: dict[str, str]) -> None:
    """Put the table in the place of the written one."""
    before, rest = README.read_text().split(START)
    README.write_text(f"{before}{START}\n{make_table(results)}\n{END}{rest.split(END)[1]}")
