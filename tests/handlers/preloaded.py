"""For `preload: true`: what happens at import happens once, in the template."""

import logging
import os
import random
import threading
from pathlib import Path

imported_in = os.getpid()
opened = Path("/dev/zero").open("rb")  # noqa: SIM115 - must stay open over the fork
big = list(range(200_000))
logging.basicConfig(level=logging.INFO)
threading.Thread(target=threading.Event().wait, daemon=True).start()
print("preloading")


def handler(_input):
    logging.getLogger("preloaded").info("logged in a run")
    try:
        read = opened.read(1).hex()
    except OSError as error:
        read = error.strerror
    return {"imported_in": imported_in, "pid": os.getpid(), "random": random.random(), "read": read,
            "fd": opened.fileno(), "fds": sorted(int(path.name) for path in Path("/proc/self/fd").iterdir())}
