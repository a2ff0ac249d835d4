"""BiGeaR (arXiv 2206.02115) as a `Recommender`: LightGCN trained to rank by signs alone.

A teacher is trained first, in float32, whose score is that of all layers of the propagation side by side. What it ranks
highest in each layer is then taught to a student that starts from its vectors and ranks by their signs, beside the
Bayesian personalised ranking of the student's own scores.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from scall_jax.ops.keys import Purpose, derive
from scall_jax.recommenders.bigear.config import BigearConfig
from scall_jax.recommenders.bigear.learning import (
    BinaryModel,
    layers_of,
    make_binary_step,
    ranking_vectors,
    teach,
)
from scall_jax.recommenders.fit import make_fit
from scall_jax.recommenders.fit_config import FitConfig
from scall_jax.recommenders.fit_result import FitResult
from scall_jax.recommenders.graph import with_chunks
from scall_jax.recommenders.judge import evaluate_vectors
from scall_jax.recommenders.make_step import optimiser
from scall_jax.recommenders.recommender import Recommender
from scall_jax.recommenders.served import serve_vectors
from scall_jax.streams import Segment
from scall_jax.tables.compressed.binary_layers import BinaryParams, BinaryPlan
from scall_jax.tables.storage import Storage


def bigear_recommender(config: BigearConfig, fit: FitConfig, probe: FitConfig, candidates: str) -> Recommender:
    """Build the recommender of the storage `binary_layers`.

    Args:
      config: of what a student is taught.
      fit: training of a segment, of the teacher and of the student.
      probe: the same of a probe.
      candidates: as in `evaluation.RankingOptions`.

    Returns:
      Recommender. It remembers nothing. New users are those of the next segment.
    """

    def make(fit: FitConfig, storage: Storage, progress=None):
        judged = dataclasses.replace(fit, layers=0, served_bits=None)

        def part(rounds: bool, taught: jax.Array | None, progress):
            model = BinaryModel(config, fit, rounds)

            def ready(params: BinaryParams, layout: BinaryPlan, segment: Segment) -> BinaryParams:
                return params._replace(layers=ranking_vectors(model, params.latent, layout, segment.graph))

            def init_opt_state(params: BinaryParams):
                return optimiser(fit).init(params.latent)

            # The teacher is judged as it is, the student as it will serve.
            of_part = storage if rounds else storage._replace(rounds=False)
            step = make_binary_step(model, taught)
            return make_fit(of_part, judged, progress, candidates, step, init_opt_state, ready)

        def run(key, params: BinaryParams, layout, segment: Segment, item_bias, remembered=(), /) -> FitResult:
            segment = segment._replace(graph=with_chunks(segment.graph))
            keys = (derive(key, purpose) for purpose in (Purpose.TEACHER, Purpose.STUDENT))
            teacher = part(False, None, None)(next(keys), params, layout, segment, item_bias, remembered)
            taught = teach(config, layers_of(teacher.params.latent, segment.graph, fit.layers), segment)
            found = part(True, taught, progress)(next(keys), teacher.params, layout, segment, item_bias, remembered)
            made = teacher.steps
            bad = jnp.where(found.bad_step >= 0, made + found.bad_step, found.bad_step)
            return found._replace(
                steps=made + found.steps,
                best_step=made + found.best_step,
                bad_step=jnp.where(teacher.bad_step >= 0, teacher.bad_step, bad),
            )

        return run

    def held_by_training(storage: Storage, params: BinaryParams) -> Any:
        # Training holds the current and the best parameters, and two moments and a gradient of what is trained.
        # A list counts for each node, since how many of them are users is not known here.
        lists = jax.ShapeDtypeStruct((storage.nodes, fit.layers + 1, config.top), jnp.int32)
        return params, params, (params.latent,) * 3, lists

    return Recommender(
        make_fit=lambda storage, progress: make(fit, storage, progress),
        make_probe_fit=lambda storage: make(probe, storage),
        evaluate=evaluate_vectors,
        held_by_training=held_by_training,
        serves_by=lambda known, graph_bytes, width: {},
        serve=serve_vectors,
    )
