"""A sync agent that does what its input says: `{"do": name, ...}` calls the function of that name.

Most are what agents do in bad moments: each function is a handler of its own, gathered in one module so that
a test needs one template.
"""

import contextvars
import ctypes
import datetime
import decimal
import enum
import faulthandler
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import workspace

memory: dict[str, int] = {}
hold: list[Any] = []


def handler(input_data):
    if not isinstance(input_data, dict) or "do" not in input_data:
        return input_data
    return globals()[input_data["do"]](input_data)


def count(input_data):
    session = input_data.get("session_id", "default")
    memory[session] = memory.get(session, 0) + 1
    return {"turn": memory[session], "pid": os.getpid()}


def facts(_input):
    run = workspace.run
    return {"id": run.id, "agent": run.agent, "version": run.version, "session": run.session, "turn": run.turn,
            "context": run.context, "remaining_s": run.remaining_s, "deadline": run.deadline}


def environment(_input):
    return {"environ": dict(os.environ), "cwd": str(Path.cwd()), "path": sys.path, "stdin": sys.stdin.read()}


def raises(input_data):
    raise ValueError(input_data.get("text", "it went wrong"))


def raises_from(_input):
    try:
        int("x")
    except ValueError as error:
        raise RuntimeError("while counting") from error


class Hostile(Exception):
    def __str__(self):
        raise OSError("no text for you")

    __repr__ = __str__

    def __reduce__(self):
        raise OSError("nor a pickle")


def raises_hostile(_input):
    raise Hostile


def raises_long(_input):
    raise ValueError("m" * 10_000_000)


def raises_surrogate(_input):
    raise ValueError("lone \ud800 surrogate, and a line\nbreak \0")


def recurses(_input):
    return recurses(_input)


def runs_out_of_memory(_input):
    raise MemoryError


def interrupts(_input):
    raise KeyboardInterrupt


def generator_exit(_input):
    raise GeneratorExit


def exits(_input):
    sys.exit(3)


def exits_at_once(input_data):
    os._exit(input_data["status"])


def kills_itself(input_data):
    os.kill(os.getpid(), input_data["signal"])
    time.sleep(30)


def crashes_in_c(_input):
    ctypes.string_at(0)


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    when: datetime.datetime


class Model:
    def model_dump(self, mode):
        return {"mode": mode}


def rich_values(_input):
    return {
        "point": Point(1, datetime.datetime(2024, 1, 2, 3, 4, 5)), "day": datetime.date(2024, 1, 2),
        "time": datetime.time(3, 4), "uuid": uuid.UUID(int=7), "path": Path("/a/b"),
        "decimal": decimal.Decimal("1.10"), "colour": Colour.RED, "set": {3, 1, 2}, "tuple": (1, 2),
        "model": Model(), "number_key": {1: 2, None: 3}, "text": "é\u2028\0", "frozen": frozenset("a"),
    }


def deep(levels):
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def cycle():
    value: list[Any] = [1]
    value.append({"again": value})
    return value


UNFIT = {
    "nan": lambda: {"items": [{"price": 1}, {"price": float("nan")}]},
    "infinity": lambda: [1.0, float("-inf")],
    "bytes": lambda: {"data": b"x"},
    "cycle": cycle,
    "deep": lambda: deep(501),
    "very deep": lambda: deep(100_000),
    "surrogate": lambda: ["ok", "\udc80"],
    "key": lambda: {(1, 2): 3},
    "object": object,
    "huge integer": lambda: 10 ** 5000,
    "decimal": lambda: decimal.Decimal("NaN"),
    "hostile": lambda: [Hostile()],
}


def unfit(input_data):
    return UNFIT[input_data["kind"]]()


def nests(input_data):
    return deep(input_data["levels"])


def returns_much(input_data):
    return "x" * input_data["bytes"]


def returns_many(input_data):
    return ["x" * 1000] * input_data["count"]


def prints(input_data):
    print(input_data["text"], end=input_data.get("end", "\n"))
    print("to stderr", file=sys.stderr)


def prints_much(input_data):
    started = time.perf_counter()
    if input_data.get("lines"):
        for _ in range(input_data["bytes"] // 100):
            print("x" * 99)
    else:
        print("x" * input_data["bytes"])
    return time.perf_counter() - started


def prints_empty_lines(input_data):
    print("\n" * input_data["count"], end="")


def prints_oddly(_input):
    sys.stdout.write("one ")
    sys.stdout.write("line\ntwo")
    print()
    sys.stdout.buffer.write("bytés\n".encode())
    sys.stdout.writelines(["a\n", "b\n"])
    sys.stdout.reconfigure(encoding="utf-8")
    print("lone \ud800", flush=True)
    sys.stdout.close()
    print("z" * 40_000)
    print("no newline", end="")
    return {"fileno": sys.stdout.fileno(), "stderr": sys.stderr.fileno(), "tty": sys.stdout.isatty(),
            "encoding": sys.stdout.encoding}


logging.basicConfig(level=logging.INFO)


def logs(_input):
    logging.getLogger("agent").info("a log line")
    warnings.warn("a warning", UserWarning, stacklevel=1)


def prints_in_thread(_input):
    context = contextvars.copy_context()
    threads = [threading.Thread(target=context.run, args=(print, "with context")),
               threading.Thread(target=print, args=("without context",))]
    for thread in threads:
        thread.start()
        thread.join()


def prints_in_threads(input_data):
    def work(name):
        for number in range(input_data["lines"]):
            print(f"{name} {number}")

    threads = [threading.Thread(target=contextvars.copy_context().run, args=(work, f"t{index}"))
               for index in range(input_data["threads"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def prints_past_python(input_data):
    os.write(input_data.get("fd", 1), input_data["text"].encode())


def prints_past_python_and_crashes(_input):
    os.write(2, b"last words")
    os.kill(os.getpid(), signal.SIGKILL)


def floods_past_python(input_data):
    chunk = b"y" * 63 + b"\n"
    started = time.perf_counter()
    for _ in range(input_data["bytes"] // 65536):
        os.write(1, chunk * 1024)
    return time.perf_counter() - started


def floods_for_ever(_input):
    subprocess.run(["yes"], check=False)


def subprocess_prints(_input):
    subprocess.run(["sh", "-c", "echo from a child; echo to stderr >&2"], stdout=sys.stdout, check=True)
    return subprocess.run(["sh", "-c", "echo $ORPHEUS_WORKER"], capture_output=True, text=True, check=True).stdout


def sleeps(input_data):
    try:
        time.sleep(input_data["seconds"])
    finally:
        Path(workspace.path("cleaned")).write_text(workspace.run.id or "")
    if "then_prints" in input_data:
        print(input_data["then_prints"])
    return "slept"


def spins(_input):
    print("spinning")
    number = 0
    while True:
        number += 1


def swallows_once(_input):
    try:
        time.sleep(30)
    except BaseException as error:
        return type(error).__name__


def retries_for_ever(_input):
    while True:
        try:
            time.sleep(30)
        except Exception:
            continue


def waits_for_lock(_input):
    with workspace.lock("held"):
        return "held"


def emits(input_data):
    for number in range(input_data["count"]):
        workspace.emit({"step": number})
    return "done"


def emits_unfit(_input):
    workspace.emit({"data": b"x"})


def emits_in_threads(input_data):
    def work():
        for number in range(input_data["count"]):
            workspace.emit(number)

    threads = [threading.Thread(target=contextvars.copy_context().run, args=(work,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def emits_for_ever(_input):
    while True:
        workspace.emit("x" * 1000)


def changes_everything(_input):
    os.chdir("/")
    os.umask(0o777)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def leaves_alarm(_input):
    def fire(_number, _frame):
        raise TimeoutError("an alarm left behind")

    signal.signal(signal.SIGALRM, fire)
    signal.setitimer(signal.ITIMER_REAL, 0.05)


def prints_from_alarm(input_data):
    signal.signal(signal.SIGALRM, lambda *_: print("alarm"))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    for number in range(input_data["lines"]):
        print(f"line {number}")
    signal.setitimer(signal.ITIMER_REAL, 0)


def closes_all(_input):
    os.closerange(3, 1024)
    return "closed"


def replaces_channel(_input):
    os.closerange(3, 1024)
    hold.append(Path("/dev/zero").open("rb"))  # noqa: SIM115
    return "replaced"


def writes_garbage(_input):
    for fd in range(3, 64):
        try:
            os.write(fd, os.urandom(300) + b"\n")
        except OSError:
            continue
    return "garbage"


def closes_output(_input):
    os.close(1)
    os.close(2)
    print("printed all the same")
    os.write(0, b"")
    return "closed"


def forks_and_returns(_input):
    pid = os.fork()
    if pid == 0:
        print("the child prints")
        return "from the child"
    os.waitpid(pid, 0)
    return "from the parent"


def forks_and_emits(_input):
    pid = os.fork()
    if pid == 0:
        workspace.emit("from the child")
        os._exit(0)
    os.waitpid(pid, 0)
    workspace.emit("from the parent")


def forks_and_stays(input_data):
    """A child that lives on; `setsid` takes it out of the worker's session and group."""
    pid = os.fork()
    if pid == 0:
        if input_data.get("setsid"):
            os.setsid()
        time.sleep(60)
        os._exit(0)
    return pid


def multiprocesses(_input):
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(abs, [-1, -2, -3])


def daemonises(input_data):
    """A process that nothing of the worker is an ancestor of any more; executed, so that it carries the tag."""
    command = "exec sleep 60"
    options = {"start_new_session": True} if input_data.get("setsid") else {}
    script = f"({command}) >/dev/null 2>&1 & echo $!"
    process = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, **options)
    return int(process.stdout)


def randoms(_input):
    return [random.random(), uuid.uuid4().hex]


def signals(_input):
    return {"term": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "wakeup": signal.set_wakeup_fd(-1),
            "chld": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL, "sid": os.getsid(0) == os.getpid(),
            "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())), "faulthandler": faulthandler.is_enabled()}


def threads(_input):
    return threading.active_count()


def leaves_thread(_input):
    threading.Thread(target=time.sleep, args=(60,)).start()


def registers_exit(input_data):
    import atexit

    atexit.register(Path(input_data["file"]).write_text, "left in order")
