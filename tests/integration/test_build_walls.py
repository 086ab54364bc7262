"""What the code of a package can reach while it is built: nothing of other builds, and nothing of the host."""

import asyncio
import os
import resource
import socket
from ast import literal_eval
from pathlib import Path
from typing import Any

import pytest

from orpheusd.process.pidfds import EXPENDABLE
from orpheusd.process.sandbox import Isolation
from orpheusd.worker import confinement
from tests.integration.build_box import Box, isolated, python

#: A package whose build puts a wheel of another one wherever a cache of pip's may be, in that cache's own way.
POISONER = """
import glob

def build_wheel(wheel_directory, *_, **__):
    sys.path += glob.glob(sys.prefix + "/lib/python*/site-packages")
    from pip._internal.cache import SimpleWheelCache
    from pip._internal.models.link import Link
    for place in {places!r}:
        cache = object.__new__(SimpleWheelCache)  # what it must be told is another thing in each version of pip
        cache.cache_dir = place
        folder = pathlib.Path(cache.get_path_for_link(Link({victim!r})))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        wheel(folder, "victim", "SAYS = 'poisoned'")
    return wheel(wheel_directory, "poisoner", "")
"""

HONEST = """
def build_wheel(wheel_directory, *_, **__):
    return wheel(wheel_directory, "victim", "SAYS = 'honest'")
"""

#: A package that says what limits and walls it met while it was built.
PROBE = """
import errno, os, resource, socket, stat

def tried(action):
    try:
        return action()
    except (OSError, ValueError) as error:
        return errno.errorcode.get(getattr(error, "errno", 0), type(error).__name__)

def connect(address, kind):
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.connect(address)
    return "connected"

def raise_limit(name):
    resource.setrlimit(getattr(resource, name), (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return "raised"

def made():
    with open(os.path.join(sys.prefix, "made"), "w") as file:
        return stat.S_IMODE(os.fstat(file.fileno()).st_mode)

def much():
    with open(os.path.join(sys.prefix, "much"), "wb", buffering=0) as file:
        os.unlink(file.name)
        file.seek({too_much})
        return file.write(b"x")

def build_wheel(wheel_directory, *_, **__):
    limits = ("RLIMIT_FSIZE", "RLIMIT_CORE", "RLIMIT_NPROC", "RLIMIT_NOFILE")
    found = {{
        "stream": tried(lambda: connect({abstract!r}, socket.SOCK_STREAM)),
        "datagram": tried(lambda: connect({abstract!r} + "-datagram", socket.SOCK_DGRAM)),
        "limits": {{name: resource.getrlimit(getattr(resource, name)) for name in limits}},
        "raised": {{name: tried(lambda: raise_limit(name)) for name in limits[:3]}},
        "score": int(open("/proc/self/oom_score_adj").read()),
        "spare": tried(lambda: open("/proc/self/oom_score_adj", "w").write("-1000")),
        "made": made(),
        "much": tried(much),
    }}
    return wheel(wheel_directory, "probe", f"FOUND = {{found!r}}")
"""


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


@pytest.mark.parametrize("mode", ["bwrap", "none"])
def test_a_build_puts_nothing_into_the_builds_of_others(box: Box, mode: str) -> None:
    isolation: Isolation = isolated(mode)
    box.add("victim", HONEST)
    places = ["/cache", "/tmp/.cache/pip", "/venv/.cache/pip"] if mode == "bwrap" else [str(box.state / "pip-cache")]
    victim = (box.packages / "victim-1.0.tar.gz").as_uri()
    box.add("poisoner", POISONER.format(places=places, victim=victim))
    assert asyncio.run(box.ensure("poisoner\n", isolation)) is not None
    venv = asyncio.run(box.ensure("victim\n", isolation))
    assert venv is not None and python(venv, "import victim; print(victim.SAYS)") == "honest"


def limits_met(found: dict[str, Any]) -> None:
    """What there is with and without a sandbox."""
    soft, hard = found["limits"]["RLIMIT_FSIZE"]
    assert soft == hard == confinement.BUILD_FILE_LIMIT_BYTES
    assert found["limits"]["RLIMIT_CORE"] == (0, 0)
    assert found["limits"]["RLIMIT_NOFILE"][0] == confinement.OPEN_FILES
    assert found["score"] >= EXPENDABLE
    assert found["made"] & 0o077 == 0


def test_a_build_is_confined_as_an_agent_is(box: Box) -> None:
    # fault 8, fault 29
    isolation = isolated("bwrap")
    if isolation.weaknesses:
        pytest.skip(isolation.weaknesses[0])
    found = probed(box, isolation)
    limits_met(found)
    assert (found["stream"], found["datagram"]) == ("EPERM", "EPERM")
    assert found["limits"]["RLIMIT_NPROC"][1] == confinement.PROCESS_LIMIT
    assert set(found["raised"].values()) <= {"EPERM", "ValueError"}
    assert found["spare"] in ("EROFS", "EACCES", "EPERM")
    assert found["much"] == "EFBIG"


def test_a_build_without_a_sandbox_meets_the_limits_all_the_same(box: Box) -> None:
    limits_met(probed(box, isolated("none")))


def probed(box: Box, isolation: Isolation) -> dict[str, Any]:
    """What the probe found, started by somebody who may open as many files as a daemon may."""
    abstract = f"\0{box.root.name}-{os.getpid()}"
    box.add("probe", PROBE.format(abstract=abstract, too_much=confinement.BUILD_FILE_LIMIT_BYTES))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with socket.socket(socket.AF_UNIX) as stream, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
            stream.bind(abstract)
            stream.listen()
            datagram.bind(f"{abstract}-datagram")
            venv = asyncio.run(box.ensure("probe\n", isolation))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert venv is not None
    found: dict[str, Any] = literal_eval(python(venv, "import probe; print(probe.FOUND)"))
    return found
