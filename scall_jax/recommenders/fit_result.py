"""What a fit takes and gives, by gradients or in closed form."""

from typing import Any, NamedTuple, Protocol

import jax

from scall_jax.recommenders.train_step import StepResult, TrainState
from scall_jax.streams import Segment
from scall_jax.tables.storage import StorageLayout
from scall_jax.tables.table import Params


class FitResult(NamedTuple):
    """Result of a fit."""

    params: Params
    """A buffer for a storage with a table."""
    steps: jax.Array
    """i32[], steps made; sweeps of a fit in closed form."""
    best_step: jax.Array
    """i32[], step of the parameters."""
    fitness: jax.Array
    """f32[], on the users of valid that the fit looks at."""
    first_fitness: jax.Array
    """f32[], the same after the first `eval_every` steps."""
    loss: jax.Array
    """f32[], training loss over the last interval."""
    bad_step: jax.Array
    """i32[], first step with a non-finite loss, -1 if none."""
    by_user: jax.Array
    """f32[Q, 2], Recall@20 and NDCG@20 at the last evaluation, of the first Q users of valid."""
    remembered: Any = None
    """What the recommender remembers from now on (`Recommender.init`); None: it is what it was before."""


class Step(Protocol):
    """Signature of a step of training."""

    def __call__(
        self,
        key: jax.Array,
        state: TrainState,
        layout: StorageLayout,
        segment: Segment,
        item_bias: jax.Array,
        scratch: jax.Array | tuple[()] = (),
        /,
    ) -> StepResult:
        """Draw a batch and descend by its gradient.

        Args:
          key: typed PRNG key of the step.
          state: parameters and the state of the optimiser.
          layout: of the storage.
          segment: the data.
          item_bias: f32[V], added to scores.
          scratch: f32[3 batch, width] for a storage with a table, else ().

        Returns:
          StepResult; the loss includes a storage's penalty.
        """
        ...


class Fit(Protocol):
    """Signature of a fit."""

    def __call__(
        self,
        key: jax.Array,
        params: Params,
        layout: StorageLayout,
        segment: Segment,
        item_bias: jax.Array,
        remembered: Any = (),
        /,
    ) -> FitResult:
        """Train on a segment until its valid part says to stop.

        Args:
          key: typed PRNG key.
          params: of the storage, from `to_buffer`.
          layout: of the storage.
          segment: the data.
          item_bias: f32[V], added to scores.
          remembered: what the recommender remembers (`Recommender.init`).

        Returns:
          FitResult.
        """
        ...
