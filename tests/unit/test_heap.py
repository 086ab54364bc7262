"""Memory of large messages goes back to the system, also where small things were made between them."""

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
