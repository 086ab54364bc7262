"""Names the machine a table was made on, and installs what only the bench needs."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: The baselines' own packages: the product never sees them.
VENV = Path(__file__).resolve().parent / ".venv"
PACKAGES = ("uvicorn[standard]", "starlette", "orjson")
INSTALL_TIMEOUT_S = 300


class Missing(Exception):
    """What a baseline needs is not here and could not be installed; the message says why."""


def describe() -> str:
    model = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())
    memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    return (f"{model}, {len(os.sched_getaffinity(0))} cores, {memory_mb:,} MB; Linux {platform.release()}; "
            f"Python {platform.python_version()}; load before {os.getloadavg()[0]:.2f}")


def command(name: str, package: str) -> str:
    """The path of `name`, installed from the Debian package when it is missing and we are root. Raises Missing."""
    if shutil.which(name) is None:
        _run([str(ROOT / ".ci" / "setup"), "packages", package])
    path = shutil.which(name)
    if path is None:
        raise Missing(f"no {name}: apt-get install {package}")
    return path


def bench_python() -> str:
    """The interpreter of a virtual environment with uvicorn in it. Raises Missing."""
    python = VENV / "bin" / "python"
    stamp = VENV / ".installed"
    if not stamp.exists():
        _run([sys.executable, "-m", "venv", str(VENV)])
        failure = _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES])
        if failure:
            raise Missing(f"pip could not install uvicorn: {failure}")
        stamp.touch()
    return str(python)


def _run(argv: list[str]) -> str:
    """"" when the command succeeded, else the last line it said."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
                              timeout=INSTALL_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else (done.stderr.strip() or "it failed").splitlines()[-1]
