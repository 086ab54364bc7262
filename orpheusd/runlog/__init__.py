"""The record of runs: one row each, written by one thread."""
