"""Programs for accelerators are lowered on a CPU: a whole segment's step, for GPUs and TPUs."""

import jax
import jax.numpy as jnp
import pytest
from jax import export

from scall_jax import make_run
from scall_jax.config import SearchConfig
from scall_jax.policies import PolicyConfig
from scall_jax.run import compilation
from tests.helpers import small_config, small_stream

PLATFORMS = {"cuda": "gpu", "tpu": "tpu"}


@pytest.mark.parametrize(
    ("platform", "method", "options"),
    [
        ("cuda", "scall-sac", {}),
        ("tpu", "uniform", {}),
        pytest.param("cuda", "uniform", {"recommender": "ials", "table": "packed_int4"}, marks=pytest.mark.slow),
        pytest.param("tpu", "scall", {"recommender": "ials"}, marks=pytest.mark.slow),
        *(
            pytest.param(platform, method, {}, marks=pytest.mark.slow)
            for platform in PLATFORMS
            for method in ("uniform", "scall-sac", "scall", "scall-ddpg")
            if (platform, method) not in (("cuda", "scall-sac"), ("tpu", "uniform"))
        ),
    ],
)
def test_a_step_is_lowered_for_accelerators(monkeypatch, method, platform, options):
    stream = small_stream(segments=2)
    search = SearchConfig(probes=2, probe_steps=2)
    policy = PolicyConfig(widths=(8,), replay=16, updates=2, batch=4)
    run = make_run(small_config(method, search=search, policy=policy, **options))
    state = run.init(jax.random.key(0), stream)
    segment = jax.tree.map(jnp.asarray, stream.segment(1))
    monkeypatch.setattr(jax, "default_backend", lambda: PLATFORMS[platform])
    compilation._options.cache_clear()
    try:
        exported = export.export(jax.jit(run.step), platforms=[platform])(state, segment)
    finally:
        compilation._options.cache_clear()
    assert exported.platforms == (platform,)
    assert len(exported.out_avals) == len(jax.tree.leaves(jax.eval_shape(run.step, state, segment)))
