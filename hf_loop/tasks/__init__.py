"""Diagnostic tasks as `datasets` with text, each with its own tokenizer."""

from .coin_flips import coin_flips
from .shell_game import shell_game
from .tokenizer import word_tokenizer


__all__ = ["coin_flips", "shell_game", "word_tokenizer"]
