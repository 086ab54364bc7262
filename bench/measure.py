"""How things are measured and shown: interleaved rounds, medians, ratios within a round, one table.

Two things are compared by measuring a little of each in turn, many times: what disturbs the machine then disturbs
both. A ratio is the median of the rounds' own ratios.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """A line of the table. `verdict` is `met`, `MISSED`, or why there is no figure."""

    what: str
    ours: str = ""
    beside: str = ""
    ratio: str = ""
    budget: str = ""
    verdict: str = ""


class Pair(NamedTuple):
    """Two things measured in the same rounds: the median of each, and the median of the rounds' ratios."""

    ours: float
    beside: float
    ratio: float


HEADINGS = Row("what", "orpheus", "beside it", "ratio", "budget", "")


def paired(ours: Callable[[], float], beside: Callable[[], float], rounds: int) -> Pair:
    """Measure both in turn, `rounds` times, after one round that is thrown away."""
    figures: list[tuple[float, float]] = []
    for number in range(rounds + 1):
        # The order alternates, so that neither always comes after the other.
        if number % 2:
            figures.append((ours(), beside()))
        else:
            late = beside()
            figures.append((ours(), late))
    figures = figures[1:]
    mine, theirs = zip(*figures, strict=True)
    return Pair(statistics.median(mine), statistics.median(theirs), statistics.median(a / b for a, b in figures))


def median_s(calls: int, call: Callable[[], object]) -> float:
    """The median time of one call, in seconds."""
    clock, times = time.perf_counter, []
    for _ in range(calls):
        begun = clock()
        call()
        times.append(clock() - begun)
    return statistics.median(times)


def paced_s(call: Callable[[], object], per_second: float, seconds: float) -> list[float]:
    """How long each call took, with pauses between them as if so many a second were wanted. While one takes long,
    others would have been wanted: each is counted with what it would have waited for that one."""
    clock, interval_s, taken = time.perf_counter, 1 / per_second, list[float]()
    end = clock() + seconds
    while (begun := clock()) < end:
        call()
        took_s = clock() - begun
        taken.append(took_s)
        taken.extend(took_s - late * interval_s for late in range(1, int(took_s / interval_s) + 1))
        time.sleep(interval_s)  # the pace that is measured at
    return taken


def p99(taken: Sequence[float]) -> float:
    """Of at least a hundred."""
    return sorted(taken)[len(taken) * 99 // 100]


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} µs" if seconds >= 1e-5 else f"{seconds * 1e6:.1f} µs"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"


def per_second(rate: float) -> str:
    return f"{rate:,.0f}/s"


def times(ratio: float) -> str:
    return f"{ratio:.2f}x"


def verdict(is_met: bool) -> str:
    return "met" if is_met else "MISSED"


def unavailable(what: str, budget: str, why: str) -> Row:
    return Row(what, budget=budget, verdict=why)


def show(rows: Iterable[Row]) -> str:
    """The rows as a table that is readable as it stands and is Markdown as well."""
    lines: Sequence[Row] = [HEADINGS, *rows]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]

    def line(cells: Iterable[str], fill: str = " ") -> str:
        return "| " + " | ".join(cell.ljust(width, fill) for cell, width in zip(cells, widths, strict=True)) + " |"

    head, *body = lines
    return "\n".join((line(head), line(("",) * len(widths), "-"), *map(line, body)))
