"""The model card: facts gathered from a model folder, rendered through `model_cards/template.md`."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData

from ..analysis.inspection_plots import plot_inspection
from ..analysis.inspection_results import INSPECTION_FILE, Inspection
from ..analysis.inspection_results import to_markdown as describe_inspection
from ..configurations import read_config
from ..files import read_json, write_text
from ..models import family_of
from ..paths import no_such
from ..weight_files import count_stored_parameters
from .bench_plots import plot_bench
from .bench_results import BENCH_FILE, Bench
from .bench_tables import batches_of, to_markdown
from .card_template import CARD_FILE, FIGURES_FOLDER, render_card
from .curves import DEFAULT_TOLERANCE, LoopCurve, has_safe_range, safe_range
from .memory import kv_bytes_per_loop, kv_bytes_per_token
from .plots import plot_loop_curves
from .results import RESULTS_FILE, Results


# the Hub's name for what the models of an Auto class do
PIPELINE_TAGS = {
    "AutoModel": "feature-extraction",
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
}
BENCH_FIGURE = f"{FIGURES_FOLDER}/decoding.png"
INSPECTION_FIGURE = f"{FIGURES_FOLDER}/inside_the_loops.png"


@dataclass
class Level:
    """What a model card states of one configuration: the model's, or that of the recurrent model it runs.

    Args:
        model_type (`str`): its `model_type`.
        schedule (`str`): its schedule in a few words.
        fields (`dict[str, Any]`): the fields of the schedule.
    """

    model_type: str
    schedule: str
    fields: dict[str, Any]


@dataclass
class ModelCardFacts:
    """What a model card states.

    Args:
        repo_id (`str`): the repository's name, or the folder's while there is none.
        model_type (`str`): the configuration's `model_type`.
        auto_class (`str`): the Auto class that loads the model.
        pipeline_tag (`str`): the Hub's name for what the model does.
        decoder_type (`str`): the `model_type` of the decoder whose layers run.
        levels (`list[Level]`): the model's schedule, then that of the recurrent model it runs, if it runs one.
        fixed_calls (`int`): layer calls of a pass outside of loops.
        calls_per_loop (`int`): layer calls of a loop.
        dtype (`str`): the type of the weights.
        num_loops (`int`, *optional*): the loops of the configuration, the trained depth; `None` without loops.
        kv_bytes_per_token (`int`, *optional*): cache bytes per token, where the cache has all tokens.
        kv_bytes (`dict[int, int]`): the same at several loop counts.
        kv_bytes_per_loop (`int`, *optional*): cache bytes per token that one more loop adds.
        num_parameters (`int`, *optional*): the number of stored weights.
        unpacked_from (`str`, *optional*): how the weights were quantized before they were unpacked, if they were.
        has_tokenizer (`bool`): whether the folder holds a tokenizer.
        has_remote_code (`bool`): whether the folder carries the model's code.
        tags (`list[str]`): tags for the Hub.
        results (`Results`): measurements, and how to repeat them.
        bench (`Bench`, *optional*): a benchmark of the ways to decode.
        inspection (`Inspection`, *optional*): a look inside the loops at one prompt.
        training_summary (`str`, *optional*): hyperparameters and losses, as markdown.
    """

    repo_id: str
    model_type: str
    auto_class: str
    pipeline_tag: str
    decoder_type: str
    levels: list[Level]
    fixed_calls: int
    calls_per_loop: int
    dtype: str
    num_loops: int | None = None
    kv_bytes_per_token: int | None = None
    kv_bytes: dict[int, int] = field(default_factory=dict)
    kv_bytes_per_loop: int | None = None
    num_parameters: int | None = None
    unpacked_from: str | None = None
    has_tokenizer: bool = False
    has_remote_code: bool = False
    tags: list[str] = field(default_factory=list)
    results: Results = field(default_factory=Results)
    bench: Bench | None = None
    inspection: Inspection | None = None
    training_summary: str | None = None

    @classmethod
    def from_folder(cls, folder: str | Path, repo_id: str | None = None) -> "ModelCardFacts":
        """Gather the facts from a folder that `save_pretrained` wrote: `config.json`, and the measurements in
        `results.json`, `bench.json` and `inspect.json` if present.

        Args:
            folder (`str` or `Path`): the model folder.
            repo_id (`str`, *optional*): the repository that the card will stand in; defaults to the folder's name.

        Raises:
            ValueError: if the folder holds no language model of a family, or its measurements are damaged.
        """
        folder = Path(folder)
        config = family_config(folder)
        family: Any = family_of(config)
        auto_class = auto_class_name(config, family)
        if auto_class not in PIPELINE_TAGS:
            raise ValueError(f"{folder} holds a model of type {config.model_type!r}, which is no language model")
        dtype = config.dtype or torch.float32
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        num_loops = config.num_loops if config.has_loops else None
        fixed_calls = len(config.calls() if num_loops is None else config.calls(num_loops=0))
        facts = cls(
            repo_id=repo_id or folder.resolve().name,
            model_type=config.model_type,
            auto_class=auto_class,
            pipeline_tag=PIPELINE_TAGS[auto_class],
            decoder_type=config.decoder_config.model_type,
            levels=levels_of(config),
            fixed_calls=fixed_calls,
            calls_per_loop=0 if num_loops is None else len(config.calls(num_loops=1)) - fixed_calls,
            dtype=str(dtype).removeprefix("torch."),
            num_loops=num_loops,
            num_parameters=count_stored_parameters(folder),
            unpacked_from=getattr(config.decoder_config, "unpacked_from", None),
            has_tokenizer=(folder / "tokenizer_config.json").is_file(),
            has_remote_code="auto_map" in read_json(folder / "config.json"),
            tags=["hf_loop", *family.classes[auto_class].family_tags, config.model_type],
            results=Results.load(folder) if (folder / RESULTS_FILE).is_file() else Results(),
            bench=read_bench(folder),
            inspection=Inspection.load(looked) if (looked := folder / INSPECTION_FILE).is_file() else None,
        )
        # a schedule of tokens decides itself what it keeps of them
        if config.kind == "depth":
            facts.kv_bytes_per_token = kv_bytes_per_token(config, dtype=dtype)
            if num_loops is not None:
                counts = sorted({1, num_loops, 2 * num_loops})
                facts.kv_bytes = {count: kv_bytes_per_token(config, count, dtype) for count in counts}
                facts.kv_bytes_per_loop = kv_bytes_per_loop(config, dtype)
        return facts


def read_bench(folder: Path) -> Bench | None:
    """Read the benchmark of decoding in a model folder, `None` if there is none, or one without a time so far.

    Raises:
        ValueError: if the file does not hold a benchmark.
    """
    if not (folder / BENCH_FILE).is_file():
        return None
    bench = Bench.load(folder / BENCH_FILE)
    return bench if batches_of(bench) else None


def family_config(folder: str | Path) -> Any:
    """Read the configuration of a folder that holds a model of a family.

    Raises:
        ValueError: if it does not.
    """
    if not Path(folder).is_dir():
        raise OSError(no_such("folder", folder))
    config = read_config(folder)
    if family_of(config) is None:
        raise ValueError(f"{folder} holds a model of type {config.model_type!r}, which is of no family of hf_loop")
    return config


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
    if facts.bench is not None:
        (folder / FIGURES_FOLDER).mkdir(exist_ok=True)
        plot_bench(facts.bench, folder / BENCH_FIGURE)
    if facts.inspection is not None:
        (folder / FIGURES_FOLDER).mkdir(exist_ok=True)
        plot_inspection(facts.inspection, folder / INSPECTION_FIGURE)
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
    sections = [_metric_section(curves) for metric in DEFAULT_TOLERANCE if (curves := results.curves_of(metric))]
    return render_card(
        "template.md",
        card_data,
        # a Python string literal; jinja's own filter would escape it for HTML
        prompt=json.dumps(results.prompt or "Your text", ensure_ascii=False),
        facts=facts,
        results=results,
        sections=sections,
        figures=figures or {},
        decoding=None if facts.bench is None else to_markdown(facts.bench, BENCH_FIGURE, level=2),
        inside=None if facts.inspection is None else describe_inspection(facts.inspection, INSPECTION_FIGURE),
        model_name=facts.repo_id.split("/")[-1],
    )


def auto_class_name(config: Any, family: Any) -> str:
    """Return the name of the Auto class that loads the model of a configuration.

    Raises:
        ValueError: if the family has no such model.
    """
    architecture = (config.architectures or [family.classes[family.loader].__name__])[0]
    for auto_class, model_class in family.classes.items():
        if model_class.__name__ == architecture:
            return auto_class
    known = ", ".join(model_class.__name__ for model_class in family.classes.values())
    raise ValueError(f"`architectures` {architecture!r} is none of the {family.name} family's: {known}")


def levels_of(config: Any) -> list[Level]:
    """Describe the schedules of a configuration, the outermost first; a decoder has none."""
    levels = []
    while (family := family_of(config)) is not None:
        fields = {name: getattr(config, name) for name in family.own_fields}
        levels.append(Level(config.model_type, family.describe(config), fields))
        config = config.backbone_config
    return levels


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
        "safe_range": safe_range(curve) if has_safe_range(curve) else None,
        "tolerance": DEFAULT_TOLERANCE[curve.metric],
    }
