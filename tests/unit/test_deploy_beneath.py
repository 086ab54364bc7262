"""Directories that belong to somebody hostile: opened, measured and emptied without ever leaving them."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orpheusd.deploy import beneath
from orpheusd.deploy.beneath import DIRECTORY, empty, measure, open_beneath, open_by_parts, remove
from tests.tars import snapshot

Open = Callable[[int, str, int], int]
#: Deeper than recursion, open descriptors and path lengths allow.
DEEP = 3000


@pytest.fixture(params=[open_beneath, open_by_parts], ids=["openat2", "by parts"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str, int], str]:
    """Opens a path below tmp_path/in and answers what it read."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "in/d").mkdir(parents=True)
    (tmp_path / "in/d/file").write_text("inside")
    (tmp_path / "in/out").symlink_to("..")
    (tmp_path / "in/here").symlink_to("d")
    (tmp_path / "in/d/leaf").symlink_to("../../secret")
    (tmp_path / "in/self").symlink_to("/proc/self/root")
    open_one: Open = request.param

    def read(path: str, flags: int = os.O_RDONLY) -> str:
        root = os.open(tmp_path / "in", DIRECTORY)
        try:
            fd = open_one(root, path, flags)
        finally:
            os.close(root)
        with os.fdopen(fd) as stream:
            return stream.read()

    return read


def test_what_is_beneath_opens(opened: Callable[[str], str]) -> None:
    assert opened("d/file") == "inside"


@pytest.mark.parametrize("path", [
    "../secret", "d/../../secret", "/etc/passwd", "out/secret", "here/file", "d/leaf", "self/etc/passwd",
])
def test_no_path_leads_out_nor_through_a_symlink(opened: Callable[[str], str], path: str) -> None:
    with pytest.raises(OSError) as caught:
        opened(path)
    assert caught.value.errno in (errno.EXDEV, errno.ELOOP, errno.ENOTDIR)


def test_without_openat2_the_parts_are_opened_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise OSError(errno.ENOSYS, "no such call")

    monkeypatch.setattr(beneath, "_openat2", refused)
    (tmp_path / "file").write_text("x")
    root = os.open(tmp_path, DIRECTORY)
    try:
        os.close(open_beneath(root, "file", os.O_RDONLY))
        with pytest.raises(FileNotFoundError):
            open_beneath(root, "none", os.O_RDONLY)
    finally:
        os.close(root)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A workspace that is gone afterwards, however deep: nothing else could remove it."""
    made = tmp_path / "workspace"
    made.mkdir()
    yield made
    subprocess.run(["rm", "-rf", str(made)], check=True, timeout=30)


def hostile(path: Path) -> int:
    """Fills `path` with what agents may leave; how many files that are."""
    (path / "plain").write_bytes(b"12345")
    (path / "out").symlink_to("/etc")
    (path / "dangling").symlink_to("nowhere")
    (path / "a/b/c").mkdir(parents=True)
    (path / "a/b/c/f").write_bytes(b"1234567")
    (path / "a/b/up").symlink_to("../../..")
    os.mkfifo(path / "pipe")
    for name in (b"-rf", b"new\nline", b"\xff\xfe", b"n" * 255, b" ", b"..."):
        Path(os.fsdecode(os.fsencode(path) + b"/" + name)).write_bytes(b"")
    here = os.open(path, DIRECTORY)
    for _ in range(DEEP):
        os.mkdir("deep", dir_fd=here)
        inner = os.open("deep", DIRECTORY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    return 13


def test_a_hostile_tree_is_measured_and_emptied_and_nothing_else(tmp_path: Path, place: Path) -> None:
    # faults 54, 55
    (tmp_path / "outside").write_text("precious")
    inode = place.stat().st_ino
    files = hostile(place)
    etc = Path("/etc").stat().st_mtime_ns
    assert measure(place) == (files - 1, 12, False)  # the one at the bottom is too deep to be counted
    emptied = empty(place)
    assert emptied == (files, 12, 0)
    assert list(place.iterdir()) == [] and place.stat().st_ino == inode
    assert (tmp_path / "outside").read_text() == "precious" and Path("/etc").stat().st_mtime_ns == etc
    assert measure(place) == (0, 0, True)


def test_counting_has_an_end(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"f{number}").write_text("x")
    assert measure(tmp_path, limit_entries=20) == (20, 20, True)
    assert measure(tmp_path, limit_entries=19) == (19, 19, False)


@pytest.mark.parametrize("act", [measure, empty])
def test_a_directory_replaced_by_a_symlink_is_not_followed(tmp_path: Path, act: Callable[[Path], object]) -> None:
    # fault 54
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/file").write_text("precious")
    (tmp_path / "workspace").symlink_to("elsewhere")
    before = snapshot(tmp_path)
    with pytest.raises(NotADirectoryError):
        act(tmp_path / "workspace")
    assert snapshot(tmp_path) == before


def test_a_tree_that_changes_under_the_broom_leads_nowhere(tmp_path: Path, place: Path) -> None:
    # fault 54: a directory and a symlink to a neighbour take each other's place as fast as they can
    (tmp_path / "precious").mkdir()
    for number in range(50):
        (tmp_path / f"precious/{number}").write_text("x")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            try:
                (place / "d/e").mkdir(parents=True, exist_ok=True)
                (place / "link").symlink_to(tmp_path / "precious")
                (place / "d").rename(place / "old")
                (place / "link").rename(place / "d")
                (place / "d").rename(place / "old/e/inner")
            except OSError:
                continue

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(300):
            empty(place)
            measure(place)
    finally:
        stop.set()
        thread.join()
    assert len([path for path in (tmp_path / "precious").iterdir() if path.is_file()]) == 50
    empty(place)
    assert list(place.iterdir()) == []


@pytest.mark.root
def test_directories_that_their_owner_locked_are_removed_as_well(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from orpheusd.deploy.beneath import empty
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
place = Path(sys.argv[1])
(place / "a/b/c").mkdir(parents=True)
(place / "a/b/f").write_text("x")
for name in ("a/b/c", "a/b", "a"):
    (place / name).chmod(0)
print(empty(place), os.listdir(place))
"""
    place = tmp_path / "workspace"
    place.mkdir()
    for path in (one for one in (place, *place.parents) if "pytest-of-" in str(one)):
        path.chmod(0o755)
    os.chown(place, 65534, 65534)
    done = subprocess.run(
        [sys.executable, "-c", script, str(place), str(Path(__file__).parents[2])], capture_output=True, text=True,
        timeout=20, check=False)
    assert done.stdout.strip() == "Emptied(files=1, size_bytes=1, left=0) []", done.stderr


def test_what_cannot_be_removed_is_counted(tmp_path: Path) -> None:
    mounted = tmp_path / "w/d"
    mounted.mkdir(parents=True)
    script = f"""
mount -t tmpfs none {mounted} && exec {sys.executable} -c '
import sys
from pathlib import Path
sys.path.insert(0, "{Path(__file__).parents[2]}")
from orpheusd.deploy.beneath import empty, remove
print(empty(Path("{tmp_path}/w")))
try:
    remove(Path("{tmp_path}/w"))
except OSError as error:
    print(error.strerror)'
"""
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script], capture_output=True, text=True,
        timeout=20, check=False)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no user namespaces here: {done.stderr.strip()}")
    assert done.stdout.splitlines() == ["Emptied(files=0, size_bytes=0, left=1)", "Directory not empty"], done.stderr


def test_remove_takes_files_links_and_nothing_alike(tmp_path: Path) -> None:
    (tmp_path / "d/e").mkdir(parents=True)
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to("kept")
    (tmp_path / "file").write_text("x")
    for name in ("d", "link", "file", "none"):
        remove(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
