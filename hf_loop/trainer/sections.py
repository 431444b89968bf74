"""The sections of a recipe and what their fields may be."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from ..models.configuration_feedback import FeedbackConfig
from ..models.configuration_hierarchical import HierarchicalPuzzleConfig
from ..models.configuration_hrm import HrmBackboneConfig
from ..models.configuration_recurrent import RecurrentConfig
from ..models.configuration_sleep import SleepConfig


# tasks of text, which take the tokenizer of the model
TEXT_TASKS = ("passkey_text",)
# tasks whose rows are puzzles with an answer in every cell, for models that work in segments
PUZZLE_TASKS = ("sudoku", "maze", "puzzle_csv")
LOWEST_VALUES = {
    "num_train_rows": 1,
    "block_size": 2,
    "num_eval_rows": 0,
    "repeated_segment": 0,
    "repeated_segment_weight": 0,
}


@dataclass
class ModelSection:
    """Section `model` of a looped model: exactly one of `backbone` and `pretrained`, and how the layers are looped.

    Attributes:
        family: `"looped"`, which need not be said.
        backbone: Config of a new backbone: `model_type` and the fields of that model's config. `vocab_size` and the
            special token ids come from the tokenizer where they are not given.
        pretrained: Folder or Hub name of a pretrained causal language model to loop; or of a looped one, which keeps
            its layout and goes on training.
        num_prelude_layers: Layers that run once, before the loop. `None` means none, or with `core_layers` those up
            to the core.
        num_coda_layers: Layers that run once, after the loop. `None` as above.
        core_layers: Of a pretrained model, the layers that loop: `FIRST-LAST`, counted from 0. Layers between a given
            prelude or coda and the core are dropped.
        num_loops: The depth that the saved model uses, and the mean of the training depth. `None` means 4, or a looped
            model's own.
        injection: How the prelude's output enters every loop.
        state_init: What the state starts from. `None` takes `"input"`, or with `pretrained` what keeps one loop equal
            to the pretrained model.
        loop_norm: The norm that closes every loop.
        loop_update: Whether a loop replaces the state or moves it by a part of the way.
        fold: Of a pretrained model, whether the core's layers are shared between the loops, each the `average` of
            those it stands for or the `first` of them.
        loop_lora_rank: Rank of the update that every loop adds to the core; 0 means none.
    """

    family: Literal["looped"] = "looped"
    backbone: dict[str, Any] | None = None
    pretrained: str | None = None
    num_prelude_layers: int | None = None
    num_coda_layers: int | None = None
    core_layers: str | None = None
    num_loops: int | None = None
    injection: Literal["none", "add", "concat", "diagonal"] = "none"
    state_init: Literal["input", "zeros", "normal", "learned"] | None = None
    loop_norm: Literal["none", "own", "final"] = "none"
    loop_update: Literal["replace", "damped"] = "replace"
    fold: Literal["average", "first"] | None = None
    loop_lora_rank: int = 0

    def __post_init__(self) -> None:
        _check_source(self)
        for name in ("core_layers", "fold"):
            value = getattr(self, name)
            if self.backbone is not None and value is not None:
                raise ValueError(
                    f"model.{name} says what becomes of the layers of model.pretrained, got {value!r} for a new "
                    "backbone, whose layers between prelude and coda are the core"
                )


@dataclass
class FeedbackSection:
    """Section `model` of a feedback model: exactly one of `backbone` and `pretrained`, and how the memory works.

    Attributes:
        family: `"feedback"`.
        backbone: Config of a new backbone, as for a looped model.
        pretrained: Folder or Hub name of a pretrained causal language model to give a memory; or of a feedback model,
            which goes on training.
        feedback: Fields of [`FeedbackConfig`](hf_loop.FeedbackConfig), such as `block_size`.
        lora_rank: Rank of the updates that are trained in place of the weights (LoRA, arXiv 2106.09685), beside the
            memory's first vectors; 0 trains all weights. The saved model has the updates merged into its weights.
        lora_alpha: The updates are scaled by `lora_alpha / lora_rank`. `None` means the rank, so no scaling.
        lora_target_modules: Names, or their ends, of the linear maps that are updated. `None` means all linear maps
            of the layers.
    """

    family: Literal["feedback"] = "feedback"
    backbone: dict[str, Any] | None = None
    pretrained: str | None = None
    feedback: dict[str, Any] = field(default_factory=dict)
    lora_rank: int = 0
    lora_alpha: float | None = None
    lora_target_modules: list[str] | None = None

    def __post_init__(self) -> None:
        _check_source(self)
        check_keys("model.feedback", self.feedback, _own_fields(FeedbackConfig))
        if self.lora_rank < 0:
            raise ValueError(f"model.lora_rank must not be negative, got {self.lora_rank}")
        for name in ("lora_alpha", "lora_target_modules"):
            if self.lora_rank == 0 and getattr(self, name) is not None:
                raise ValueError(f"model.{name} needs model.lora_rank of at least 1, got {getattr(self, name)!r}")


@dataclass
class SleepSection:
    """Section `model` of a sleep model: exactly one of `backbone` and `pretrained`, and how it sleeps.

    Attributes:
        family: `"sleep"`.
        backbone: Config of a new backbone, as for a looped model.
        pretrained: Folder or Hub name of a pretrained causal language model to let sleep; or of a sleep model, which
            goes on training.
        sleep: Fields of [`SleepConfig`](hf_loop.SleepConfig), such as `sleep_window`.
    """

    family: Literal["sleep"] = "sleep"
    backbone: dict[str, Any] | None = None
    pretrained: str | None = None
    sleep: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_source(self)
        check_keys("model.sleep", self.sleep, _own_fields(SleepConfig))


@dataclass
class HierarchicalSection:
    """Section `model` of a puzzle model: exactly one of `preset` and `pretrained`.

    Attributes:
        family: `"hierarchical"`.
        preset: A published model by name, with fresh weights: `hrm`, `trm`, `urm` or `plain`.
        pretrained: Folder or Hub name of a puzzle model, which goes on training.
        hierarchical: Fields of [`HierarchicalPuzzleConfig`](hf_loop.HierarchicalPuzzleConfig) to set otherwise; of a
            preset, also those of its layers, such as `hidden_size` or `token_mixer`. The vocabulary and the length of
            a puzzle come from the data where they are not given.
    """

    family: Literal["hierarchical"] = "hierarchical"
    preset: Literal["hrm", "trm", "urm", "plain"] | None = None
    pretrained: str | None = None
    hierarchical: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_one_of("model", self, ("preset", "pretrained"))
        shared = {item.name for item in fields(RecurrentConfig)}
        known = [item.name for item in fields(HierarchicalPuzzleConfig) if item.name not in shared]
        if self.pretrained is None:
            known += [item.name for item in fields(HrmBackboneConfig) if item.name not in known]
        check_keys("model.hierarchical", self.hierarchical, known)


@dataclass
class DataSection:
    """Section `data`: exactly one of `task`, `files` and `dataset`.

    Attributes:
        task: Name of a diagnostic task of `hf_loop.tasks`; it brings its own tokenizer.
        task_options: Options of the task.
        num_train_rows: Rows of the task to generate for training.
        files: Local files, patterns such as `texts/*.txt`, or folders, relative to the current folder. All of one
            kind: `.txt` or no suffix (one text a file), `.jsonl` or `.json` (one object a text), or `.parquet`.
        dataset: Folder or Hub name of a dataset with text.
        dataset_config: Its configuration.
        split: Its split.
        text_column: The column of text of a dataset, of JSON or of Parquet files.
        streaming: Read the text while training instead of packing it before. The end of the text is followed by its
            start; `training.max_steps` says when the run ends.
        answer_column: Of texts that are questions, the column with their answers, which alone are learned.
        repeated_segment: Tokens of a random stretch that is repeated at the end of each training row; 0 for none.
        repeated_segment_weight: Weight of these tokens in the loss; all others have 1.
        tokenizer: Folder or Hub name of the tokenizer, or `bytes` for one token per byte. `None` takes the one of
            `model.pretrained`. Of the tasks, only `passkey_text` needs one.
        block_size: Tokens per training row; texts are joined by the end-of-text token and cut to this length.
        num_eval_rows: Rows held back for evaluation: the last ones, when streaming the first ones; for a task,
            generated apart from the training rows.
    """

    task: str | None = None
    task_options: dict[str, Any] = field(default_factory=dict)
    num_train_rows: int = 10_000
    files: list[str] | None = None
    dataset: str | None = None
    dataset_config: str | None = None
    split: str = "train"
    text_column: str = "text"
    streaming: bool = False
    answer_column: str | None = None
    repeated_segment: int = 0
    repeated_segment_weight: float = 0.1
    tokenizer: str | None = None
    block_size: int = 1024
    num_eval_rows: int = 0

    def __post_init__(self) -> None:
        _require_one_of("data", self, ("task", "files", "dataset"))
        for name, low in LOWEST_VALUES.items():
            if getattr(self, name) < low:
                raise ValueError(f"data.{name} must be at least {low}, got {getattr(self, name)}")
        if self.task is not None and self.task not in TEXT_TASKS and self.tokenizer is not None:
            raise ValueError(f"data.tokenizer cannot be chosen for a task, got {self.tokenizer!r}")
        if self.task is not None and self.streaming:
            raise ValueError("data.streaming is for text, and the rows of a task are generated, got streaming=true")
        for name in ("answer_column", "repeated_segment"):
            if (self.task is not None or self.streaming) and getattr(self, name):
                raise ValueError(
                    f"data.{name} is for text that is packed before training, got {getattr(self, name)!r}"
                )


def check_keys(where: str, values: Iterable[str], known: Sequence[str]) -> None:
    """Refuses a key that is not known.

    Raises:
        ValueError: Names the key, where it stands, and the nearest known one.
    """
    for key in values:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
            raise ValueError(f"unknown key '{key}' in {where}{hint}")


def _require_one_of(section: str, values: Any, names: tuple[str, ...]) -> None:
    given = [name for name in names if getattr(values, name) is not None]
    if len(given) != 1:
        choices = ", ".join(f"{section}.{name}" for name in names)
        raise ValueError(f"{section}: give exactly one of {choices}, got {', '.join(given) or 'none'}")


def _own_fields(config_class: type[RecurrentConfig]) -> list[str]:
    """The fields of a family's config that not all families have."""
    shared = {item.name for item in fields(RecurrentConfig)}
    return [item.name for item in fields(config_class) if item.name not in shared]


def _check_source(section: ModelSection | FeedbackSection | SleepSection) -> None:
    _require_one_of("model", section, ("backbone", "pretrained"))
    if section.backbone is not None and "model_type" not in section.backbone:
        raise ValueError("model.backbone must name its model_type, for example model_type: llama")
