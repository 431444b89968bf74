"""What a report says of runs that are not there: how many, which failed, which numbers rest on fewer seeds."""

from collections.abc import Sequence

from .study_results import StudyRuns


def state_of(runs: StudyRuns) -> str:
    """Say what a study consists of, how many runs are missing, and which failed."""
    study = runs.study
    state = f"Tasks: {len(study.tasks)}. Arms: {len(study.arms)}. Seeds: {', '.join(map(str, study.seeds))}."
    if runs.num_missing:
        state += f" **{runs.num_missing} of {len(study.run_keys())} runs are missing.**"
    if runs.failures:
        # means over the seeds that went well flatter an arm that fails
        failed = [
            f"- {study.title_of(t)}, {study.title_of(a)}, seed {s}: {e}" for (t, a, s), e in runs.failures.items()
        ]
        state += "\n\nRuns that failed, and are in no mean and no difference:\n\n" + "\n".join(failed)
    return state


def seeds_of(runs: StudyRuns, arms: Sequence[str], num_found: int) -> str:
    """Say on how many seeds a number of some arms rests, if not on all."""
    study = runs.study
    num_seeds = min(1 if study.arms[arm].checkpoint else len(study.seeds) for arm in arms)
    return f", {num_found} of {num_seeds} seeds" if num_found < num_seeds else ""
