"""Diagnostic tasks as `datasets` with text, each with its own tokenizer."""

from .associative_recall import associative_recall, recall_accuracy
from .coin_flips import coin_flips
from .passkey import passkey
from .passkey_text import passkey_text
from .rule_110 import rule_110, rule_110_accuracy
from .shell_game import shell_game
from .successor import successor, successor_accuracy
from .tokenizer import word_tokenizer


__all__ = [
    "associative_recall",
    "coin_flips",
    "passkey",
    "passkey_text",
    "recall_accuracy",
    "rule_110",
    "rule_110_accuracy",
    "shell_game",
    "successor",
    "successor_accuracy",
    "word_tokenizer",
]
