"""Strict settings for all tests: they hold before jax is first used."""

import atexit
import importlib.metadata
import os
import shutil
import tempfile
import warnings

# Tests compile much and compute little; without optimisation a program compiles five times faster, and as one module,
# which one core of a test process compiles, faster by a fifth again.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    " --xla_cpu_parallel_codegen_split_count=1"
    # An unknown flag ends the process.
    + " --xla_cpu_use_fusion_emitters=false"
    * importlib.metadata.version("jaxlib").startswith("0.10."),
)
os.environ.setdefault("MPLBACKEND", "Agg")
# Results are compared bit for bit and two processes share the work, so tests run on the CPU whatever is installed.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from hypothesis import settings

with warnings.catch_warnings():
    # rlax's dependencies warn when they are imported, and more when they are compiled for the first time.
    warnings.simplefilter("ignore")
    import scall_jax.policies.ddpg  # noqa: F401
from scall_jax import streams
from scall_jax.run import compilation

jax.config.update("jax_numpy_rank_promotion", "raise")
# Many tests compile the same small programs; the cache compiles each once per test session, in all its processes.
_CACHE = "SCALL_JAX_TEST_CACHE"
if _CACHE not in os.environ:
    os.environ[_CACHE] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, os.environ[_CACHE], ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", os.environ[_CACHE])
# The processes that tests start must not use the cache in the home folder either.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ[_CACHE]
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
settings.register_profile("project", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("project")


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """File of a small stream."""
    rows = streams.synthetic(jax.random.key(0), users=150, items=80, interactions=4000)
    path = tmp_path_factory.mktemp("data") / "rows.csv"
    users, items = rows.user_ids.gather(rows.user).to_list(), rows.item_ids.gather(rows.item).to_list()
    lines = [f"{u},{i},{t}" for u, i, t in zip(users, items, rows.time.tolist(), strict=True)]
    path.write_text("\n".join(["user,item,timestamp", *lines]) + "\n")
    return path


@pytest.fixture(params=["cpu", "gpu"])
def backend(request, monkeypatch):
    """The programs of a CPU, unless there is an accelerator, and those of an accelerator, on any machine."""
    if request.param == "cpu" != jax.default_backend():
        pytest.skip("programs of a CPU run on a CPU only")
    compilation._options.cache_clear()
    monkeypatch.setattr(jax, "default_backend", lambda: request.param)
    yield request.param
    compilation._options.cache_clear()


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def quick_compilation():
    """Compile without most optimisations: compiling these programs takes longer than running them."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
