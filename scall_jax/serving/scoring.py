"""The scores of a model as one file: a serialized StableHLO program with the vectors inside, for `jax.export`."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from scall_jax.ops.indexing import take
from scall_jax.run.folder import named_errors
from scall_jax.run.whole_file import replaced
from scall_jax.serving.data import ModelData

PLATFORMS = ("cpu", "cuda", "tpu")
"""What the program runs on."""


def write(model: ModelData, path: Path) -> Path:
    """Write the program to a file; see `Model.export_scoring`."""
    if path.exists():
        raise ValueError(f"{path} is there already: choose another name, or remove it")
    program = scoring_program(model)
    try:
        content = program.serialize()
    except ImportError:
        raise ValueError('a serialized program needs flatbuffers: pip install "scall_jax[stablehlo]"') from None
    with named_errors(path, "nothing was written; choose another name"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as file:
            file.write(content)
    return path


def scoring_program(model: ModelData) -> export.Exported:
    """The program rows i32[b] -> scores f32[b, items] of a model, for any b.

    Args:
      model: whose users have vectors, or which ranks all users by popularity.

    Returns:
      Exported: rows are those of `Model.users`, columns those of `Model.items`. A row that is none of them, -1 for
      example, has the scores of popularity.

    Raises:
      ValueError: the model has no vectors of users, because it makes them of the users' items.
    """
    popularity = jnp.asarray(model.popularity)
    if not model.personal:

        def scores(users: jax.Array) -> jax.Array:
            return jnp.broadcast_to(popularity, (users.shape[0], len(popularity)))
    elif len(model.served.users):
        vectors, items, bias = (jnp.asarray(x) for x in model.served[:3])

        def scores(users: jax.Array) -> jax.Array:
            known = (users >= 0) & (users < len(vectors))
            own = take(vectors, jnp.where(known, users, 0))
            # Accelerators round factors to fewer bits by default.
            found = jnp.matmul(own, items.T, precision=jax.lax.Precision.HIGHEST) + bias[None]
            return jnp.where(known[:, None], found, popularity[None])
    else:
        raise ValueError(f"method {model.config.method} scores by the items of a user: take `export` and its reader")

    (batch,) = export.symbolic_shape("b")
    rows = jax.ShapeDtypeStruct((batch,), np.int32)
    return export.export(jax.jit(scores), platforms=PLATFORMS)(rows)
