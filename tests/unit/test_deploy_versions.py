"""The state directory: numbers never come back, refusals leave no trace, what is broken stops nothing else."""

import asyncio
import json
import signal
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from orpheusd.deploy.versions import KEPT_VERSIONS, RolledBackFrom, VersionStore
from orpheusd.errors import OrpheusError
from tests.eventually import eventually
from tests.tars import END, folder, member, packed, snapshot

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    made = VersionStore(tmp_path / "state")
    made.prepare()
    return made


def bundle(tmp_path: Path, name: str = "a", code: bytes = b"x = 1", settings: str = "") -> Path:
    manifest = f"name: {name}\nruntime: python3\n{settings}".encode()
    tar = member("agent.yaml", manifest) + folder("pkg") + member("pkg/agent.py", code) + END
    return packed(tmp_path / "b.tgz", tar)


def deployed(store: VersionStore, tmp_path: Path, name: str = "a") -> int:
    number = store.stage(name, bundle(tmp_path, name)).number
    store.set_current(name, number)
    return number


def test_a_version_is_staged_and_becomes_current(store: VersionStore, tmp_path: Path) -> None:
    version = store.stage("a", bundle(tmp_path, settings="env: [KEY]\nmemory: 64\n"))
    assert (version.name, version.number, version.manifest.memory, version.venv) == ("a", 1, 64, "")
    assert (version.code_dir / "pkg/agent.py").read_bytes() == b"x = 1"
    assert version.requirements == version.code_dir / "requirements.txt"
    assert store.current("a") is None and store.list_agents() == ([], [])
    store.write_env("a", 1, {"KEY": "planted"})
    store.set_current("a", 1)
    assert store.current("a") == 1
    listing = VersionStore(store.state_dir).list_agents()
    assert listing.versions == [version] and not listing.problems
    assert abs(listing.versions[0].deployed_at - version.directory.stat().st_mtime) < 60
    assert store.workspace_dir("a").is_dir()
    assert list((store.state_dir / "tmp").iterdir()) == []


def test_the_state_is_the_daemons_alone(store: VersionStore, tmp_path: Path) -> None:
    version = store.stage("a", bundle(tmp_path))
    store.write_env("a", 1, {"KEY": "planted"})
    store.write_env("a", 1, {"KEY": "planted", "B": "2"})
    assert store.read_env("a", 1) == {"KEY": "planted", "B": "2"}
    private = [*store.state_dir.iterdir(), version.directory, *version.directory.iterdir(), store.workspace_dir("a")]
    for path in private:
        if path != version.code_dir:
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert stat.S_IMODE((version.directory / "env.json").stat().st_mode) == 0o600
    holding = [path for path in store.state_dir.rglob("*") if path.is_file() and b"planted" in path.read_bytes()]
    assert holding == [version.directory / "env.json"]
    assert store.read_env("a", 7) == {}


def test_numbers_never_come_back(store: VersionStore, tmp_path: Path) -> None:
    assert deployed(store, tmp_path) == 1
    store.discard("a", store.stage("a", bundle(tmp_path)).number)
    assert store.stage("a", bundle(tmp_path)).number == 3
    store.remove_agent("a", purge=False)
    assert store.stage("a", bundle(tmp_path)).number == 4
    (store.state_dir / "agents/a/last").unlink()
    assert store.stage("a", bundle(tmp_path)).number == 5


@pytest.mark.parametrize(("name", "content", "words"), [
    ("a", b"no tar", "not a whole tar.gz"),
    ("a", None, "`memry` is not a known key"),
    ("b", None, "names a"),
    ("../x", None, "is not an agent's name"),
    ("A", None, "is not an agent's name"),
])
def test_a_refused_bundle_changes_nothing(
        store: VersionStore, tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    file = bundle(tmp_path, settings="memry: 1\n" if "memry" in words else "")
    if content is not None:
        file.write_bytes(content)
    before = snapshot(store.state_dir)
    with pytest.raises(OrpheusError, match=words) as caught:
        store.stage(name, file)
    assert caught.value.code == "invalid-request"
    after = snapshot(store.state_dir)
    tmp = str(store.state_dir / "tmp")
    assert {key: value for key, value in after.items() if key != tmp} == {
        key: value for key, value in before.items() if key != tmp}


def test_discard_takes_an_empty_workspace_along_but_no_work(store: VersionStore, tmp_path: Path) -> None:
    store.discard("a", store.stage("a", bundle(tmp_path)).number)
    assert not store.workspace_dir("a").exists()
    number = store.stage("a", bundle(tmp_path)).number
    (store.workspace_dir("a") / "file").write_text("work")
    store.discard("a", number)
    assert (store.workspace_dir("a") / "file").read_text() == "work"
    current = deployed(store, tmp_path)
    with pytest.raises(ValueError, match="is current"):
        store.discard("a", current)


def test_old_versions_are_pruned_but_not_those_in_use(store: VersionStore, tmp_path: Path) -> None:
    for _ in range(9):
        deployed(store, tmp_path)
    assert store.prune("a", in_use={2}) == [1, 3]
    assert store.versions("a") == [2, 4, 5, 6, 7, 8, 9]
    store.set_current("a", 4)
    assert store.prune("a") == [2]
    assert store.current("a") == 4 and len(store.versions("a")) == KEPT_VERSIONS + 1


def test_what_never_served_is_nothing_to_go_back_to_and_is_pruned_first(store: VersionStore, tmp_path: Path) -> None:
    deployed(store, tmp_path)
    left_over = store.stage("a", bundle(tmp_path)).number
    for _ in range(KEPT_VERSIONS):
        deployed(store, tmp_path)
    assert left_over not in store.served("a") and len(store.served("a")) == KEPT_VERSIONS + 1
    assert store.prune("a") == [left_over]


def test_a_rollback_is_noted_until_another_version_is_chosen(store: VersionStore, tmp_path: Path) -> None:
    older, newer = deployed(store, tmp_path), deployed(store, tmp_path)
    assert store.rolled_back("a") is None and store.rolled_back("nobody") is None
    note = RolledBackFrom(newer, "its worker ended (signal 9)", 1.5)
    store.set_current("a", older, note)
    again = VersionStore(store.state_dir)
    assert again.current("a") == older and again.rolled_back("a") == note
    for damaged in ("{", "[]", '{"version": 1}'):
        (store.state_dir / "agents/a/rolled-back").write_text(damaged)
        assert store.rolled_back("a") is None
    store.set_current("a", older, note)
    store.set_current("a", newer)
    assert store.rolled_back("a") is None
    store.set_current("a", older, note)
    store.remove_agent("a", purge=False)
    assert store.rolled_back("a") is None


def test_removing_an_agent_keeps_its_workspace_unless_purged(store: VersionStore, tmp_path: Path) -> None:
    deployed(store, tmp_path)
    deployed(store, tmp_path, "other")
    (store.workspace_dir("a") / "file").write_text("work")
    store.logs_dir("a").mkdir()
    store.remove_agent("a", purge=False)
    assert [version.name for version in store.list_agents().versions] == ["other"]
    assert (store.workspace_dir("a") / "file").exists() and store.logs_dir("a").exists()
    assert not (store.state_dir / "agents/a/versions").exists()
    store.remove_agent("a", purge=True)
    store.remove_agent("a", purge=True)
    assert list(store.state_dir.glob("*/a")) == []
    assert deployed(store, tmp_path) == 1


def test_what_is_broken_is_reported_and_stops_nothing_else(store: VersionStore, tmp_path: Path) -> None:
    for name in ("good", "junk-current", "no-version", "no-json", "bad-json", "newer", "no-code", "no-venv", "half",
                 "bad-env", "odd-env"):
        deployed(store, tmp_path, name)
    agents = store.state_dir / "agents"
    (agents / "junk-current/current").write_text("one")
    (agents / "no-version/current").write_text("7")
    (agents / "no-json/versions/1/manifest.json").unlink()
    (agents / "bad-json/versions/1/manifest.json").write_text("{")
    record = json.loads((agents / "newer/versions/1/manifest.json").read_text())
    record["manifest"]["invented_later"] = 1
    (agents / "newer/versions/1/manifest.json").write_text(json.dumps(record))
    (agents / "no-code/versions/1/code").rename(agents / "no-code/versions/1/elsewhere")
    store.set_venv("no-venv", 1, "0" * 32)
    (agents / "half/current").unlink()
    (agents / "bad-env/versions/1/env.json").write_text('{"TOKEN": "x')
    (agents / "odd-env/versions/1/env.json").write_text('{"TOKEN": 1}')
    (agents / "Not A Name").mkdir()
    (agents / "file").write_text("x")
    (agents / "link").symlink_to("good")
    listing = store.list_agents()
    assert [version.name for version in listing.versions] == ["good"]
    told = "\n".join(listing.problems)
    for words in ("junk-current: ", "no-version has no version 7", "no-json is damaged", "bad-json is damaged",
                  "newer is damaged (1 settings are not understood)", "no-code is damaged (its code is missing)",
                  "version 1 of bad-env is damaged (", "version 1 of odd-env is damaged (",
                  "no-venv: its installed packages are missing", "'Not A Name'", "'file'", "'link'"):
        assert words in told
    assert len(listing.problems) == 12


def test_a_missing_version_is_not_found(store: VersionStore, tmp_path: Path) -> None:
    deployed(store, tmp_path)
    for attempt in (lambda: store.load("a", 2), lambda: store.set_current("a", 2), lambda: store.load("b", 1)):
        with pytest.raises(OrpheusError) as caught:
            attempt()
        assert caught.value.code == "not-found"
    assert store.current("a") == 1


def test_a_start_empties_tmp(store: VersionStore, tmp_path: Path) -> None:
    upload = store.uploads.begin()
    asyncio.run(store.uploads.append(upload, "eA=="))
    (store.state_dir / "tmp/stage-1/code").mkdir(parents=True)
    (store.state_dir / "pip-cache/wheels").mkdir(parents=True)
    number = deployed(store, tmp_path)
    again = VersionStore(store.state_dir)
    again.prepare()
    assert list((store.state_dir / "tmp").iterdir()) == []
    assert not (store.state_dir / "pip-cache").exists(), "builds of earlier versions could write there"
    assert again.current("a") == number


def test_venvs_in_use_are_those_that_versions_name(store: VersionStore, tmp_path: Path) -> None:
    deployed(store, tmp_path)
    deployed(store, tmp_path, "b")
    assert store.set_venv("a", 1, "f" * 32).venv == "f" * 32
    assert store.venvs_in_use() == {"f" * 32}
    store.remove_agent("a", purge=False)
    assert store.venvs_in_use() == set()


def test_the_workspace_is_measured_and_cleaned_in_place(store: VersionStore, tmp_path: Path) -> None:
    for attempt in (store.workspace_info, store.workspace_clean):
        with pytest.raises(OrpheusError, match="a has no workspace") as caught:
            attempt("a")
        assert caught.value.code == "not-found"
    deployed(store, tmp_path)
    place = store.workspace_dir("a")
    inode = place.stat().st_ino
    (place / "d").mkdir()
    (place / "d/file").write_bytes(b"12345")
    (place / "out").symlink_to(tmp_path)
    assert store.workspace_info("a") == (2, 5, True)
    assert store.workspace_clean("a") == (2, 5, 0)
    assert place.stat().st_ino == inode and list(place.iterdir()) == []
    place.rmdir()
    place.symlink_to(tmp_path)
    for attempt in (store.workspace_info, store.workspace_clean):
        with pytest.raises(OrpheusError, match="cannot open the workspace of a: Not a directory"):
            attempt("a")
    assert (tmp_path / "b.tgz").exists()


DEPLOYER = """
import sys
from functools import partial
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from orpheusd.deploy.versions import VersionStore
store = VersionStore(Path(sys.argv[1]))
print("go", flush=True)
for _ in range(200):
    version = store.stage("a", Path(sys.argv[2]))
    store.write_env("a", version.number, {"KEY": "v" * 100})
    store.set_current("a", version.number)
    store.prune("a")
"""


def reached(store: VersionStore, goal: int) -> bool:
    return (store.current("a") or 0) >= goal


def test_killed_at_any_moment_the_current_version_is_whole(store: VersionStore, tmp_path: Path) -> None:
    # fault 78
    deployed(store, tmp_path)
    file = bundle(tmp_path, code=b"x = 1\n" * 2000)
    last = 1
    for trial in range(12):
        child = subprocess.Popen(
            [sys.executable, "-c", DEPLOYER, str(store.state_dir), str(file), str(ROOT)], stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline() == b"go\n"
        goal = last + 1 + trial % 3
        eventually(partial(reached, store, goal), timeout_s=10)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        restarted = VersionStore(store.state_dir)
        restarted.prepare()
        version, = restarted.list_agents().versions
        assert version.number >= goal
        assert (version.code_dir / "pkg/agent.py").stat().st_size == 12_000
        assert restarted.read_env("a", version.number) == {"KEY": "v" * 100}
        assert list((store.state_dir / "tmp").iterdir()) == []
        last = version.number


def test_what_a_killed_deploy_left_on_trial_is_gone_at_the_next_start(store: VersionStore, tmp_path: Path) -> None:
    # fault 78: it must not be there to be gone back to
    deployed(store, tmp_path)
    store.stage("a", bundle(tmp_path))
    other = bundle(tmp_path, name="b")
    store.stage("b", other)
    assert store.versions("a") == [1, 2] and store.versions("b") == [1]
    VersionStore(store.state_dir).settle_trials(lambda _name, _number: False)
    assert store.current("a") == 1 and store.versions("a") == [1]
    assert store.versions("b") == [] and not store.workspace_dir("b").exists()
    assert store.stage("a", bundle(tmp_path)).number == 3


def test_one_that_has_processes_stays_until_they_are_gone(store: VersionStore, tmp_path: Path) -> None:
    # it may have served for a moment; a first version has not, as nobody is told of it
    deployed(store, tmp_path)
    store.stage("a", bundle(tmp_path))
    store.stage("b", bundle(tmp_path, name="b"))
    store.settle_trials(lambda name, number: (name, number) in (("a", 2), ("b", 1)))
    assert store.versions("a") == [1, 2] and store.served("a") == [1] and store.versions("b") == []
    assert store.load("a", 2).number == 2 and store.current("a") == 1
    store.settle_trials(lambda _name, _number: False)
    assert store.versions("a") == [1]


def test_a_version_whose_switch_was_interrupted_after_it_is_kept(store: VersionStore, tmp_path: Path) -> None:
    # fault 78
    mark = store.state_dir / "agents/a/versions" / str(deployed(store, tmp_path)) / "trial"
    assert not mark.exists()
    mark.touch()
    VersionStore(store.state_dir).settle_trials(lambda _name, _number: False)
    assert store.versions("a") == [1] and not mark.exists()


def test_a_trial_that_cannot_be_settled_stops_nothing(store: VersionStore, tmp_path: Path) -> None:
    deployed(store, tmp_path)
    (store.state_dir / "agents/a/current").write_text("no number")
    store.stage("b", bundle(tmp_path, name="b"))
    (store.state_dir / "agents/a/versions/1/trial").touch()
    VersionStore(store.state_dir).settle_trials(lambda _name, _number: False)
    assert store.versions("b") == [] and store.versions("a") == [1]
    assert "should hold a number" in store.list_agents().problems[0]
