"""Counting what devices do: against operations and bytes that are worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from experiments.device_work import Program, Work, executed
from scall_jax.ops.devices import IN_PARTS, ROWS, WHOLE, MeshConfig, on_devices, sharding


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """A loop of five rounds on two devices, which have 32 x 8 numbers each: its program, and how often it ran what."""
    mesh = MeshConfig(2)

    def rounds(x: jax.Array, count: jax.Array) -> jax.Array:
        def one(_: jax.Array, x: jax.Array) -> jax.Array:
            gram = jax.lax.psum(x.T @ x, ROWS) + jnp.eye(8)
            factor = jnp.linalg.cholesky(gram)
            every = jax.lax.all_gather(x[:4], ROWS, tiled=True)
            return x + jax.scipy.linalg.solve_triangular(factor, x.T, lower=True).T + every.sum()

        return jax.lax.fori_loop(0, count, one, x)

    def spread(x, count):
        return on_devices(mesh, rounds, (x, count), (IN_PARTS, WHOLE), IN_PARTS)

    x = jax.device_put(jnp.ones((64, 8)), sharding(mesh, IN_PARTS))
    count = jax.device_put(jnp.int32(5), sharding(mesh, PartitionSpec()))
    program = jax.jit(spread).lower(x, count).compile()
    jax.block_until_ready(program(x, count))
    folder, options = tmp_path_factory.mktemp("trace"), jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(folder, profiler_options=options):
        jax.block_until_ready(program(x, count))
    return program.as_text(), executed(folder)


def _work(counted, device, **options):
    text, counts = counted
    program, total = Program(text, **options), Work()
    for (module, instruction, of_device), times in counts.items():
        if of_device == device and text.startswith(f"HloModule {module},"):
            total = total.plus(program.work(instruction), times)
    return total


@pytest.mark.parametrize("device", [0, 1])
def test_a_loop_is_counted_as_often_as_it_went_round(counted, device):
    work, rounds = _work(counted, device), 5
    gram, factor, solves = 2 * 8 * 8 * 32, 8**3 / 3, 8 * 8 * 32
    assert work.products == pytest.approx(rounds * (gram + factor + solves), rel=1e-6)
    assert work.summed == rounds * 4 * 8 * 8 and work.gathered == rounds * 4 * 2 * 4 * 8
    assert work.exchanges == 2 * rounds
    # Two additions of 32 x 8 numbers, a sum over 64, and little else.
    assert rounds * (2 * 256 + 64) <= work.other < rounds * (2 * 256 + 64 + 1500)


def test_sparse_products_and_fused_products_are_counted_by_their_shapes():
    text = """HloModule jit_f, is_scheduled=true

%fused (p0: f32[4,3]) -> f32[4,5] {
  %p0 = f32[4,3]{1,0} parameter(0)
  %p1 = f32[3,5]{1,0} parameter(1)
  %d = f32[4,5]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %a = f32[4,5]{1,0} add(%d, %d)
}

ENTRY %main (x: f32[4,3]) -> f32[6,16] {
  %x = f32[4,3]{1,0} parameter(0)
  %f = f32[4,5]{1,0} fusion(%x, %x), kind=kOutput, calls=%fused
  %s = (s32[64]{0}, s32[64]{0}) sort(%x, %x), dimensions={0}, to_apply=%less
  ROOT %c = f32[6,16]{1,0} custom-call(%x), custom_call_target="cpu_csr_sparse_dense_ffi"
}
"""
    program = Program(text, entries=10)
    assert program.work("f") == Work(products=2 * 4 * 5 * 3, other=20)
    assert program.work("c") == Work(products=2 * 10 * 16) and program.work("s").other == 64 * np.log2(64)
    assert program.work("x") == program.work("nothing") == Work()
