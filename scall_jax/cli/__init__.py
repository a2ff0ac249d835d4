"""Command line: flags, progress, and the commands of `scall-jax`."""
