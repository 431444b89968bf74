"""Turns pretrained models into recurrent ones."""

from .looped import retrofit


__all__ = ["retrofit"]
