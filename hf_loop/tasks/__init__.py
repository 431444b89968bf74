"""Diagnostic tasks as `datasets` with text, each with its own tokenizer."""

from .associative_recall import associative_recall, recall_accuracy
from .coin_flips import coin_flips
from .passkey import passkey
from .passkey_text import passkey_text
from .shell_game import shell_game
from .tokenizer import word_tokenizer


__all__ = [
    "associative_recall",
    "coin_flips",
    "passkey",
    "passkey_text",
    "recall_accuracy",
    "shell_game",
    "word_tokenizer",
]
