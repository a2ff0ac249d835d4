"""A command line out of a dataclass of flags and a job."""

import shlex
import sys

import tyro

from scall_jax.run import process_memory


def cli(flags: type, job, description: str | None = None, arguments: list[str] | None = None) -> None:
    """Command line of a job: bad input and files that cannot be had end with a message and exit code 2."""
    process_memory.limit_heap()
    try:
        job(tyro.cli(flags, args=arguments, description=description))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def command(module: str) -> str:
    """The command line that this process was started with, for the head of a table."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])
