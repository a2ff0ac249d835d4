"""The recommenders by name, as a config describes them. To add one, enter it here."""

import dataclasses
from collections.abc import Callable

from scall_jax.config import RECOMMENDERS, Config
from scall_jax.recommenders.bigear.recommender import bigear_recommender
from scall_jax.recommenders.gradient_recommender import gradient_recommender
from scall_jax.recommenders.ials.recommender import ials_recommender
from scall_jax.recommenders.recommender import Recommender
from scall_jax.recommenders.saros.recommender import saros_recommender
from scall_jax.recommenders.sequence_recommender import sequence_recommender
from scall_jax.tables import SOLVED_FOR


def _by_gradients(config: Config) -> Recommender:
    probe = config.search.probe_fit(config.fit)
    return gradient_recommender(config.fit, probe, config.candidates, config.bias, config.mesh)


def _mf(config: Config) -> Recommender:
    return _by_gradients(settled(config))


def _ials(config: Config) -> Recommender:
    return ials_recommender(config.ials, config.fit.valid_users, config.candidates, config.bias, config.mesh)


def _saros(config: Config) -> Recommender:
    return saros_recommender(config.saros, config.fit.valid_users, config.candidates)


def _s2pnm(config: Config) -> Recommender:
    return sequence_recommender(config.s2pnm, config.fit, config.search.probe_fit(config.fit), config.candidates)


def _bigear(config: Config) -> Recommender:
    return bigear_recommender(config.bigear, config.fit, config.search.probe_fit(config.fit), config.candidates)


_BUILDERS: dict[str, Callable[[Config], Recommender]] = {
    "lightgcn": _by_gradients,
    "mf": _mf,
    "ials": _ials,
    "saros": _saros,
}
assert tuple(_BUILDERS) == RECOMMENDERS

_OF_STORAGE: dict[str, Callable[[Config], Recommender]] = {"sequence": _s2pnm, "binary_layers": _bigear}
"""Of storages whose vectors are trained in a way of their own, whatever `Config.recommender` says."""


def recommender_of(config: Config) -> Recommender:
    """The recommender of a run.

    Args:
      config: of the run.

    Returns:
      Recommender.
    """
    return _OF_STORAGE.get(config.table, _BUILDERS[config.recommender])(config)


def settled(config: Config, storage: str | None = None) -> Config:
    """The config with what follows from its recommender put in.

    Args:
      config: of the run.
      storage: name of the method's own storage, which replaces `Config.table`; None for methods that choose sizes.

    Returns:
      Config: without layers for matrix factorisation, saros included; for implicit alternating least squares with a
      start from random vectors or, unchanged, from those of the segment before.

    Raises:
      ValueError: a storage in which vectors share parameters, with a recommender that solves for each by itself; or one
        that is trained in a way of its own, with another recommender or with final vectors in few bits.
    """
    if storage in _OF_STORAGE:
        unread = [f"recommender={config.recommender!r}"] if config.recommender != "lightgcn" else []
        unread += [f"fit.served_bits={config.fit.served_bits}"] if config.fit.served_bits is not None else []
        if unread:
            raise ValueError(f"{unread[0]}: method {config.method} is trained in a way of its own: leave it out")
    if config.recommender in ("mf", "saros"):
        return dataclasses.replace(config, fit=dataclasses.replace(config.fit, layers=0))
    if config.recommender == "lightgcn":
        return config
    if storage not in (None, *SOLVED_FOR):
        raise ValueError(
            f"recommender={config.recommender!r} solves for each vector by itself, but the storage {storage} of method "
            f"{config.method} is trained by gradients: choose lightgcn or mf, or a method that chooses sizes"
        )
    warm_start = dataclasses.replace(config.warm_start, enabled=config.ials.warm, shrink=1.0)
    return dataclasses.replace(config, warm_start=warm_start)
