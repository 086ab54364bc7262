"""A real template: launch, fork, reap, what its workers leave behind, and its own end."""

import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orpheusd.wire.worker import PROTOCOL_VERSION
from tests.eventually import eventually
from tests.integration.worker_peer import HANDLERS, Peer, command, fds

#: The budget is 5 ms on a quiet box. On a busy one the best of several tells most, and gets some more; an import
#: that went from the template into the worker would still take longer.
FORK_BUDGET_S = 0.020


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    with Peer(tmp_path_factory.mktemp("template"), env={"MODE": "test", "PATH": "/usr/bin:/bin"}) as peer:
        yield peer.start()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_it_says_hello_and_each_worker_does(peer: Peer) -> None:
    hello = peer.template.hello
    assert hello and hello.fields == {
        "protocol": PROTOCOL_VERSION, "role": "template", "id": "t-1-1", "nonce": "n0"}
    worker = peer.fork("w-hello")
    assert worker.hello and worker.hello.fields == {
        "protocol": PROTOCOL_VERSION, "role": "worker", "id": "w-hello", "nonce": "n-w-hello"}
    assert worker.take("ready").fields == {"handler": "sync"}
    assert worker.pid not in (peer.template.pid, os.getpid())
    peer.end(worker)
    assert peer.exited("w-hello") == 0


def test_a_worker_is_ready_within_milliseconds(peer: Peer) -> None:
    took = []
    workers = []
    for _ in range(20):
        started = time.perf_counter()
        workers.append(peer.worker())
        took.append(workers[-1].said_at - started)
    peer.end(*workers)
    assert min(took) < FORK_BUDGET_S, took


def test_a_worker_has_no_fd_but_its_own(peer: Peer) -> None:
    worker = peer.worker()
    open_now = fds(worker.pid)
    assert sorted(open_now) == [0, 1, 2, 3, 4]
    assert open_now[0] == "/dev/null"
    assert open_now[1].startswith("pipe:") and open_now[2].startswith("pipe:") and open_now[1] != open_now[2]
    assert open_now[3].startswith("/memfd:orpheus-stack") and open_now[4].startswith("socket:")
    peer.end(worker)


def test_workers_of_workers_see_none_of_the_templates_fds(peer: Peer) -> None:
    worker = peer.worker()
    left = worker.call({"do": "daemonises"}).value
    # Until it has executed its program, it is still a shell that opens this and that.
    eventually(lambda: Path(f"/proc/{left}/comm").read_text() == "sleep\n")
    eventually(lambda: sorted(fds(left)) == [0, 1, 2])
    peer.end(worker)
    eventually(lambda: not alive(left), what="the orphan is killed with its worker")


def test_a_worker_starts_with_clean_signals_and_environment(peer: Peer) -> None:
    worker = peer.worker()
    assert worker.call({"do": "signals"}).value == {
        "term": True, "wakeup": -1, "chld": True, "sid": True, "mask": [], "faulthandler": True}
    value = worker.call({"do": "environment"}).value
    assert value["environ"] == {
        "PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "MODE": "test", "ORPHEUS_AGENT": "probe",
        "WORKSPACE_DIR": str(peer.place / "workspace"), "ORPHEUS_SANDBOX": f"t-{peer.place.name}",
        "ORPHEUS_WORKER": value["environ"]["ORPHEUS_WORKER"]}
    assert worker.hello and value["environ"]["ORPHEUS_WORKER"] == worker.hello.fields["id"]
    assert value["cwd"] == str(HANDLERS) and value["path"][0] == str(HANDLERS)
    assert value["stdin"] == ""
    peer.end(worker)


def test_workers_do_not_share_random_numbers(peer: Peer) -> None:
    workers = [peer.worker() for _ in range(3)]
    drawn = [tuple(worker.call({"do": "randoms"}).value) for worker in workers]
    assert len(set(drawn)) == 3
    peer.end(*workers)


@pytest.mark.parametrize(("what", "status"), [
    ({"do": "exits_at_once", "status": 0}, 0),
    ({"do": "exits_at_once", "status": 7}, 7),
    ({"do": "kills_itself", "signal": signal.SIGKILL}, -signal.SIGKILL),
    ({"do": "kills_itself", "signal": signal.SIGTERM}, -signal.SIGTERM),
    ({"do": "crashes_in_c"}, -signal.SIGSEGV),
])
def test_the_status_of_a_dead_worker_is_reported(peer: Peer, what: dict[str, object], status: int) -> None:
    # faults 1, 2, 3, 4
    worker = peer.worker()
    worker.run(what)
    assert worker.hello
    assert peer.exited(worker.hello.fields["id"]) == status
    peer.end(worker)


def test_the_last_words_come_before_the_death(peer: Peer) -> None:
    worker = peer.worker()
    worker.run({"do": "prints_past_python_and_crashes"})
    assert worker.hello
    worker_id = worker.hello.fields["id"]
    peer.template.take("exited", worker_id=worker_id)
    assert peer.template.logs(worker_id=worker_id, stream="stderr") == ["last words"]
    peer.end(worker)


@pytest.mark.parametrize("setsid", [False, True])
@pytest.mark.parametrize("do", ["forks_and_stays", "daemonises"])
def test_a_dead_worker_leaves_no_process(peer: Peer, do: str, setsid: bool) -> None:
    # fault 12
    worker = peer.worker()
    left = worker.call({"do": do, "setsid": setsid}).value
    assert alive(left)
    os.kill(worker.pid, signal.SIGKILL)
    assert worker.hello
    assert peer.exited(worker.hello.fields["id"]) == -signal.SIGKILL
    eventually(lambda: not alive(left), what="what it left is gone")
    peer.end(worker)


@pytest.mark.parametrize("setsid", [False, True])
def test_what_a_live_worker_left_running_survives_anothers_death(peer: Peer, setsid: bool) -> None:
    living, dying = peer.worker(), peer.worker()
    left = living.call({"do": "daemonises", "setsid": setsid}).value
    eventually(lambda: _parent(left) == peer.process.pid, what="the orphan falls to the template")
    os.kill(dying.pid, signal.SIGKILL)
    assert dying.hello
    peer.exited(dying.hello.fields["id"])
    peer.end(peer.worker())
    assert alive(left)
    peer.end(living, dying)
    eventually(lambda: not alive(left), what="and dies with its own worker")


def test_a_flood_of_zombies_is_buried(peer: Peer) -> None:
    # fault 14
    worker = peer.worker()
    for _ in range(300):
        os.kill(worker.call({"do": "daemonises"}).value, signal.SIGKILL)
    eventually(lambda: len(_children(peer.process.pid)) <= 1, what="only the worker is left")
    peer.end(worker)


def test_output_past_python_comes_from_the_template(peer: Peer) -> None:
    worker = peer.worker()
    assert worker.hello
    worker_id = worker.hello.fields["id"]
    worker.call({"do": "prints_past_python", "text": "one\ntwo\nthr"})
    worker.call({"do": "prints_past_python", "text": "ee\n"})
    worker.call({"do": "prints_past_python", "text": "error\n", "fd": 2})
    worker.call({"do": "subprocess_prints"})
    peer.template.take("log", worker_id=worker_id, text="to stderr", stream="stderr")
    eventually(lambda: peer.settle() or len(peer.template.inbox) >= 5)
    messages = [message for message in peer.template.inbox if message.fields["worker_id"] == worker_id]
    assert all(message.fields["run_id"] is None and message.fields["dropped_bytes"] == 0 for message in messages)
    assert peer.template.logs(worker_id=worker_id, stream="stdout") == ["one", "two", "three", "from a child"]
    assert peer.template.logs(worker_id=worker_id, stream="stderr") == ["error"]
    peer.end(worker)


def test_a_flood_past_python_blocks_nobody_and_is_counted(peer: Peer) -> None:
    # fault 16
    worker = peer.worker()
    assert worker.hello
    worker_id = worker.hello.fields["id"]
    size = 32 << 20
    took = worker.call({"do": "floods_past_python", "bytes": size}).value
    assert took < 4
    peer.end(worker)
    peer.exited(worker_id)
    messages = [message for message in peer.template.inbox
                if message.type == "log" and message.fields["worker_id"] == worker_id]
    kept = sum(len(message.fields["text"]) + 1 for message in messages if message.fields["text"])
    dropped = sum(message.fields["dropped_bytes"] for message in messages)
    assert kept + dropped == size
    assert kept < 4 << 20
    peer.template.logs(worker_id=worker_id)


def test_a_spamming_worker_does_not_delay_forks(peer: Peer) -> None:
    spammer = peer.worker()
    spammer.run({"do": "floods_for_ever"})
    assert spammer.hello
    peer.template.take("log", worker_id=spammer.hello.fields["id"])
    took = []
    workers = []
    for _ in range(8):
        started = time.perf_counter()
        workers.append(peer.worker())
        took.append(workers[-1].said_at - started)
    os.kill(spammer.pid, signal.SIGKILL)
    peer.exited(spammer.hello.fields["id"])
    peer.end(*workers, spammer)
    peer.template.logs()
    assert min(took) < 5 * FORK_BUDGET_S, took


def test_a_supervisor_that_does_not_read_stops_neither_worker_nor_template(peer: Peer) -> None:
    worker = peer.worker()
    assert worker.hello
    peer.template.reading = False
    assert worker.call({"do": "floods_past_python", "bytes": 16 << 20}).state == "completed"
    peer.end(worker)
    peer.template.reading = True
    assert peer.exited(worker.hello.fields["id"]) == 0
    peer.end(peer.worker())
    peer.template.logs()


def test_a_worker_that_cannot_be_forked_is_reported(tmp_path: Path) -> None:
    with Peer(tmp_path) as peer:
        peer.start()
        limit = len(fds(peer.process.pid)) + 3
        hard = resource.prlimit(peer.process.pid, resource.RLIMIT_NOFILE)[1]
        resource.prlimit(peer.process.pid, resource.RLIMIT_NOFILE, (limit, hard))
        peer.template.send("fork", {"worker_id": "w-none", "nonce": "n"})
        assert peer.exited("w-none") == 71
        assert "cannot fork a worker" in peer.template.logs(worker_id="w-none")[0]
        resource.prlimit(peer.process.pid, resource.RLIMIT_NOFILE, (hard, hard))
        peer.end(peer.worker())


def test_stop_ends_workers_and_template(tmp_path: Path) -> None:
    with Peer(tmp_path) as peer:
        peer.start()
        workers = [peer.worker() for _ in range(3)]
        workers[0].run({"do": "spins"})
        left = workers[1].call({"do": "forks_and_stays", "setsid": True}).value
        started = time.monotonic()
        peer.template.send("stop", {})
        assert {peer.template.take("exited").fields["status"] for _ in workers} == {-signal.SIGTERM}
        assert peer.process.wait(5) == 0
        assert time.monotonic() - started < 2
        assert not alive(left)


def test_workers_that_ignore_sigterm_are_killed(tmp_path: Path) -> None:
    # fault 11
    (tmp_path / "deaf.py").write_text(
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ndef handler(x):\n    while True: pass\n")
    with Peer(tmp_path, "deaf", code_dir=str(tmp_path)) as peer:
        peer.start().worker().run()
        peer.template.send("stop", {})
        assert peer.template.take("exited").fields["status"] == -signal.SIGKILL
        assert peer.process.wait(5) == 0


@pytest.mark.parametrize("how", ["end of channel", "SIGTERM", "garbage"])
def test_the_template_leaves_with_its_workers(tmp_path: Path, how: str) -> None:
    # fault 12
    with Peer(tmp_path) as peer:
        peer.start()
        worker = peer.worker()
        worker.run({"do": "sleeps", "seconds": 30})
        if how == "SIGTERM":
            peer.process.terminate()
        elif how == "garbage":
            peer.template.sock.sendall(b"this is no message\n")
        else:
            peer.template.sock.shutdown(socket.SHUT_RDWR)
        assert peer.process.wait(5) == (70 if how == "garbage" else 0)
        eventually(lambda: not alive(worker.pid))


@pytest.mark.parametrize("line", [b"", b"{}\n", b"not json\n", b'{"template_id": 1, "nonce": "", "socket": ""}\n'])
def test_a_bad_launch_line_is_refused(line: bytes, tmp_path: Path) -> None:
    result = subprocess.run(command(tmp_path), check=False, input=line, capture_output=True, timeout=10)
    assert result.returncode == 70
    assert b"orpheus template cannot go on" in result.stderr


def test_a_bad_setup_is_refused(tmp_path: Path) -> None:
    with Peer(tmp_path) as peer:
        peer.template.send("setup", {}, b'{"agent": 1}')
        assert peer.process.wait(5) == 70
        assert "Setup" in peer.output()


def test_a_preloaded_module_is_imported_once_and_shared(tmp_path: Path) -> None:
    with Peer(tmp_path, "preloaded", preload=True) as peer:
        peer.start()
        first, second = peer.worker(), peer.worker()
        one, two = first.call().value, second.call().value
        assert one["imported_in"] == two["imported_in"] == peer.process.pid
        assert one["random"] != two["random"]
        # The module's file is not shared, but its number stays taken.
        assert one["read"] == "Bad file descriptor"
        assert len(one["fds"]) == 7 and one["fd"] in one["fds"]
        assert first.logs() == ["INFO:preloaded:logged in a run"]
        assert "preloading" in peer.output() and "1 thread(s)" in peer.output()
        peer.end(first, second)


def test_a_preload_that_fails_is_said_and_the_template_leaves(tmp_path: Path) -> None:
    with Peer(tmp_path, "import_raises", preload=True) as peer:
        peer.say_setup()
        failed = peer.template.take("failed")
        assert failed.fields == {"code": "handler-failed"}
        assert b"bad at import" in failed.payload
        assert peer.process.wait(5) == 1


def test_a_session_that_ends_as_its_worker_leaves_ends_once(tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text(
        "import workspace\n"
        "@workspace.on_session_end\n"
        "def ended(session_id, reason): print('over:', session_id, reason)\n"
        "def handler(x): return x\n")
    with Peer(tmp_path, "ends", code_dir=str(tmp_path)) as peer:
        peer.acknowledges = False
        worker = peer.start().worker()
        worker.call(run_id="r-1", session_id="s", turn=1, context="new")
        # in one piece, so that no idle moment lies between them; then it waits for the word about its run
        worker.sock.sendall(worker.link.send("session_end", {"session_id": "s", "reason": "ended"})
                            + worker.link.send("stop", {}))
        peer.settle(0.2)
        worker.send("acknowledged", {"run_ids": ["r-1"]})
        worker.gone()
        assert worker.logs() == ["over: s ended"]


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
