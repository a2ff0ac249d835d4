"""The benchmark: `cases` are measured by `__main__`, with what they share in `setting`."""
