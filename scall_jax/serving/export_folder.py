"""placeholder"""

from pathlib import Path

from scall_jax.serving.data import ModelData


def write(model: ModelData, path: Path) -> Path:
    raise NotImplementedError
