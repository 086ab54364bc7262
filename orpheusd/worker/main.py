"""A forked child becomes a worker: environment, channel, handler, runs, and the end.

It puts the parts together and decides how the process ends; each part is elsewhere.
"""

import contextlib
import os
import signal
import sys
import traceback

from orpheusd.wire.worker import Role
from orpheusd.worker import failures, handler, sheet
from orpheusd.worker.async_runs import AsyncRuns
from orpheusd.worker.channel import Channel, ChannelClosed, dial
from orpheusd.worker.confinement import limit_open_files
from orpheusd.worker.launch import EXIT_CANNOT_START, EXIT_CHANNEL, Birth, Setup
from orpheusd.worker.notes import Notes
from orpheusd.worker.output import Output, switchboard
from orpheusd.worker.sync_runs import SyncRuns
from workspace import _runtime

#: Interpreter shutdown runs the agent's atexit functions and joins its threads; one that hangs must not.
SHUTDOWN_LIMIT_S = 2
#: The last messages of a worker that leaves by itself.
FLUSH_LIMIT_S = 1.0
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Set by whoever launched the template without a pid namespace, to find survivors by; subprocesses must keep it.
_SANDBOX_TAG = "ORPHEUS_SANDBOX"


def live(birth: Birth) -> None:
    """The whole life of a worker. Leaves by SystemExit or at once; never returns to the template's code."""
    owner_pid = os.getpid()
    try:
        status = _live(birth)
    except ChannelClosed:
        status = EXIT_CHANNEL  # nobody to work for
    except SystemExit:
        status = 0  # a signal handler of the agent's, between two runs: it means the process
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        status = EXIT_CHANNEL
    if os.getpid() != owner_pid:
        os._exit(0)  # a fork that the agent made and let return from its handler
    switchboard.idle = None
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SHUTDOWN_LIMIT_S)
    sys.exit(status)


def settle(setup: Setup) -> None:
    """Make a template the agent's: its environment, its folder, its modules. Workers inherit all of it."""
    environ = {
        "PATH": f"{os.path.dirname(sys.executable)}:{_SYSTEM_PATH}",  # noqa: PTH120
        "HOME": "/tmp",  # noqa: S108 - private in the sandbox
        "LANG": "C.UTF-8",
        **setup.env,
        "WORKSPACE_DIR": setup.workspace_dir,
        "ORPHEUS_AGENT": setup.agent,
    }
    if _SANDBOX_TAG in os.environ:
        environ[_SANDBOX_TAG] = os.environ[_SANDBOX_TAG]
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(setup.code_dir)
    if setup.code_dir not in sys.path:
        sys.path.insert(0, setup.code_dir)
    _runtime.bind(setup.workspace_dir)


def _live(birth: Birth) -> int:
    limit_open_files()
    # Until somebody listens, a doorbell must not kill.
    signal.signal(signal.SIGUSR1, _ignore)
    os.environ["ORPHEUS_WORKER"] = birth.worker_id
    channel = dial(birth.socket, Role.WORKER, birth.worker_id, birth.nonce)
    switchboard.idle = Output(channel, birth.worker_id, None, None)
    os.register_at_fork(after_in_child=lambda: _disown(channel))
    try:
        runs = _prepare(handler.load(birth.setup), channel, birth)
        runs.start()
    except ChannelClosed:
        raise
    except BaseException as error:
        switchboard.idle.flush()
        payload = failures.describe(error, handler.import_failure_text(error))
        channel.deliver("failed", {"code": "handler-failed"}, payload)
        return EXIT_CANNOT_START
    switchboard.idle.flush()
    with contextlib.suppress(ChannelClosed):  # found out, and dialled again, by whoever reads next
        channel.deliver("ready", {"handler": runs.form})
    runs.serve()
    switchboard.idle.flush()
    channel.flush(FLUSH_LIMIT_S)
    return 0


def _prepare(found: handler.Handler, channel: Channel, birth: Birth) -> AsyncRuns | SyncRuns:
    if found.is_async:
        return AsyncRuns(channel, found, birth.setup, birth.worker_id, Notes(birth.sheet))
    return SyncRuns(channel, found, birth.setup, birth.worker_id)


def _disown(channel: Channel) -> None:
    """In a process that the agent forked: it is not this worker, and prints where any process prints."""
    switchboard.idle = None
    sheet.write_elsewhere()
    channel.abandon()


def _ignore(signum: int, frame: object) -> None:
    """Unlike SIG_IGN this is not inherited by what the agent executes."""
