"""The ways to decode that a benchmark compares, and how a command line names them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..models.exits import RULES
from ..models.loop_cache import parse_policy


# without thresholds of the user's: from about the published ones to some that let half of the loops go
THRESHOLDS: dict[str, tuple[float, ...]] = {
    "state_change": (0.3, 0.1, 0.03),
    "kl": (0.1, 0.01, 0.0005),
    "stable_argmax": (2, 3),
    "entropy": (2.0, 1.0, 0.5),
    "gate": (0.3, 0.5, 0.8),
}
DEFAULT_EXITS = ",".join(THRESHOLDS)
DEFAULT_POLICIES = "own,last_loop,cyclic:2,window:64"
PLAIN = "plain Llama"
ORACLES = {"oracle": None, "oracle, loss": 0.01}


@dataclass(frozen=True)
class BenchSetting:
    """One way to decode.

    Args:
        name (`str`): its name in tables and figures.
        kind (`str`): what it changes: `"loops"`, `"exit"`, `"policy"`, `"oracle"` (exits that are known beforehand),
            `"plain"` (a decoder of as many layers as layer calls) or `"other"` (another checkpoint).
        arguments (`dict`): arguments of `generate`, and of `forward` when text is scored.
        margin (`float`, *optional*): of an oracle, see [`oracle_loops`].
    """

    name: str
    kind: Literal["loops", "exit", "policy", "oracle", "plain", "other"]
    arguments: dict[str, Any] = field(default_factory=dict)
    margin: float | None = None


def make_settings(
    num_loops: int,
    loops: Sequence[int] | None = None,
    exits: Sequence[tuple[str, float]] = (),
    policies: Sequence[str] = (),
    others: Sequence[str] = (),
) -> list[BenchSetting]:
    """List the settings of a benchmark; the first one is what all others are compared with.

    Args:
        num_loops (`int`): the model's own number of loops, which the first setting and every adaptive one have.
        loops (`Sequence[int]`, *optional*): other fixed depths, by default the powers of two below.
        exits (`Sequence[tuple[str, float]]`, *optional*): exit rules and their thresholds.
        policies (`Sequence[str]`, *optional*): cache policies; `"own"` is that of all other settings.
        others (`Sequence[str]`, *optional*): names of other checkpoints.

    Returns:
        `list[BenchSetting]`: the settings, each of another name.
    """
    if loops is None:
        loops = [2**power for power in range(num_loops.bit_length()) if 2**power < num_loops]
    counts = [num_loops, *(count for count in loops if count != num_loops)]
    settings = [
        BenchSetting(f"{count} loop{'s' if count > 1 else ''}", "loops", {"num_loops": count}) for count in counts
    ]
    full = {"num_loops": num_loops}
    settings += [
        BenchSetting(f"{rule}:{threshold:g}", "exit", full | {"exit_criterion": rule, "exit_threshold": threshold})
        for rule, threshold in exits
    ]
    settings += [BenchSetting(name, "oracle", full, margin=margin) for name, margin in ORACLES.items()]
    settings += [
        BenchSetting(policy, "policy", full | {"cache_policy": policy}) for policy in policies if policy != "own"
    ]
    settings += [BenchSetting(PLAIN, "plain"), *(BenchSetting(name, "other") for name in others)]
    return list({setting.name: setting for setting in settings}.values())


def parse_exits(text: str) -> list[tuple[str, float]]:
    """Read exit rules such as `kl:0.01,entropy`; a rule without a threshold has several.

    Raises:
        ValueError: if there is no such rule, or a threshold is out of its range.
    """
    exits = []
    for entry in _entries(text):
        rule, colon, threshold = entry.partition(":")
        if rule not in RULES:
            raise ValueError(f"--exits: {rule!r} is no exit rule; there are {', '.join(RULES)}")
        try:
            thresholds = (float(threshold),) if colon else THRESHOLDS[rule]
        except ValueError as error:
            raise ValueError(f"--exits: {entry!r} is not RULE:THRESHOLD, as in kl:0.01") from error
        for value in thresholds:
            RULES[rule](value)
            exits.append((rule, value))
    return exits


def parse_policies(text: str) -> list[str]:
    """Read cache policies such as `last_loop,cyclic:2`.

    Raises:
        ValueError: if there is no such policy.
    """
    return [str(parse_policy(entry)) for entry in _entries(text)]


def parse_batches(text: str) -> list[int]:
    """Read batch sizes such as `1,16`.

    Raises:
        ValueError: if an entry is not a positive integer.
    """
    sizes = _entries(text)
    for entry in sizes:
        if not (entry.isascii() and entry.isdigit()) or int(entry) < 1:
            raise ValueError(f"--batch: {entry!r} is not a batch size; give integers of at least 1, as in 1,16")
    return [int(entry) for entry in sizes]


def _entries(text: str) -> list[str]:
    entries = [entry.strip() for entry in text.split(",")]
    return list(dict.fromkeys(entry for entry in entries if entry))
