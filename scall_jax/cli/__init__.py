"""The command line: flags, help, progress bars, and the commands of `scall-jax`."""
