"""Implicit alternating least squares with weights that fade, under sizes and a budget."""

from scall_jax.recommenders.ials.config import IalsConfig

__all__ = ["IalsConfig"]
