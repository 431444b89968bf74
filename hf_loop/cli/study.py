"""`hf-loop study`: train and measure kinds of models side by side, and report what they show."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..output_folders import folder_lock
from ..paths import name_of
from .options import Quiet
from .output import quiet_libraries


if TYPE_CHECKING:
    from ..evaluation.study import Study
    from ..evaluation.study_plan import Plan

STUDY_FILE = "study.yaml"
# runs of recipes print nothing, and a bar of each would end in the others'
TERA = 1e12

study = typer.Typer(no_args_is_help=True, help="Compare kinds of models on tasks: run a study, and report it.")


@study.command()
def run(
    file: Annotated[Path, typer.Argument(help="The study, a YAML file.")],
    output_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where the runs and the report go; a study that was interrupted there goes on.",
            show_default="outputs/studies/FILE",
        ),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Runs at the same time.", show_default="processors")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each run.")] = 1,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="A recurrent model to measure beside the arms as it is: a folder, or a repository on the Hub."
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds, separated by commas.", show_default="those of the file")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a key of the study; may be repeated."),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Run the study's tiny debug variant.")] = False,
    quiet: Quiet = False,
) -> None:
    """Run what is missing of a study, and write its report."""
    folder = output_dir or Path("outputs/studies") / file.stem
    if quiet:
        quiet_libraries()

    from ..evaluation.study import load_study, make_study
    from ..evaluation.study_plan import plan_study
    from ..evaluation.study_run import check_test_rows, missing_keys
    from ..files import write_text

    checked = load_study(file, list(overrides or []), debug)
    if seeds is not None:
        checked = make_study(checked.source | {"seeds": _parse_seeds(seeds)})
    if checkpoint is not None:
        checked = make_study(checked.source | {"arms": checked.source["arms"] | _checkpoint_arm(checkpoint)})
    num_processes = processes or os.cpu_count() or 1
    with folder_lock(folder):
        # what cannot be made fails here, and not after the first training
        for task in checked.tasks:
            check_test_rows(checked, task)
        plans = plan_study(checked)
        missing = missing_keys(checked, folder, plans)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / STUDY_FILE, _to_yaml(checked.source))
        if not quiet:
            _print_plan(checked, plans, len(missing))
        failures = _run(checked, folder, plans, num_processes, threads, quiet) if missing else []
        if len(failures) < len(missing) or len(missing) < len(checked.run_keys()):
            _write_report(checked, folder)
    if failures:
        raise ValueError(f"{len(failures)} of {len(missing)} runs failed; the first: {failures[0]}")


@study.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a study.")],
    quiet: Quiet = False,
) -> None:
    """Write the report of a study's runs so far, without running any."""
    if quiet:
        quiet_libraries()
    if not (folder / STUDY_FILE).is_file():
        raise ValueError(f"{folder} has no {STUDY_FILE}; give a folder that hf-loop study run wrote")

    from ..evaluation.study import load_study

    with folder_lock(folder):
        _write_report(load_study(folder / STUDY_FILE), folder)


def _run(
    checked: "Study",
    folder: Path,
    plans: "dict[tuple[str, str], Plan]",
    num_processes: int,
    threads: int,
    quiet: bool,
) -> list[str]:
    from tqdm.auto import tqdm

    from ..evaluation.study_run import missing_keys, run_study

    missing = missing_keys(checked, folder, plans)
    total = sum(plans[key.task, key.arm].training_flops for key in missing)
    failures = []
    # time left by compute: runs of one study take seconds or minutes
    layout = "{desc}: {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left{postfix}"
    with tqdm(total=total / TERA, disable=quiet, desc=f"{len(missing)} runs", bar_format=layout) as bar:
        for finished in run_study(checked, folder, plans, num_processes, threads):
            bar.update(finished.flops / TERA)
            name = " ".join(map(str, finished.key))
            bar.set_postfix_str(f"last: {name}")
            if finished.error is not None:
                failures.append(f"{name}: {finished.error}")
                bar.write(f"{time.strftime('%H:%M:%S')} failed: {failures[-1]}")
    return failures


def _write_report(checked: "Study", folder: Path) -> None:
    from ..evaluation.study_report import main_table, write_report
    from ..evaluation.study_results import StudyRuns

    runs = StudyRuns.load(checked, folder)
    files = write_report(runs, folder, f"hf-loop study run {STUDY_FILE}")
    print(main_table(runs))
    for written in files:
        print(written)


def _print_plan(checked: "Study", plans: "dict[tuple[str, str], Plan]", num_missing: int) -> None:
    from rich.console import Console

    total = sum(plans[key.task, key.arm].training_flops for key in checked.run_keys())
    Console(stderr=True).print(
        f"{checked.title}: {len(checked.tasks)} tasks, {len(checked.arms)} arms, {len(checked.seeds)} seeds; "
        f"{num_missing} of {len(checked.run_keys())} runs to do; {total:.1e} floating-point operations of training",
        markup=False,
    )


def _checkpoint_arm(name: str) -> dict:
    from .load import check_language_model, load_config

    config = load_config(name)
    check_language_model(config, name)
    own = getattr(config, "num_loops", None)
    # up to twice its own loops, by powers of two
    loops = None if own is None else sorted({own, *(2**power for power in range(20) if 2**power <= 2 * own)})
    own_name = name_of(name)
    return {own_name.replace("/", "--"): {"title": own_name, "checkpoint": name, "loops": loops}}


def _parse_seeds(text: str) -> list[int]:
    try:
        return [int(entry) for entry in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--seeds: {text!r} is no list of integers; give for example 0,1,2") from error


def _to_yaml(source: dict) -> str:
    import yaml

    return yaml.safe_dump(source, sort_keys=False, allow_unicode=True)
