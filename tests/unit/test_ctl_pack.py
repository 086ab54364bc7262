"""orpheusctl/pack.py: which files are sent, which are refused, and that the daemon takes what is packed."""

import io
import os
import socket
import tarfile
from pathlib import Path

import pytest

from orpheusctl import pack
from orpheusd.deploy import bundle as daemon_side
from orpheusd.errors import OrpheusError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "my-agent"
    (place / "lib" / "deep").mkdir(parents=True)
    (place / "agent.yaml").write_text("name: my-agent\nruntime: python3\n")
    (place / "agent.py").write_text("def handler(input_data): return 1\n")
    (place / "lib" / "deep" / "x.py").write_text("X = 1\n")
    return place


def packed(folder: Path) -> bytes:
    with pack.pack(folder).stream as stream:
        return stream.read()


def names(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getnames()


def test_a_folder_is_packed_sorted_with_parents_first(folder: Path) -> None:
    assert names(packed(folder)) == ["agent.py", "agent.yaml", "lib", "lib/deep", "lib/deep/x.py"]


def test_the_same_files_give_the_same_bytes(folder: Path) -> None:
    before = packed(folder)
    os.utime(folder / "agent.py", (1, 1))
    assert packed(folder) == before
    assert before[4:8] == bytes(4), "the time in gzip's header"
    (folder / "agent.py").write_text("changed")
    assert packed(folder) != before


def test_the_daemon_unpacks_what_is_packed(folder: Path, tmp_path: Path) -> None:
    (folder / "tool.sh").write_text("#!/bin/sh\n")
    (folder / "tool.sh").chmod(0o700)
    long = folder / "lib" / ("n" * 100) / ("m" * 120)
    long.mkdir(parents=True)
    (long / "grüße.txt").write_text("hallo")
    sent = tmp_path / "sent.tar.gz"
    sent.write_bytes(packed(folder))
    daemon_side.unpack(sent, tmp_path / "code")
    copied = {path.relative_to(tmp_path / "code"): path.read_bytes()
              for path in (tmp_path / "code").rglob("*") if path.is_file()}
    assert copied == {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert (tmp_path / "code" / "tool.sh").stat().st_mode & 0o111
    assert not (tmp_path / "code" / "agent.py").stat().st_mode & 0o111


def test_what_no_agent_needs_is_left_out(folder: Path) -> None:
    for name in (".git/HEAD", "lib/__pycache__/x.cpython-311.pyc", ".venv/bin/python", "old.pyc", "lib/y.pyc"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    assert names(packed(folder)) == ["agent.py", "agent.yaml", "lib", "lib/deep", "lib/deep/x.py"]


@pytest.mark.parametrize(("pattern", "gone"), [
    ("*.log", {"a.log", "lib/b.log"}),
    ("/a.log", {"a.log"}),
    ("lib/", {"lib", "lib/b.log", "lib/a.log.d", "lib/a.log.d/c"}),
    ("a.log/", set()),
    ("lib/*.log", {"lib/b.log"}),
    ("# a.log", set()),
    ("  b.log  ", {"lib/b.log"}),
    ("[ab].log", {"a.log", "lib/b.log"}),
    ("A.LOG", set()),
])
def test_patterns_of_orpheusignore(tmp_path: Path, pattern: str, gone: set[str]) -> None:
    for name in ("agent.yaml", "a.log", "lib/b.log", "lib/a.log.d/c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / ".orpheusignore").write_text(f"\n# comment\n{pattern}\n")
    everything = {".orpheusignore", "agent.yaml", "a.log", "lib", "lib/b.log", "lib/a.log.d", "lib/a.log.d/c"}
    assert {member.name for member in pack.members(tmp_path)} == everything - gone


def test_a_pattern_that_would_bring_back_is_refused_and_not_misread(folder: Path) -> None:
    (folder / ".orpheusignore").write_text("*.txt\n!keep.txt\n")
    with pytest.raises(OrpheusError, match="cannot begin with `!`"):
        packed(folder)


def test_a_link_to_a_file_inside_is_packed_as_the_file(folder: Path) -> None:
    (folder / "link.py").symlink_to("lib/deep/x.py")
    data = packed(folder)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        member = archive.extractfile("link.py")
        assert archive.getmember("link.py").isreg()
        assert member is not None and member.read() == b"X = 1\n"


@pytest.mark.parametrize(("target", "why"), [
    ("/etc/passwd", "leaves the folder, to /etc/passwd"),
    ("../other", "leaves the folder, to ../other"),
    ("lib", "link to a folder"),
    ("nowhere", "link to nothing"),
    ("bad", "."),
])
def test_other_links_are_refused_by_name(folder: Path, target: str, why: str) -> None:
    (folder.parent / "other").write_text("secret")
    (folder / "bad").symlink_to(target)
    with pytest.raises(OrpheusError, match=f"cannot pack 'bad': .*{why}.*orpheusignore") as caught:
        packed(folder)
    assert caught.value.code == "invalid-request"
    (folder / ".orpheusignore").write_text("bad\n")
    assert "bad" not in names(packed(folder))


def test_things_that_are_no_files_are_refused(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(OrpheusError, match="'pipe': it is neither a file nor a folder"):
        packed(folder)
    (folder / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(folder / "s"))
        with pytest.raises(OrpheusError, match="'s': it is neither"):
            packed(folder)


@pytest.mark.parametrize(("limit", "value"), [("FILES_LIMIT", 3), ("SIZE_LIMIT_BYTES", 30)])
def test_a_folder_over_the_limits_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    packed(folder)
    monkeypatch.setattr(pack, limit, value)
    with pytest.raises(OrpheusError, match="name what the agent does not need") as caught:
        packed(folder)
    assert caught.value.code == "too-large"


def test_the_limits_are_the_daemons() -> None:
    assert (pack.FILES_LIMIT, pack.SIZE_LIMIT_BYTES) == (daemon_side.LIMIT_MEMBERS, daemon_side.LIMIT_BYTES)


def test_a_folder_without_agent_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OrpheusError, match=r"has no agent\.yaml"):
        pack.pack(tmp_path)
    with pytest.raises(OrpheusError, match="No such file"):
        pack.pack(tmp_path / "missing")


def test_a_ready_bundle_is_sent_as_it_is(folder: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready.tar.gz"
    with tarfile.open(ready, "w:gz") as archive:
        archive.add(folder, ".")
    assert packed(ready) == ready.read_bytes()


@pytest.mark.parametrize("make", ["text", "truncated", "no manifest", "empty"])
def test_a_file_that_is_no_bundle_is_refused(folder: Path, tmp_path: Path, make: str) -> None:
    ready = tmp_path / "ready.tar.gz"
    (folder / "agent.yaml").rename(folder / ("agent.yaml" if make != "no manifest" else "x"))
    with tarfile.open(ready, "w:gz") as archive:
        archive.add(folder, ".")
    data = {"text": b"name: my-agent", "truncated": ready.read_bytes()[:40], "empty": b""}.get(make)
    if data is not None:
        ready.write_bytes(data)
    with pytest.raises(OrpheusError, match="cannot deploy") as caught:
        pack.pack(ready)
    assert caught.value.code == "invalid-request"
