"""Virtual environments built for real: pip, bubblewrap, packages that attack the box or never end."""

import asyncio
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from pip._internal.req.req_file import preprocess

from orpheusd.deploy import build
from orpheusd.deploy.build import ensure_venv, prune_venvs, read_requirements
from orpheusd.errors import OrpheusError
from orpheusd.process.sandbox import Isolation, detect, find_interpreter
from tests.eventually import eventually
from tests.integration.build_box import TIMEOUT_S, Box, isolated, python

#: A package that says, in the wheel it builds, what it could see and do while it was built.
PROBE = """
import os

def attempt(action):
    try:
        return repr(action())
    except OSError as error:
        return type(error).__name__

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    outside = pathlib.Path({outside!r})
    found = {{
        "secret": attempt((outside / "secret").read_text),
        "state": attempt(lambda: sorted(os.listdir({state!r}))),
        "write": attempt(lambda: (outside / "written").write_text("x")),
        "uid": os.getuid(),
        "environ": {{name: value for name, value in os.environ.items() if "planted" in value}},
    }}
    mark = pathlib.Path(sys.prefix, ".complete")
    mark.symlink_to(outside / "victim")
    return wheel(wheel_directory, "probe", f"FOUND = {{found!r}}")
"""

#: A package whose build never ends, and leaves its process group.
HANG = """
import subprocess

def build_wheel(*_, **__):
    subprocess.Popen(["sleep", "300"], start_new_session=True)
    pathlib.Path(sys.prefix, "hanging").write_text("x")
    subprocess.run(["sleep", "300"])
"""

Ensure = Callable[..., asyncio.Task[Path | None]]


@pytest.fixture(params=["bwrap", "none"])
def isolation(request: pytest.FixtureRequest) -> Isolation:
    return isolated(request.param)


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def test_packages_are_installed_once_and_see_nothing_of_the_box(box: Box, isolation: Isolation) -> None:
    box.add("probe", PROBE.format(outside=str(box.root), state=str(box.state)))
    text = "probe==1.0  # a comment\n"

    async def build_twice() -> list[Path | None]:
        return list(await asyncio.gather(box.ensure(text, isolation), box.ensure(text, isolation)))

    first, second = asyncio.run(build_twice())
    assert first is not None and first == second
    assert box.left() == [first.name]
    assert box.lines.count("Successfully installed probe-1.0") == 2  # one build, two listeners
    assert not (box.root / "victim").exists()
    assert not (first / ".scratch").exists()
    assert (first / ".complete").is_file() and not (first / ".complete").is_symlink()
    assert sorted(path.name for path in box.state.iterdir()) == ["venvs"]
    found = eval(python(first, "import probe; print(probe.FOUND)"))
    assert found["environ"] == {}
    if isolation.mode == "bwrap":
        # the way to the packages exists in the build's private /tmp, so writing there works, and comes to nothing
        assert found == {"secret": "FileNotFoundError", "state": "FileNotFoundError", "write": "1", "uid": 1000,
                         "environ": {}}
        assert not (box.root / "written").exists()
        assert (first / "bin/pip").read_text().startswith("#!/venv/bin/python")
    else:
        # a path that is too long for the kernel stands on the second line
        assert f"{first}/bin/python" in "".join((first / "bin/pip").read_text().splitlines()[:2])

    box.lines.clear()
    again = asyncio.run(box.ensure("\nprobe==1.0\n# another comment\n", isolation))
    assert again == first and box.lines == ["requirements.txt: already installed"]


def test_a_refusal_says_what_pip_said_and_leaves_nothing(box: Box) -> None:
    isolation = isolated("bwrap")
    box.add("broken", "def build_wheel(*_, **__): raise ValueError('no luck today')")
    with pytest.raises(OrpheusError) as caught:
        asyncio.run(box.ensure("broken\n", isolation))
    assert caught.value.code == "invalid-request"
    assert caught.value.message.startswith("cannot install requirements.txt: ")
    assert "no luck today" in caught.value.details["output"]
    assert "no luck today" in "\n".join(box.lines)
    assert box.left() == []


@pytest.mark.parametrize(("lines", "reason"), [
    (["Looking", "ERROR: No matching distribution", "[notice] new pip"], "No matching distribution"),
    (["one", "two"], "one\ntwo"),
    ([str(number) for number in range(9)], "4\n5\n6\n7\n8"),
    ([], "pip ended with status 2 and said nothing"),
])
def test_the_reason_is_pips_own_error_or_its_last_words(lines: list[str], reason: str) -> None:
    assert build._reason(lines, 2) == reason


def test_the_last_who_waits_takes_the_build_along(box: Box, isolation: Isolation) -> None:
    box.add("hang", HANG)
    text = "hang\n"

    async def cancel_both() -> None:
        loop = asyncio.get_running_loop()
        waiting = [loop.create_task(box.ensure(text, isolation)) for _ in range(2)]

        def hangs() -> list[Path]:
            return [*(box.state / "venvs").glob("*/hanging"), *(box.state / "venvs").glob(".*/hanging")]

        await asyncio.to_thread(eventually, hangs, 30)
        waiting[0].cancel()
        await asyncio.wait([waiting[0]])
        assert waiting[0].cancelled() and not waiting[1].done() and hangs()
        waiting[1].cancel()
        await asyncio.wait([waiting[1]])
        assert waiting[1].cancelled()
        assert build._builds == {}

    before = set(Path(tempfile.gettempdir()).glob("pip-*"))
    asyncio.run(cancel_both())
    assert box.left() == []
    assert set(Path(tempfile.gettempdir()).glob("pip-*")) <= before
    # that no process is left is seen by the fixture of every test


def test_a_build_that_takes_too_long_is_stopped(box: Box) -> None:
    with pytest.raises(OrpheusError, match=r"not done within 0\.5 s") as caught:
        asyncio.run(box.ensure("tiny\n", isolated("bwrap"), timeout_s=0.5))
    assert caught.value.code == "timed-out"
    assert box.left() == []


@pytest.mark.parametrize("text", [None, "", "\n\n", "# nothing\n  # at all\n"])
def test_nothing_required_is_nothing_built(box: Box, text: str | None) -> None:
    requirements = box.root / "requirements.txt"
    if text is not None:
        requirements.write_text(text)
    built = asyncio.run(ensure_venv(requirements, box.state, detect("none"), box.lines.append, TIMEOUT_S))
    assert built is None and box.left() == [] and box.lines == []


def test_requirements_are_text_of_bounded_length(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_bytes(b"\xff")
    with pytest.raises(OrpheusError, match=r"cannot read requirements\.txt"):
        read_requirements(file)
    file.write_text("# " + "x" * build.LIMIT_REQUIREMENTS_BYTES)
    with pytest.raises(OrpheusError) as caught:
        read_requirements(file)
    assert caught.value.code == "too-large"
    file.write_text("six  # not -r other\ngit+https://example.org/x.git\nx @ https://example.org/x.whl\n--pre\n")
    assert read_requirements(file) == "six\ngit+https://example.org/x.git\nx @ https://example.org/x.whl\n--pre"
    file.write_text("one\\ \ntwo\n")
    with pytest.raises(OrpheusError, match=r"line 1: 'one.*' ends with a backslash"):
        read_requirements(file)


@pytest.mark.parametrize("text", [
    "one==1 \\\n  --hash=sha256:0\n# two\nthree  # four\n", "one \\\n\n--pre\n", "one \\\n# two \\\nthree\n",
    "# one \\\ntwo\n", "one \\\n", "one \\\ntwo # three \\\nfour\n\nfive\n", "\\\n\\\none#two\n",
    "# coding: utf-7\n\none\n",
])
def test_requirements_mean_what_they_mean_to_pip(tmp_path: Path, text: str) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text(text)
    stated = read_requirements(file)
    assert stated is not None and list(preprocess(stated)) == list(preprocess(text))


def test_environments_of_one_name_are_built_from_one_text(tmp_path: Path) -> None:
    # the second is no continuation: pip would install without looking at the hash
    def name(text: str) -> str:
        (tmp_path / "requirements.txt").write_text(text)
        stated = read_requirements(tmp_path / "requirements.txt")
        return build._name(str(stated), find_interpreter(), detect("none"))

    hashed = name("one==1 \\\n  --hash=sha256:0\n")
    assert hashed != name("one==1 \\\n\n  --hash=sha256:0\n")
    assert hashed == name("# two\none==1   --hash=sha256:0  # three\n")


def test_environments_that_nobody_uses_are_removed(box: Box) -> None:
    venvs = box.state / "venvs"
    for name in ("used", "unused", "fresh"):
        (venvs / name).mkdir()
        (venvs / name / ".complete").touch()
    for name in (".going-on.1.tmp", ".left.2.tmp"):
        (venvs / name / "bin").mkdir(parents=True)
    for old in ("used/.complete", "unused/.complete", ".left.2.tmp"):
        os.utime(venvs / old, (1, 1))
    assert prune_venvs(box.state, {"used"}) == [".left.2.tmp", "unused"]
    assert box.left() == [".going-on.1.tmp", "fresh", "used"]


def test_the_boxs_own_index_is_used_from_inside(box: Box) -> None:
    isolation = isolated("bwrap")
    host = subprocess.run(
        ["python3", "-m", "pip", "download", "--no-deps", "--quiet", "-d", str(box.root / "host"), "six"],
        capture_output=True, text=True, timeout=60, check=False)
    if host.returncode != 0:
        pytest.skip(f"this box reaches no package index: {host.stderr.strip()[-200:]}")
    (box.root / "requirements.txt").write_text("six\n")
    venv = asyncio.run(ensure_venv(
        box.root / "requirements.txt", box.state, isolation, box.lines.append, TIMEOUT_S, os.environ))
    assert venv is not None and python(venv, "import six; print(six.__name__)") == "six"
