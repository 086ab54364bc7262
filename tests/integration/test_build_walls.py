"""What the code of a package can reach while it is built: nothing of other builds, and nothing of the host."""

import asyncio
from pathlib import Path

import pytest

from orpheusd.process.sandbox import Isolation
from tests.integration.build_box import Box, isolated, python

#: A package whose build puts a wheel of another one wherever a cache of pip's may be, in that cache's own way.
POISONER = """
import glob, sys

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
