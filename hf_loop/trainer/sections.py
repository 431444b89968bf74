"""The sections of a recipe and what their fields may be."""

from dataclasses import dataclass, field
from typing import Any

from ..field_values import check_names, check_types, field_types
from ..models import FAMILIES, Family
from ..models.hierarchical_presets import PRESETS
from ..retrofitting.families import retrofit_fields
from .ranges import check_ranges


# tasks of text, which take the tokenizer of the model
TEXT_TASKS = ("passkey_text",)
# tasks whose rows are puzzles with an answer in every cell, for models that work in segments
PUZZLE_TASKS = ("sudoku", "maze", "puzzle_csv")


@dataclass
class ModelSection:
    """Section `model`: one of `backbone`, `preset` and `pretrained`, and the fields of the family's configuration.

    Args:
        family (`str`): the kind of model, by the name that its record has (`hf_loop.models.FAMILIES`).
        backbone (`dict`, *optional*): config of a new backbone: `model_type` and fields of that model's config.
            `vocab_size` and the special token ids come from the tokenizer where they are not given.
        preset (`str`, *optional*): a published hierarchical model by name, with fresh weights.
        pretrained (`str`, *optional*): folder or Hub name of a model to train: a pretrained causal language model,
            which [`retrofit`](hf_loop.retrofit) makes one of the family, or a model of the family, which goes on.
        config (`dict`): fields of the family's configuration, such as `num_loops`; of a `preset`, also those of its
            layers; of a plain `pretrained`, all that `retrofit` takes.
        lora_rank (`int`): of a feedback model, the rank of the updates that are trained in place of the weights (LoRA,
            https://huggingface.co/papers/2106.09685), beside the memory's first vectors; 0 trains all weights. The
            saved model has the updates merged into its weights.
        lora_alpha (`float`, *optional*): the updates are scaled by `lora_alpha / lora_rank`; the rank by default, so
            no scaling.
        lora_target_modules (`list[str]`, *optional*): names, or their ends, of the linear maps that are updated; all
            of the layers by default.

    Raises:
        ValueError: names the key.
    """

    family: str = "looped"
    backbone: dict[str, Any] | None = None
    preset: str | None = None
    pretrained: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    lora_rank: int = 0
    lora_alpha: float | None = None
    lora_target_modules: list[str] | None = None

    def __post_init__(self) -> None:
        _require_one_of("model", self, ("backbone", "preset", "pretrained"))
        if self.backbone is not None and "model_type" not in self.backbone:
            raise ValueError("model.backbone must name its model_type, for example model_type: llama")
        presets = list(PRESETS) if hasattr(self.record.config, "from_preset") else []
        if self.preset is not None and self.preset not in presets:
            raise ValueError(
                f"model.preset of model.family={self.family} must be {' | '.join(presets) or 'left out'}, "
                f"got {self.preset!r}"
            )
        self._check_config()
        check_ranges("model", vars(self))
        if self.lora_rank and self.family != "feedback":
            raise ValueError(f"model.lora_rank is for model.family=feedback, got {self.lora_rank} and {self.family}")
        for name in ("lora_alpha", "lora_target_modules"):
            if self.lora_rank == 0 and getattr(self, name) is not None:
                raise ValueError(f"model.{name} needs model.lora_rank of at least 1, got {getattr(self, name)!r}")

    @property
    def record(self) -> Family:
        """What its family is."""
        return FAMILIES[self.family]

    def _check_config(self) -> None:
        """Check the fields of `config`, and bring them into the form that configurations take."""
        types = {name: field_types(self.record.config)[name] for name in self.record.own_fields}
        taken = {name: hint for name, (hint, _) in retrofit_fields(self.record).items()}
        if self.pretrained is not None:
            types = taken
        # those a recipe may have for a pretrained model, which an override replaces by a new one
        others = taken.keys() - types.keys()
        self.config = {name: value for name, value in self.config.items() if name not in others or value is not None}
        for name in others & self.config.keys():
            raise ValueError(
                f"model.config.{name} says what becomes of the layers of model.pretrained, got {self.config[name]!r} "
                "for a new model"
            )
        # the layers of a preset have fields, too, which the preset checks
        if self.preset is None:
            check_names(self.config, types, "model.config")
        own = {name: value for name, value in self.config.items() if name in types}
        self.config |= check_types(own, types, "model.config.{}")


def check_model_keys(family: str, values: dict[str, Any]) -> None:
    """Refuse the keys that the families' sections `model` had of their own, each with what is written now.

    Args:
        family (`str`): the family of the section.
        values (`dict`): the section.

    Raises:
        ValueError: names the key, and the new one.
    """
    own = retrofit_fields(FAMILIES[family])
    for key in values:
        if key in ("feedback", "sleep", "hierarchical"):
            raise ValueError(f"model.{key} is called model.config for every family")
        if key in own:
            raise ValueError(f"model.{key} is a field of the configuration: give it as model.config.{key}")
    preset = PRESETS.get(str(values.get("preset")))
    if family == "hierarchical" and preset is not None and preset.schedule.keys() - own.keys():
        raise ValueError(f"model.preset={values['preset']} solves puzzles, which is model.family=puzzle")


@dataclass
class DataSection:
    """Section `data`: exactly one of `task`, `files` and `dataset`.

    Args:
        task (`str`, *optional*): name of a diagnostic task of `hf_loop.tasks`; it brings its own tokenizer.
        task_options (`dict`): options of the task.
        num_train_rows (`int`): rows of the task to generate for training.
        thoughts (`bool`): of a task whose rows have intermediate steps, put them between prompt and answer, to be
            learned and written as a chain of thought.
        files (`list[str]`, *optional*): local files, patterns such as `texts/*.txt`, or folders, relative to the
            current folder. All of one kind: `.txt` or no suffix (one text a file), `.jsonl` or `.json` (one object a
            text), `.csv` or `.parquet`, compressed (`.gz`, `.bz2`, `.zst`) or not. Hidden files are left out.
        dataset (`str`, *optional*): Hub name of a dataset with text, its folder, or one that `save_to_disk` wrote.
        dataset_config (`str`, *optional*): its configuration.
        split (`str`): its split.
        text_column (`str`): the column of text of a dataset, of JSON, CSV or Parquet files, or of conversations. By
            default `text`, and where there is none the columns of conversations (`messages`), of prompts and
            completions, or of instructions; of these the answers alone are learned.
        streaming (`bool`): read the text while training instead of packing it before. The end of the text is followed
            by its start; `training.max_steps` says when the run ends.
        answer_column (`str`, *optional*): of texts that are questions, the column with their answers, which alone are
            learned.
        repeated_segment (`int`): tokens of a random stretch that is repeated at the end of each training row; 0 for
            none.
        repeated_segment_weight (`float`): weight of these tokens in the loss; all others have 1.
        tokenizer (`str`, *optional*): folder or Hub name of the tokenizer, or `bytes` for one token per byte. `None`
            takes the one of `model.pretrained`. Of the tasks, only `passkey_text` needs one.
        block_size (`int`): tokens per training row; texts are joined by the end-of-text token and cut to this length.
        num_eval_rows (`int`): rows held back for evaluation: the last ones, when streaming the first ones; for a task,
            generated apart from the training rows.

    Raises:
        ValueError: names the key.
    """

    task: str | None = None
    task_options: dict[str, Any] = field(default_factory=dict)
    num_train_rows: int = 10_000
    thoughts: bool = False
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
        check_ranges("data", vars(self))
        if self.task is not None and self.task not in TEXT_TASKS and self.tokenizer is not None:
            raise ValueError(f"data.tokenizer cannot be chosen for a task, got {self.tokenizer!r}")
        if self.task is not None and self.streaming:
            raise ValueError("data.streaming is for text, and the rows of a task are generated, got streaming=true")
        if self.thoughts and self.task is None:
            raise ValueError("data.thoughts is for the rows of a task, got true and a text")
        for name in ("answer_column", "repeated_segment"):
            is_refused = self.task is not None or (self.streaming and name == "repeated_segment")
            if is_refused and getattr(self, name):
                raise ValueError(
                    f"data.{name} is for text that is packed before training, got {getattr(self, name)!r}"
                )
        if self.files == []:
            raise ValueError("data.files must name at least one file, got []")


def _require_one_of(section: str, values: Any, names: tuple[str, ...]) -> None:
    given = [name for name in names if getattr(values, name) is not None]
    if len(given) != 1:
        choices = ", ".join(f"{section}.{name}" for name in names)
        raise ValueError(f"{section}: give exactly one of {choices}, got {', '.join(given) or 'none'}")
