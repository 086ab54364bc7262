"""Stands for a model or an index that takes long to load: a table of the smallest factor of each number."""

import os
from array import array

#: Long enough to load (a few tenths of a second) that a worker which had to do it again would be noticed.
LIMIT = 1_000_000
LOADED_BY_PID = os.getpid()


def build(limit):
    """A table whose entry n is the smallest factor of n above 1, or n itself when n is prime or below 2."""
    factors = array("L", range(limit + 1))
    for candidate in range(2, int(limit**0.5) + 1):
        if factors[candidate] == candidate:
            for multiple in range(candidate * candidate, limit + 1, candidate):
                if factors[multiple] == multiple:
                    factors[multiple] = candidate
    return factors


def smallest_factor(number):
    """Raises ValueError for a number outside the table."""
    if not 0 <= number <= LIMIT:
        raise ValueError(f"number must be from 0 to {LIMIT}, not {number}")
    return FACTORS[number]


FACTORS = build(LIMIT)
