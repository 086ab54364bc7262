"""Files of the workspace: no way out, no half-written file, and `load` gives back what `save` took."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import workspace
from tests.eventually import eventually
from workspace import _runtime

PLACE = str(Path(workspace.__file__).parents[1])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKSPACE_DIR", str(tmp_path / "workspace"))
    return tmp_path / "workspace"


def test_without_orpheus_it_is_a_folder_of_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORKSPACE_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    assert workspace.path() == tmp_path / "workspace-data"
    assert workspace.path().is_dir()


def test_a_bound_workspace_does_not_follow_the_environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runtime, "_bound_root", root.parent / "bound")
    assert workspace.path("a") == root.parent / "bound" / "a"


def test_parents_are_made_and_the_file_is_not(root: Path) -> None:
    path = workspace.path("a", "b", "c.json")
    assert path == root / "a" / "b" / "c.json"
    assert path.parent.is_dir() and not path.exists()


def test_a_path_of_the_workspace_may_be_given_again(root: Path) -> None:
    path = workspace.path("a", "b")
    assert workspace.path(path) == path
    assert workspace.path("a", "..", "x") == root / "x"


@pytest.mark.parametrize("parts", [
    ("..",), ("../x",), ("a", "..", "..", "x"), ("/etc/passwd",), ("/",), ("a", "/etc"), ("../workspace-other/x",)])
def test_a_path_that_leads_out_is_refused(root: Path, parts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="is not inside the workspace"):
        workspace.path(*parts)
    assert not (root.parent / "x").exists()


@pytest.mark.parametrize("target", ["/etc", "..", "../../elsewhere", "loop"])
def test_a_symlink_that_leads_out_is_refused(root: Path, target: str) -> None:
    root.mkdir()
    (root / "link").symlink_to(target)
    if target == "loop":
        (root / "loop").symlink_to("link")
        return
    for name in ("link", "link/file.txt"):
        with pytest.raises(ValueError, match="is not inside the workspace"):
            workspace.path(name)
        with pytest.raises(ValueError, match="is not inside the workspace"):
            workspace.save(name, "x")
        with pytest.raises(ValueError, match="is not inside the workspace"):
            workspace.load(name)


def test_a_symlink_inside_is_followed(root: Path) -> None:
    (root / "real").mkdir(parents=True)
    (root / "link").symlink_to("real")
    workspace.save("link/x.json", [1])
    assert json.loads((root / "real" / "x.json").read_text()) == [1]


def test_a_workspace_that_is_itself_a_symlink_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.setenv("WORKSPACE_DIR", str(tmp_path / "link"))
    assert workspace.path("x", "y") == tmp_path / "link" / "x" / "y"


def test_a_name_with_nul_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="null byte"):
        workspace.path("a\0b")


@given(value=JSON_VALUES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@pytest.mark.parametrize("name", ["state.json", "state", "deep/er/State.JSON"])
def test_json_comes_back(root: Path, name: str, value: Any) -> None:
    workspace.save(name, value)
    assert workspace.load(name) == value


@given(text=st.text())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_text_comes_back(root: Path, text: str) -> None:
    workspace.save("notes.txt", text)
    assert workspace.load("notes.txt") == text


@given(data=st.binary())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_bytes_come_back(root: Path, data: bytes) -> None:
    workspace.save("model.bin", data)
    assert workspace.load("model.bin") == data
    workspace.save("model.bin", bytearray(data))
    assert workspace.load("model.bin") == data


@pytest.mark.parametrize(("name", "value", "error"), [
    ("state.json", b"x", TypeError), ("state", b"x", TypeError), ("notes.txt", b"x", TypeError),
    ("notes.md", {"a": 1}, TypeError), ("model.bin", "x", TypeError), ("model.bin", [1], TypeError),
    ("state.json", float("nan"), ValueError), ("state.json", object(), TypeError),
    ("state.json", "\ud800", ValueError),
    ("notes.txt", "\ud800", ValueError),
])
def test_what_would_not_come_back_is_refused_and_nothing_is_touched(
    root: Path, name: str, value: Any, error: type[Exception]
) -> None:
    file = workspace.path(name)
    file.write_text("old")
    with pytest.raises(error):
        workspace.save(name, value)
    assert file.read_text() == "old"
    assert [path.name for path in root.iterdir()] == [name]


def test_what_is_not_there(root: Path) -> None:
    assert workspace.load("no/such.json", None) is None
    assert workspace.load("no/such.json", {"default": 1}) == {"default": 1}
    with pytest.raises(FileNotFoundError):
        workspace.load("no/such.json")
    assert not (root / "no").exists(), "reading makes no directories"


@pytest.mark.parametrize(("name", "data", "kind"), [("state.json", b"{half", "JSON"), ("notes.txt", b"\xff", "UTF-8")])
def test_a_file_that_holds_something_else_is_named(root: Path, name: str, data: bytes, kind: str) -> None:
    workspace.path(name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{name}.*does not hold {kind}"):
        workspace.load(name, None)


def test_a_failed_write_leaves_the_old_content_and_no_trace(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.save("state.json", "old")

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        workspace.save("state.json", "new")
    monkeypatch.undo()
    assert json.loads((root / "state.json").read_text()) == "old"
    assert [path.name for path in root.iterdir()] == ["state.json"]


def test_a_saved_file_has_the_rights_of_any_new_file(root: Path) -> None:
    old = os.umask(0o027)
    try:
        assert stat.S_IMODE(workspace.save("a.json", 1).stat().st_mode) == 0o640
    finally:
        os.umask(old)


WRITER = """
import os, sys
sys.path.insert(0, sys.argv[1])
import workspace
while True:
    workspace.save("shared.json", sys.argv[2] * 50_000)
"""


def test_readers_see_the_old_or_the_new_and_a_kill_tears_nothing(root: Path) -> None:
    workspace.save("shared.json", "")
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, PLACE, letter]) for letter in "ab"]
    seen: set[str] = set()

    def both_seen() -> bool:
        text = workspace.load("shared.json")
        assert text == "" or (len(text) == 50_000 and len(set(text)) == 1)
        seen.add(text[:1])
        return {"a", "b"} <= seen

    try:
        eventually(both_seen)
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    assert len(set(workspace.load("shared.json"))) <= 1
    assert len(list(root.iterdir())) <= 3


def test_it_needs_nothing_but_the_standard_library() -> None:
    program = ("import sys; sys.path.insert(0, sys.argv[1]); import workspace; "
               "print(sorted(name for name in sys.modules if name.startswith(('orpheus', 'asyncio'))))")
    command = [sys.executable, "-I", "-S", "-c", program, PLACE]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
