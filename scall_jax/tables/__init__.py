"""Embedding storage of varying sizes behind one interface."""

from scall_jax.tables.layout import Layout, make_layout
from scall_jax.tables.masked import masked
from scall_jax.tables.means import mean_vectors
from scall_jax.tables.packed import packed
from scall_jax.tables.resize import principal_axes, resize
from scall_jax.tables.table import Table

TABLES = {"packed": packed, "masked": masked}

__all__ = ["TABLES", "Layout", "Table", "make_layout", "masked", "mean_vectors", "packed", "principal_axes", "resize"]
