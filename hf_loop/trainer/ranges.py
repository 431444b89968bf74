"""What numbers the fields of a recipe can have."""

from collections.abc import Mapping
from typing import Any


MOST = (1 << 31) - 1
# of single precision
LARGEST = 3e38
POSITIVE = (1e-30, LARGEST)
# of `numpy` and `torch`, which take no other seed
SEEDS = (0, (1 << 32) - 1)

# by section and field, the least and the most; other numbers are at least 0
RANGES: dict[str, tuple[float, float]] = {
    "model.lora_rank": (0, 1 << 16),
    "model.lora_alpha": POSITIVE,
    "data.num_train_rows": (1, MOST),
    "data.block_size": (2, MOST),
    **{
        f"training.{name}": (1, MOST)
        for name in (
            *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
            *("eval_accumulation_steps", "torch_empty_cache_steps", "save_total_limit", "dataloader_prefetch_factor"),
            *("ddp_bucket_cap_mb", "ddp_timeout"),
        )
    },
    **{
        f"training.{name}": POSITIVE
        for name in ("num_train_epochs", "logging_steps", "save_steps", "eval_steps", "adam_epsilon")
    },
    **{f"training.{name}": (0, 1) for name in ("adam_beta1", "adam_beta2", "label_smoothing_factor")},
    **{f"training.{name}": SEEDS for name in ("seed", "data_seed")},
    # -1 is none
    "training.max_steps": (-1, MOST),
    # each is a process
    "training.dataloader_num_workers": (0, 1 << 10),
    "training.local_rank": (-1, MOST),
}


def check_ranges(section: str, values: Mapping[str, Any]) -> None:
    """Refuse numbers that the fields of a section cannot have.

    Args:
        section (`str`): the name of the section.
        values (`Mapping[str, Any]`): its values by the names of their fields.

    Raises:
        ValueError: if a number is out of range, infinite, or not a number.
    """
    for name, value in values.items():
        least, most = RANGES.get(f"{section}.{name}", (0, LARGEST if isinstance(value, float) else MOST))
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # of what is not a number both comparisons are false
        if is_number and not least <= value <= most:
            start = "above 0" if least == POSITIVE[0] else f"at least {least}"
            end = "" if most in (MOST, LARGEST) and value < least else f" and at most {most}"
            raise ValueError(f"{section}.{name} must be {start}{end}, got {value!r}")
