"""The ways to decode that a benchmark compares, and how a command line names them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..models.exits import RULES
from ..models.loop_cache import parse_policy


# of a rule without one: so strict that quality hardly changes, and so lax that half of the loops or more are saved
THRESHOLDS: dict[str, tuple[float, ...]] = {
    "state_change": (0.3, 0.1, 0.03),
    "kl": (0.1, 0.01),
    "stable_argmax": (2, 3),
    "entropy": (2.0, 0.5),
    "gate": (0.5, 0.8),
}
DEFAULT_EXITS = ",".join(THRESHOLDS)
DEFAULT_POLICIES = "own,last_loop,cyclic:2,window:32"
DEFAULT_DRAFTS = "1:4,2:4"
DEFAULT_BATCHING = "state_change:0.1"
COMPILED = "compiled"
PLAIN = "plain Llama"
ORACLES = {"oracle": None, "oracle, loss": 0.01}


@dataclass(frozen=True)
class BenchSetting:
    """One way to decode.

    Args:
        name (`str`): its name in tables and figures.
        kind (`str`): what it changes: `"loops"`, `"exit"`, `"policy"`, `"oracle"` (exits that are known beforehand),
            `"draft"` (the first loops draft tokens), `"batching"` (exits with continuous depth batching), `"compiled"`
            (with a static cache), `"plain"` (a decoder of as many layers as layer calls) or `"other"` (another
            checkpoint).
        arguments (`dict`): arguments of `forward` when text is scored, and of `generate`.
        generation (`dict`): further arguments of `generate`, which change no result.
        margin (`float`, *optional*): of an oracle, see [`oracle_loops`].
    """

    name: str
    kind: Literal["loops", "exit", "policy", "oracle", "draft", "batching", "compiled", "plain", "other"]
    arguments: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    margin: float | None = None


def make_settings(
    num_loops: int,
    loops: Sequence[int] | None = None,
    exits: Sequence[tuple[str, float]] = (),
    policies: Sequence[str] = (),
    drafts: Sequence[tuple[int, int]] = (),
    batching: Sequence[tuple[str, float]] = (),
    is_compiled: bool = False,
    others: Sequence[str] = (),
) -> list[BenchSetting]:
    """List the settings of a benchmark; the first one is what all others are compared with.

    Args:
        num_loops (`int`): the model's own number of loops, which the first setting and every adaptive one have.
        loops (`Sequence[int]`, *optional*): other fixed depths, by default the powers of two below.
        exits (`Sequence[tuple[str, float]]`, *optional*): exit rules and their thresholds.
        policies (`Sequence[str]`, *optional*): cache policies; `"own"` is that of all other settings.
        drafts (`Sequence[tuple[int, int]]`, *optional*): loops that draft, and tokens that they draft.
        batching (`Sequence[tuple[str, float]]`, *optional*): exit rules and thresholds of continuous depth batching.
        is_compiled (`bool`, *optional*, defaults to `False`): whether to compile the model once, too.
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
    settings += [BenchSetting(f"{rule}:{value:g}", "exit", full | _exit(rule, value)) for rule, value in exits]
    settings += [BenchSetting(name, "oracle", full, margin=margin) for name, margin in ORACLES.items()]
    settings += [
        BenchSetting(policy, "policy", full | {"cache_policy": policy}) for policy in policies if policy != "own"
    ]
    settings += [
        BenchSetting(
            f"draft {count}:{num_tokens}", "draft", full, {"draft_loops": count, "num_draft_tokens": num_tokens}
        )
        for count, num_tokens in drafts
    ]
    settings += [
        BenchSetting(f"batched {rule}:{threshold:g}", "batching", full | _exit(rule, threshold))
        for rule, threshold in batching
    ]
    if is_compiled:
        settings.append(BenchSetting(COMPILED, "compiled", full, {"cache_implementation": "static"}))
    settings += [BenchSetting(PLAIN, "plain"), *(BenchSetting(name, "other") for name in others)]
    return list({setting.name: setting for setting in settings}.values())


def _exit(rule: str, threshold: float) -> dict[str, Any]:
    return {"exit_criterion": rule, "exit_threshold": threshold}


def parse_exits(text: str, option: str = "--exits") -> list[tuple[str, float]]:
    """Read exit rules such as `kl:0.01,entropy`; a rule without a threshold has several.

    Args:
        text (`str`): the rules.
        option (`str`, *optional*, defaults to `"--exits"`): where they stand, for the message.

    Raises:
        ValueError: if there is no such rule, or a threshold is out of its range.
    """
    exits = []
    for entry in _entries(text):
        rule, colon, threshold = entry.partition(":")
        if rule not in RULES:
            raise ValueError(f"{option}: {rule!r} is no exit rule; there are {', '.join(RULES)}")
        try:
            thresholds = (float(threshold),) if colon else THRESHOLDS[rule]
        except ValueError as error:
            raise ValueError(f"{option}: {entry!r} is not RULE:THRESHOLD, as in kl:0.01") from error
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


def parse_drafts(text: str) -> list[tuple[int, int]]:
    """Read drafts such as `1:4,2:4`: loops, and tokens that they draft.

    Raises:
        ValueError: if an entry is not two positive integers.
    """
    drafts = []
    for entry in _entries(text):
        numbers = entry.split(":")
        if len(numbers) != 2 or not all(number.isdecimal() and int(number) > 0 for number in numbers):
            raise ValueError(f"--draft: {entry!r} is not LOOPS:TOKENS, as in 1:4")
        drafts.append((int(numbers[0]), int(numbers[1])))
    return drafts


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
