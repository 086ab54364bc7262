"""Where a run log may lie. What may not be is refused in one line, and nothing is changed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orpheusd.errors import OrpheusError
from orpheusd.runlog import place, recovery
from orpheusd.runlog.log import RunLog
from orpheusd.runlog.settings import Settings
from tests.runlog_kit import fill


def refused(path: Path) -> str:
    with pytest.raises(OrpheusError) as error:
        RunLog.open(path, Settings(), print, print)
    assert "\n" not in error.value.message and str(path) in error.value.message
    return error.value.message


def test_no_directory(tmp_path: Path) -> None:
    assert "is not a directory" in refused(tmp_path / "none" / "runs.db")


def test_a_symlink_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "runs.db").symlink_to("/etc/passwd")
    assert "not a regular file" in refused(tmp_path / "runs.db")


@pytest.mark.parametrize("name", ["runs.db", "runs.db-wal", "runs.db.mark"])
def test_a_directory_in_its_place(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert "not a regular file" in refused(tmp_path / "runs.db")


@pytest.mark.parametrize("name", ["runs.db", "runs.db.mark"])
def test_a_read_only_file(tmp_path: Path, name: str) -> None:
    # fault 50
    fill(tmp_path, 1)
    (tmp_path / name).chmod(0o400)
    assert f"{name} is read-only" in refused(tmp_path / "runs.db")


@pytest.mark.root
@pytest.mark.parametrize("name", ["runs.db", "runs.db.mark"])
def test_a_file_of_somebody_else(tmp_path: Path, name: str) -> None:
    # fault 50
    fill(tmp_path, 1)
    os.chown(tmp_path / name, 12345, 12345)
    assert f"{name} belongs to uid 12345" in refused(tmp_path / "runs.db")


@pytest.mark.root
def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    # fault 50: as root everything can be, so ask as somebody else
    tmp_path.chmod(0o555)
    script = (
        "import os; from pathlib import Path; from orpheusd.runlog import place; os.setresuid(12345, 12345, 12345)\n"
        "place.check(Path('.') / 'runs.db')")
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={"PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    assert "is not writable for uid 12345" in done.stderr


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:30 / /srv rw shared:2 - nfs4 server:/export rw
31 30 0:31 / /srv/local\\040disk rw shared:3 - xfs /dev/vdb rw
32 22 0:32 / /mnt rw - tmpfs tmpfs rw
33 22 0:33 / /mnt rw - fuse.sshfs me@there: rw
broken line
"""


@pytest.mark.parametrize(("folder", "kind"), [
    ("/srv/orpheus", "nfs4"), ("/srv/local disk/orpheus", "xfs"), ("/var/lib", "ext4"), ("/srvx", "ext4"),
    ("/mnt", "fuse.sshfs"),
])  # fmt: skip
def test_the_innermost_mount_counts_and_of_two_the_later(tmp_path: Path, folder: str, kind: str) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS)
    assert place.file_system(Path(folder), tmp_path / "mountinfo") == kind


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # fault 50
    monkeypatch.setattr(place, "NETWORK_FILE_SYSTEMS", frozenset((place.file_system(tmp_path),)))
    assert "network file system" in refused(tmp_path / "runs.db")
    assert list(tmp_path.iterdir()) == []


def test_an_old_sqlite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "OLDEST_SQLITE", (99, 0, 0))
    with pytest.raises(OrpheusError, match=r"needs 99\.0\.0"):
        RunLog.open(tmp_path / "runs.db", Settings(), print, print)
