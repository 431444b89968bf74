"""`hf-loop nodes`: which steps of a computation a model gets right, and at which loop each becomes readable."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..output_folders import folder_lock
from ..paths import name_of
from .load import default_device, load_config, load_model, load_tokenizer
from .options import FieldValues, Quiet
from .output import quiet_libraries


if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedTokenizerBase

NODES_FILE, FIGURE_FILE, TABLES_FILE = "nodes.json", "nodes.png", "nodes.md"


def nodes(
    model: Annotated[str, typer.Argument(help="A folder with a looped model, or a repository on the Hub.")],
    task: Annotated[
        str | None,
        typer.Option(help="A task with computation graphs, such as addition.", show_default="the model's recipe"),
    ] = None,
    options: FieldValues = None,
    num_rows: Annotated[int, typer.Option(min=8, help="Test rows of each difficulty.")] = 200,
    num_train_rows: Annotated[int, typer.Option(min=1, help="Training rows to count computations in.")] = 20_000,
    loops: Annotated[int | None, typer.Option(min=1, help="Loops to run.", show_default="the model's own")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the rows.")] = 0,
    output_dir: Annotated[
        Path | None,
        typer.Option(help=f"Where {NODES_FILE}, {TABLES_FILE} and {FIGURE_FILE} go.", show_default="nodes/MODEL"),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Measure compositionality: errors by node, computations seen in training, and the loop that resolves a node."""
    from ..field_values import parse_field_values

    given = parse_field_values(options or [])
    name = name_of(model)
    folder = output_dir or Path("nodes") / name.replace("/", "--")
    task_name, task_options = _task_of(model, task)

    from ..analysis import plot_node_probes
    from ..analysis.node_report import predicted_values, probe_graph_nodes
    from ..evaluation.compositionality import compositionality
    from ..files import write_text

    if quiet:
        quiet_libraries()
    load_config(model)
    tokenizer = load_tokenizer(model)
    splits = _rows(task_name, task_options | given, num_train_rows, num_rows, seed, tokenizer)
    with folder_lock(folder):
        language_model = load_model(model).to(default_device())
        rows = splits["test"]
        # of one difficulty, the hardest of training: they share their nodes
        hardest = max(splits["train"]["difficulty"])
        shared = rows.filter(lambda row: row["difficulty"] == hardest)
        found = compositionality(rows, predicted_values(language_model, tokenizer, rows, loops), splits["train"])
        probes = probe_graph_nodes(language_model, shared, loops, seed)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / NODES_FILE, json.dumps(probes.to_dict(), indent=1) + "\n")
        write_text(folder / TABLES_FILE, found.to_markdown())
        plot_node_probes(probes, folder / FIGURE_FILE)
    print(found.to_markdown())
    for written in (NODES_FILE, TABLES_FILE, FIGURE_FILE):
        print(folder / written)


def _task_of(model: str, task: str | None) -> tuple[str, dict[str, Any]]:
    """Return the task and its options, from the recipe beside the model unless it is named."""
    recipe = Path(model) / "recipe.yaml"
    if task is not None:
        return task, {}
    if not recipe.is_file():
        raise ValueError(f"--task must be given: {model} has no recipe.yaml that tells the task it was trained on")
    import yaml

    from ..files import read_text

    data = yaml.safe_load(read_text(recipe)).get("data", {})
    if data.get("task") is None:
        raise ValueError(f"--task must be given: {recipe} trains on text")
    return data["task"], data.get("task_options", {})


def _rows(
    task: str,
    task_options: dict[str, Any],
    num_train_rows: int,
    num_rows: int,
    seed: int,
    tokenizer: "PreTrainedTokenizerBase",
) -> "DatasetDict":
    from ..trainer.data import make_task_rows

    # a curriculum would make the training rows easier than most that were read
    task_options = {name: value for name, value in task_options.items() if name != "curriculum"}
    levels = task_options.get("test_difficulties")
    first, last = task_options.get("min_difficulty", 1), task_options.get("difficulty", 1)
    num_levels = len(levels) if levels else max(1, last - first + 1)
    splits, task_tokenizer = make_task_rows(task, num_train_rows, num_levels * num_rows, seed, task_options)
    if "graph" not in splits["test"].column_names:
        raise ValueError(f"--task: the rows of {task} have no computation graphs")
    if tokenizer.get_vocab() != task_tokenizer.get_vocab():
        raise ValueError(f"--task: the model's tokenizer is not the one of {task}; it was trained on something else")
    return splits
