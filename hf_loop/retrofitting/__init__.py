"""Turns pretrained models into recurrent ones, and back, and loads those that others published."""

from .conversion import convert
from .exporting import export
from .families import retrofit
from .loop_adapter import add_loop_lora, load_loop_adapter, save_loop_adapter
from .unrolling import unroll


__all__ = ["add_loop_lora", "convert", "export", "load_loop_adapter", "retrofit", "save_loop_adapter", "unroll"]


def __dir__() -> list[str]:
    return __all__
