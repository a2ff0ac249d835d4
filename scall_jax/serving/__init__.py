"""A model taken out of a run folder: recommendations by the caller's own ids, and a copy that needs no JAX."""

from scall_jax.serving.data import ModelBudget
from scall_jax.serving.groups import Group
from scall_jax.serving.load import load
from scall_jax.serving.model import Model

__all__ = ["Group", "Model", "ModelBudget", "load"]
