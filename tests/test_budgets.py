import dataclasses
import json

import numpy as np
import pytest

from scall_jax import Budget, Config, FitConfig
from scall_jax.config import SizesConfig, WarmStartConfig


@pytest.mark.parametrize(
    ("budget", "segment", "entities", "parameters"),
    [
        (Budget.mean_size(8), 0, 100, 800),
        (Budget.mean_size(0.5), 3, 101, 50),
        (Budget.mean_size(2.5), 0, 3, 7),
        (Budget.megabytes(32), 7, 5, 8_000_000),
        (Budget.megabytes(1e-5), 0, 5, 2),
        (Budget.mean_size(0.7), 0, 90, 63),
        (Budget.megabytes(1.001), 0, 5, 250_250),
        (Budget.schedule([Budget.mean_size(4), Budget.megabytes(0.4)]), 0, 10, 40),
        (Budget.schedule([Budget.mean_size(4), Budget.megabytes(0.4)]), 1, 10, 100_000),
        (Budget.schedule([Budget.mean_size(4), Budget.megabytes(0.4)]), 9, 10, 100_000),
    ],
)
def test_parameters(budget, segment, entities, parameters):
    assert budget.parameters(segment, entities) == parameters


@pytest.mark.parametrize(
    "call",
    [
        lambda: Budget.mean_size(0),
        lambda: Budget.mean_size(-1),
        lambda: Budget.megabytes(0),
        lambda: Budget.megabytes(float("nan")),
        lambda: Budget.schedule([]),
        lambda: Budget(),
        lambda: Budget(size=1, mb=1),
        lambda: SizesConfig(minimum=5, maximum=4),
        lambda: SizesConfig(minimum=-1),
        lambda: SizesConfig(rho=1.5),
        lambda: SizesConfig(family="cauchy"),
        lambda: SizesConfig(power=65.0),
        lambda: WarmStartConfig(shrink=-1.0),
        lambda: FitConfig(batch=0),
        lambda: FitConfig(layers=-1),
        lambda: FitConfig(learning_rate=0.0),
        lambda: FitConfig(positives="some"),
        lambda: Config(table="hash"),
        lambda: Config(bias="global"),
    ],
)
def test_bad_values_are_refused(call):
    with pytest.raises(ValueError):
        call()


def test_numbers_of_numpy_are_numbers():
    assert Budget.mean_size(np.int64(3)) == Budget.mean_size(3) and Budget.megabytes(np.float32(0.5)).mb == 0.5
    assert Budget.mean_size(np.float32(0.7)).parameters(0, 90) == 63  # the decimal number that was given
    json.dumps(dataclasses.asdict(Budget.megabytes(np.float32(0.5))))


def test_configuration_is_hashable():
    assert hash(Config()) == hash(Config())


def test_a_schedule_of_numbers_is_refused_with_the_way():
    with pytest.raises(ValueError, match=r"schedule, number 1: 4\.0 is no budget: Budget\.mean_size\(4\.0\)"):
        Budget.schedule([Budget.mean_size(8), 4.0])
