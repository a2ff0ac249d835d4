"""The file config.json of a run's folder, which says what determines the run's result."""

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scall_jax.config import Config
from scall_jax.run import manifest
from scall_jax.run.update_files import read_kept
from scall_jax.streams import Stream

CONFIG = "config.json"
"""Name of the file that says what a run is."""


def identity_of(config: Config, stream: Stream, key: jax.Array) -> dict[str, Any]:
    """What determines a run's result: the content of its config.json.

    Args:
      config, stream, key: of the run.

    Returns:
      A dictionary as JSON reads it, with the keys that `read_identity` names and the versions that computed.
    """
    of_config = dataclasses.asdict(config)
    # The result is the same on any number of devices, and a run may go on on another.
    del of_config["mesh"]
    identity = {
        "config": of_config,
        "stream": {"source": stream.source, "segments": len(stream), "fingerprint": stream.fingerprint},
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    return json.loads(json.dumps(identity))


def read_identity(path: Path) -> dict[str, Any]:
    """Read the config.json of a run folder.

    Args:
      path: of the file.

    Returns:
      A dictionary with the keys `config`, `stream` and `key`, which together determine the run's result; of a run that
      has been updated, the stream is the one that it has come to.

    Raises:
      ValueError: the file does not describe a run.
    """
    try:
        found = json.loads(path.read_text())
        if {"config", "stream", "key"} <= found.keys() and isinstance(found["stream"], dict):
            return found | {"stream": found["stream"] | _updated(path.parent)}
    except (ValueError, AttributeError):
        pass
    raise ValueError(f"{path} is not that of a run: choose another folder")


def _updated(folder: Path) -> dict[str, Any]:
    """What updates have changed of a run's stream."""
    kept = read_kept(folder, manifest.read(folder)) if (folder / manifest.UPDATES).exists() else None
    return {} if kept is None else {"segments": len(kept.bounds), "fingerprint": kept.fingerprint}


def difference(other: dict[str, Any], identity: dict[str, Any], name: str) -> str:
    """In what the run of a folder differs from another one, for a message.

    Args:
      other: the content of the folder's config.json.
      identity: that of the other run.
      name: the key whose values differ: `config`, `stream` or `key`.
    """
    if not isinstance(other[name], dict):
        return f"{name} {other[name]} there, {identity[name]} here"
    if name == "stream" and other[name].get("segments") == identity[name]["segments"]:
        return "rows, or how they were cut, differ"
    keys = [k for k in identity[name] if other[name].get(k) != identity[name][k]]
    return ", ".join(f"{name}.{k} {other[name].get(k)!r} there, {identity[name][k]!r} here" for k in keys)


def config_of(stored: dict[str, Any], path: Path) -> Config:
    """The configuration that a config.json describes.

    Args:
      stored: `read_identity(path)["config"]`.
      path: of the file, for messages.

    Returns:
      Config, equal to the run's.

    Raises:
      ValueError: fields or values that this version does not know.

    >>> from scall_jax import Budget
    >>> config = Config("uniform", Budget.schedule([Budget.mean_size(2), Budget.megabytes(1)]))
    >>> config_of(json.loads(json.dumps(dataclasses.asdict(config))), Path("config.json")) == config
    True
    """
    try:
        return _built(Config, stored)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is of another version ({error}): make the run anew in another folder") from None


def _built(kind: Any, value: Any) -> Any:
    """A value of a type annotation from what JSON made of it."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
        kinds = typing.get_type_hints(kind)
        return kind(**{name: _built(kinds[name], inner) for name, inner in value.items()})
    if isinstance(value, list):
        inner = (typing.get_args(kind) or (Any,))[0]
        return tuple(_built(inner, one) for one in value)
    return value
