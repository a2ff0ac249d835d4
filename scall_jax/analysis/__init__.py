"""Analysis of finished runs: tests of significance, curves over memory, tables and pictures."""
