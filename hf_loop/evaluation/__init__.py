"""Measuring models over loops, and reporting what was measured."""

from .accuracy import accuracy_over_loops
from .curves import LoopCurve, safe_range
from .memory import kv_bytes_per_loop, kv_bytes_per_token
from .model_card import ModelCardFacts, render_model_card, write_model_card
from .perplexity import perplexity_over_loops
from .plots import plot_loop_curves
from .results import Results


__all__ = [
    "LoopCurve",
    "ModelCardFacts",
    "Results",
    "accuracy_over_loops",
    "kv_bytes_per_loop",
    "kv_bytes_per_token",
    "perplexity_over_loops",
    "plot_loop_curves",
    "render_model_card",
    "safe_range",
    "write_model_card",
]
