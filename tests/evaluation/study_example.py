"""A study that takes seconds, and runs of it as if they had been measured."""

from typing import Any

from hf_loop.evaluation.study import Study, make_study
from hf_loop.evaluation.study_measure import Cell
from hf_loop.evaluation.study_results import MeasuredRun, StudyRuns


STUDY: dict[str, Any] = {
    "title": "Loops against layers",
    "question": "Do loops help?",
    "seeds": [0, 1, 2],
    "base": {
        "model": {
            "family": "looped",
            "backbone": {
                "model_type": "llama",
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "max_position_embeddings": 64,
                "tie_word_embeddings": False,
            },
        },
        "training": {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-3},
    },
    "tasks": {
        "addition": {
            "task_options": {"difficulty": 3},
            "test_options": {"test_difficulties": [2, 3, 4]},
            "num_test_rows": 6,
            "expected": "Loops should help.",
        },
    },
    "arms": {
        "looped": {
            "model": {"config": {"num_loops": 2}},
            "training": {"loop_sampling": "fixed"},
            "loops": [1, 2, 4],
            "controls": True,
        },
        "once": {
            "model": {"config": {"num_loops": 1}},
            "training": {"loop_sampling": "fixed"},
            "steps": "equal_compute",
        },
    },
    "limits": ["It is small."],
}


def small_study(**changes: Any) -> Study:
    """The study, with other values of some of its keys."""
    return make_study(STUDY | changes)


def measured_run(accuracies: dict[tuple[int | None, int], float], trained_loops: int, **fields: Any) -> MeasuredRun:
    """A run with these accuracies by loops and difficulty, of 100 rows each."""
    cells = [
        Cell(loops, 1, difficulty, 100, round(100 * share), 1e3 * (loops or 1))
        for (loops, difficulty), share in accuracies.items()
    ]
    values = {"settings": {}, "num_parameters": 10, "num_steps": 3, "training_flops": 1e6, "seconds": 2.0}
    values |= {"guessing": {2: 0.1, 3: 0.1, 4: 0.1}, "cells": cells, "trained_loops": trained_loops}
    return MeasuredRun(**values | fields)


def small_runs() -> StudyRuns:
    """Runs in which the looped arm is better by 0.5, and more loops solve harder rows."""
    study = small_study()
    runs = {}
    for seed in study.seeds:
        shift = 0.01 * seed
        looped = {(loops, level): 0.6 + shift for loops in (1, 2) for level in (2, 3)}
        looped |= {(4, 2): 0.9, (4, 3): 0.5, (1, 4): 0.0, (2, 4): 0.2, (4, 4): 0.8}
        runs["addition", "looped", seed] = measured_run(looped, 2, state_growth=[1.0, 2.0, 4.0, 8.0])
        once = {(1, 2): 0.1 + 2 * shift, (1, 3): 0.1, (1, 4): 0.2}
        runs["addition", "once", seed] = measured_run(once, 1)
    return StudyRuns(study, runs)
