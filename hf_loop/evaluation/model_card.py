"""The model card: facts gathered from a model folder, rendered through `model_cards/template.md`."""

import json
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import jinja2
import torch
from huggingface_hub import ModelCardData
from transformers import AutoConfig

from .. import models  # noqa: F401 (registers the model types with AutoConfig)
from ..files import write_text
from ..weight_files import count_stored_parameters
from .curves import DEFAULT_TOLERANCE, LoopCurve, safe_range
from .memory import kv_bytes_per_loop, kv_bytes_per_token
from .plots import plot_loop_curves
from .results import RESULTS_FILE, Results


CARD_FILE = "README.md"
FIGURES_FOLDER = "figures"
# hf_loop overwrites a card that has this line; any other card belongs to its author
CARD_MARKER = "<!-- Written by hf_loop from config.json and results.json. -->"
TAGS = ("hf_loop", "looped-transformer", "recurrent-depth")
# the head in the architecture's name -> Auto class, pipeline of the Hub
HEADS = {
    "ForCausalLM": ("AutoModelForCausalLM", "text-generation"),
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "text-classification"),
    "ForTokenClassification": ("AutoModelForTokenClassification", "token-classification"),
    "Model": ("AutoModel", "feature-extraction"),
}


@dataclass
class ModelCardFacts:
    """What a model card states.

    Args:
        repo_id (`str`): the repository's name, or the folder's while there is none.
        model_type (`str`): the configuration's `model_type`.
        auto_class (`str`): the Auto class that loads the model.
        pipeline_tag (`str`): the Hub's name for what the model does.
        backbone_type (`str`): the backbone's `model_type`.
        num_prelude_layers, num_core_layers, num_coda_layers (`int`): how the backbone's layers are divided.
        num_loops (`int`): the loops of the configuration: the trained depth.
        injection, state_init (`str`): these fields of the configuration.
        dtype (`str`): the type of the weights.
        kv_bytes (`dict[int, int]`): cache bytes per token at several loop counts.
        kv_bytes_per_loop (`int`): cache bytes per token that one more loop adds.
        num_parameters (`int`, *optional*): the number of stored weights.
        has_tokenizer (`bool`): whether the folder holds a tokenizer.
        has_remote_code (`bool`): whether the folder carries the model's code.
        tags (`list[str]`): tags for the Hub.
        results (`Results`): measurements, and how to repeat them.
        training_summary (`str`, *optional*): hyperparameters and losses, as markdown.
    """

    repo_id: str
    model_type: str
    auto_class: str
    pipeline_tag: str
    backbone_type: str
    num_prelude_layers: int
    num_core_layers: int
    num_coda_layers: int
    num_loops: int
    injection: str
    state_init: str
    dtype: str
    kv_bytes: dict[int, int]
    kv_bytes_per_loop: int
    num_parameters: int | None = None
    has_tokenizer: bool = False
    has_remote_code: bool = False
    tags: list[str] = field(default_factory=list)
    results: Results = field(default_factory=Results)
    training_summary: str | None = None

    @classmethod
    def from_folder(cls, folder: str | Path, repo_id: str | None = None) -> "ModelCardFacts":
        """Gather the facts from a folder that `save_pretrained` wrote: `config.json`, and `results.json` if present.

        Args:
            folder (`str` or `Path`): the model folder.
            repo_id (`str`, *optional*): the repository that the card will stand in; defaults to the folder's name.

        Raises:
            ValueError: if the folder holds no looped model, or its `results.json` is damaged.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} has no config.json, so it is not a model folder.")
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = AutoConfig.from_pretrained(folder)
        if not hasattr(config, "num_loops"):
            raise ValueError(f"{folder} holds a model of type {config.model_type!r}, which has no loops.")
        if not hasattr(config, "num_prelude_layers"):
            raise ValueError(f"{folder} holds a model of type {config.model_type!r}: cards describe looped ones only.")
        auto_class, pipeline_tag = _head_of((config.architectures or ["LoopedForCausalLM"])[0])
        dtype = config.dtype or torch.float32
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        loop_counts = sorted({1, config.num_loops, 2 * config.num_loops})
        return cls(
            repo_id=repo_id or folder.resolve().name,
            model_type=config.model_type,
            auto_class=auto_class,
            pipeline_tag=pipeline_tag,
            backbone_type=config.backbone_config.model_type,
            num_prelude_layers=config.num_prelude_layers,
            num_core_layers=config.num_core_layers,
            num_coda_layers=config.num_coda_layers,
            num_loops=config.num_loops,
            injection=config.injection,
            state_init=config.state_init,
            dtype=str(dtype).removeprefix("torch."),
            kv_bytes={count: kv_bytes_per_token(config, count, dtype) for count in loop_counts},
            kv_bytes_per_loop=kv_bytes_per_loop(config, dtype),
            num_parameters=count_stored_parameters(folder),
            has_tokenizer=(folder / "tokenizer_config.json").is_file(),
            has_remote_code="auto_map" in stored,
            tags=[*TAGS, config.model_type],
            results=Results.load(folder) if (folder / RESULTS_FILE).is_file() else Results(),
        )


def write_model_card(folder: str | Path, facts: ModelCardFacts | None = None) -> Path:
    """Write `folder/README.md` and the figures it shows.

    Args:
        folder (`str` or `Path`): the model folder.
        facts (`ModelCardFacts`, *optional*): what to state; gathered from the folder by default.

    Returns:
        `Path`: the card's path.

    Raises:
        ValueError: as [`ModelCardFacts.from_folder`].
    """
    folder = Path(folder)
    facts = ModelCardFacts.from_folder(folder) if facts is None else facts
    figures = {}
    for metric in DEFAULT_TOLERANCE:
        if curves := facts.results.curves_of(metric):
            figures[metric] = f"{FIGURES_FOLDER}/{metric}_over_loops.png"
            (folder / FIGURES_FOLDER).mkdir(exist_ok=True)
            plot_loop_curves(curves, folder / figures[metric])
    path = folder / CARD_FILE
    write_text(path, render_model_card(facts, figures))
    return path


def render_model_card(facts: ModelCardFacts, figures: dict[str, str] | None = None) -> str:
    """Render the card's text.

    Args:
        facts (`ModelCardFacts`): what to state.
        figures (`dict[str, str]`, *optional*): from a metric's name to its figure, relative to the card.

    Returns:
        `str`: the card, with its YAML header.
    """
    results = facts.results
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag=facts.pipeline_tag,
        license=results.license,
        tags=facts.tags,
        base_model=results.base_model,
        datasets=results.datasets or None,
    )
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    sections = [_metric_section(curves) for metric in DEFAULT_TOLERANCE if (curves := results.curves_of(metric))]
    return environment.from_string(_template()).render(
        card_data=card_data.to_yaml(),
        marker=CARD_MARKER,
        # a Python string literal; jinja's own filter would escape it for HTML
        prompt=json.dumps(results.prompt or "Your text", ensure_ascii=False),
        facts=facts,
        results=results,
        sections=sections,
        figures=figures or {},
        model_name=facts.repo_id.split("/")[-1],
    )


def _head_of(architecture: str) -> tuple[str, str]:
    for suffix, names in HEADS.items():
        if architecture.endswith(suffix):
            return names
    raise ValueError(f"The architecture {architecture!r} has none of the heads {', '.join(HEADS)}.")


def _template() -> str:
    """Read the template from the wheel or, in a checkout, from `model_cards/`."""
    packaged = files("hf_loop.evaluation") / "model_card_template.md"
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return (Path(__file__).parents[2] / "model_cards" / "template.md").read_text(encoding="utf-8")


def _metric_section(curves: list[LoopCurve]) -> dict[str, object]:
    """Make the table of one metric's curves, and the safe range of the first, for the template."""
    curve = curves[0]
    counts = sorted({count for other in curves for count in other.num_loops})
    columns = [(other.label, dict(zip(other.num_loops, other.values, strict=True))) for other in curves]
    if curve.sequence_accuracy is not None:
        whole = dict(zip(curve.num_loops, curve.sequence_accuracy, strict=True))
        columns.insert(1, (f"{curve.label}, whole sequences", whole))
    decimals = 3 if curve.metric == "accuracy" else 2
    rows = [
        [str(count), *(f"{values[count]:.{decimals}f}" if count in values else "–" for _, values in columns)]
        for count in counts
    ]
    return {
        "metric": curve.metric,
        "header": ["loops", *(label.replace("|", "/") for label, _ in columns)],
        "rows": rows,
        "curve": curve,
        "safe_range": None if curve.trained_loops is None else safe_range(curve),
        "tolerance": DEFAULT_TOLERANCE[curve.metric],
    }
