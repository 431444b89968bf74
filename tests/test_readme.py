"""The README says what is so: its table of backbones is made from the list the code uses, and its commands exist.

python -m tests.test_readme     # writes the table into README.md
"""

import re
from pathlib import Path

from transformers import AutoModel
from typer.testing import CliRunner

from hf_loop.models.backbone import SUPPORTED_BACKBONES, BackboneSpec

from .models.tiny_backbones import MODEL_TYPES, tiny_backbone


README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- backbones -->", "<!-- end of backbones -->"


def layer_kinds(model_type: str) -> str:
    """The kinds of layers the tests run for a model type."""
    config = tiny_backbone(model_type)
    if hasattr(config, "layer_types"):
        kinds = dict.fromkeys(config.layer_types)
    else:
        kinds = ["sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"]
    return ", ".join(sorted(kind.removesuffix("_attention") for kind in kinds))


def peculiarities(spec: BackboneSpec) -> str:
    """What the architecture does around its layers, in words."""
    words = {
        "scale_embeddings": "scales embeddings",
        "norm_embeddings": "norms embeddings",
        "dropout_module": "drops out embeddings",
        "neox_dropout_module": "drops out embeddings",
        "dropout_rate": "drops out embeddings",
        "divide_by_logits_scaling": "divides logits",
        "scale_logits": "scales logits",
        "softcap_logits": "soft-caps logits",
        "scale_and_softcap": "scales and soft-caps logits",
    }
    found = [words[step.__name__] for step in (spec.enter, spec.finish_logits) if step.__name__ in words]
    if spec.rotary_per_layer_type:
        found.append("rotary per layer type")
    if spec.position_rows > 1:
        found.append(f"{spec.position_rows} rows of positions")
    if spec.head_bias:
        found.append("head with bias")
    if spec.layers_take_token_ids:
        found.append("embeds tokens in layers")
    return ", ".join(found)


def backbone_table() -> str:
    """The README's table."""
    rows = ["| `model_type` | class | attention | around the layers |", "|---|---|---|---|"]
    for model_type in MODEL_TYPES:
        model_class = AutoModel._model_mapping[type(tiny_backbone(model_type))]
        is_ours = model_class.__module__.startswith("hf_loop.")
        class_name = f"{model_class.__name__} (of hf_loop)" if is_ours else model_class.__name__
        around = peculiarities(SUPPORTED_BACKBONES[model_type])
        cells = (f"`{model_type}`", class_name, layer_kinds(model_type), around)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def test_the_table_of_backbones_is_the_tested_list():
    written = README.read_text().split(START)[1].split(END)[0].strip()
    assert written == backbone_table(), "run python -m tests.test_readme"


def test_every_command_of_the_readme_exists():
    from hf_loop.cli.main import app

    commands = set(re.findall(r"hf-loop ([a-z]+)", README.read_text()))
    assert commands >= {"quickstart", "train", "generate", "sweep", "card", "push"}
    for command in commands:
        result = CliRunner().invoke(app, [command, "--help"])
        assert result.exit_code == 0, (command, result.output)


if __name__ == "__main__":
    before, rest = README.read_text().split(START)
    README.write_text(f"{before}{START}\n{backbone_table()}\n{END}{rest.split(END)[1]}")
