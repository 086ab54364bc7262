"""Memory of large messages goes back to the system, also where small things were made between them; and the collector
looks at what came after the beginning alone."""

import subprocess
import sys

from tests.daemon import ROOT

PROGRAM = """
import psutil
from orpheusd.heap import give_back_large_blocks
if CALLED:
    give_back_large_blocks()
before, kept = psutil.Process().memory_info().rss, []
for _ in range(3):
    large = []
    for _ in range(30):
        large.append(b"x" * 4_000_000)
        kept.append([bytes(600) for _ in range(50)])
    del large
print((psutil.Process().memory_info().rss - before) // 1_000_000)
"""


def grown_mb(called: bool) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM.replace("CALLED", str(called))], cwd=ROOT, timeout=60,
                          capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_what_held_large_messages_is_given_back() -> None:
    assert grown_mb(called=True) < 20 < grown_mb(called=False)


SPARED = """
import gc, weakref
from orpheusd.heap import spare_what_is_there
class Ring: pass
def ring():
    one = Ring()
    one.itself = one
    return weakref.ref(one)
before, kept = ring(), Ring()
kept.itself = kept
spare_what_is_there()
looked_at, after = len(gc.get_objects()), ring()
gc.collect()
print(before() is None, looked_at < 100, after() is None, kept.itself is kept)
"""


def test_the_collector_spares_what_was_there_and_nothing_else() -> None:
    done = subprocess.run([sys.executable, "-c", SPARED], cwd=ROOT, timeout=60, capture_output=True, text=True,
                          check=True)
    assert done.stdout.split() == ["True"] * 4
