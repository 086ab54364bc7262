"""Handlers that do not come back, each for a reason of its own, and some that go down. `do` says which."""

import collections
import ctypes
import itertools
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path


def begun():
    """Tell that the caller, whose name will be in the stack, is being executed."""
    print(f"in {sys._getframe(1).f_code.co_name}")


def handler(input_data):
    return globals()[input_data["do"]](input_data)


def echoes(input_data):
    return os.getpid()


def sleeps(_input):
    begun()
    time.sleep(3600)


def spins(_input):
    begun()
    while True:
        pass


def waits_in_c(_input):
    """A lock that is taken twice, in a call that keeps the interpreter's own: no Python runs here any more."""
    begun()
    libc = ctypes.PyDLL(None)
    mutex = ctypes.create_string_buffer(256)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def computes_in_c(_input):
    begun()
    collections.deque(itertools.repeat(None), maxlen=0)


def catches_everything(_input):
    begun()
    while True:
        try:
            time.sleep(3600)
        except BaseException:
            pass


def ignores_abort(input_data):
    begun()
    signal.signal(signal.SIGABRT, signal.SIG_IGN)
    catches_everything(input_data)


def handles_abort(input_data):
    begun()
    signal.signal(signal.SIGABRT, lambda signum, frame: None)
    catches_everything(input_data)


def closes_output(input_data):
    begun()
    os.close(1)
    os.close(2)
    waits_in_c(input_data)


def has_a_thread(input_data):
    begun()
    there = threading.Event()
    threading.Thread(target=waits_in_a_thread, args=(there,), daemon=True).start()
    there.wait()
    waits_in_c(input_data)


def waits_in_a_thread(there):
    there.set()
    time.sleep(3600)


def crashes(_input):
    begun()
    ctypes.string_at(0)


def exits(input_data):
    begun()
    os._exit(input_data["status"])


def replies_and_goes(_input):
    """A thread looks on until the run was answered, and ends the process at once."""
    worker = threading.get_ident()

    def look():
        while "_execute" in {frame.f_code.co_name for frame, _ in traceback.walk_stack(sys._current_frames()[worker])}:
            time.sleep(0.001)
        os._exit(0)

    threading.Thread(target=look).start()
    return "replied"


def talks_and_exits(input_data):
    begun()
    for number in range(input_data["lines"]):
        print(f"line {number}: {'x' * input_data['width']}")
    os._exit(7)


def closes_channel(_input):
    begun()
    os.closerange(3, 1024)
    time.sleep(3600)


def breaks_the_protocol(_input):
    begun()
    for link in Path("/proc/self/fd").iterdir():
        if int(link.name) > 2 and link.is_socket():
            os.write(int(link.name), b"this is not JSON\n")
    time.sleep(3600)


def takes_memory(input_data):
    begun()
    held = bytearray(input_data["bytes"])
    os._exit(len(held) % 2)


def grows(input_data):
    """10 MB each 10 ms, and so far that it is over whatever it may have; says when it has `bytes`."""
    begun()
    held = []
    while len(held) < 60:
        held.append(b"x" * 10_000_000)
        if len(held) * 10_000_000 == input_data["bytes"]:
            print("over", flush=True)
        time.sleep(0.01)
    time.sleep(60)


def child_grows(input_data):
    if os.fork() == 0:
        try:
            grows(input_data)
        finally:
            os._exit(0)
    time.sleep(60)


def shares_memory(input_data):
    """Children that hold the same memory as their parent, and change none of it."""
    held = b"x" * input_data["bytes"]
    children = [os.fork() for _ in range(3)]
    if 0 in children:
        time.sleep(60)
    time.sleep(1.5)
    for pid in children:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    return len(held)


def forks_without_end(_input):
    begun()
    while True:
        if os.fork() == 0:
            time.sleep(60)


def doubles_without_end(_input):
    """Every process forks, and none that comes has memory of its own: what is shared looks like far too much. It ends
    by itself when nobody ends it."""
    begun()
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            os.fork()
        except OSError:
            continue
    os._exit(0)


def child_crashes(_input):
    begun()
    pid = os.fork()
    if pid == 0:
        ctypes.string_at(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def scribbles(_input):
    """Everything an agent can do to its sheet."""
    begun()
    sheet = next(int(link.name) for link in Path("/proc/self/fd").iterdir() if "orpheus-stack" in str(link.readlink()))
    refused = []
    for size in (0, 1 << 30):
        try:
            os.ftruncate(sheet, size)
        except OSError as error:
            refused.append(error.errno)
    written = os.pwrite(sheet, b"\xff\x00scribble\n" * 10_000, 0)
    try:
        os.pwrite(sheet, b"more", 64 * 1024)
    except OSError as error:
        refused.append(error.errno)
    print(f"{written} {len(refused)}")
    os._exit(0)
