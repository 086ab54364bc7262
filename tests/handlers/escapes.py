"""A sync agent that tries to get out: it evaluates the expression it is given and returns what that came to.

An OSError is its name, "" stands for a system call that was let through. What needs more than an expression is a
function here. Nothing here harms a box whose walls are missing: calls get arguments that make them fail anyway, files
are opened and not written, numbers are bounded.
"""

import ctypes
import errno
import http.client
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
NOWHERE = -1
MARK = "left-behind"


def ls(path: str) -> list[str]:
    return sorted(os.listdir(path))


def read(path: str, limit: int = 1 << 20) -> str:
    with open(path, "rb") as stream:
        return stream.read(limit).decode(errors="replace")


def writable(path: str) -> str:
    """Whether it can be opened to be written to, or made, and taken away again."""
    existed = os.path.exists(path)
    os.close(os.open(path, os.O_WRONLY | (0 if existed else os.O_CREAT)))
    if not existed:
        os.unlink(path)
    return ""


def made(path: str) -> int:
    """The mode of a file that is made without a word on its mode."""
    with open(path, "w") as file:
        return stat.S_IMODE(os.fstat(file.fileno()).st_mode)


def syscall(number: int, *args: Any) -> str:
    """-1 for what is not given: let through, these fail with another error than being refused does."""
    ctypes.set_errno(0)
    filled = [*args, *[NOWHERE] * (5 - len(args))]
    result = libc.syscall(*[ctypes.c_long(a) if isinstance(a, int) else a for a in (number, *filled)])
    return errno.errorcode[ctypes.get_errno()] if result == -1 else ""


def call(name: str, *args: Any) -> str:
    return "" if getattr(libc, name)(*args) >= 0 else errno.errorcode[ctypes.get_errno()]


def status(*names: str) -> list[str]:
    lines = dict(line.split(":", 1) for line in read("/proc/self/status").splitlines())
    return [lines[name].strip() for name in names]


def mounts_without(option: str) -> list[str]:
    return [line for line in read("/proc/self/mounts").splitlines() if option not in line.split()[3].split(",")]


def connect(family: int, address: Any, kind: int = socket.SOCK_STREAM) -> str:
    with socket.socket(family, kind) as s:
        s.settimeout(2)
        s.connect(address)
    return ""


def make_socket(family: int, kind: int, protocol: int = 0) -> str:
    socket.socket(family, kind, protocol).close()
    return ""


def asked(port: int, method: str, path: str) -> int:
    """The status of the HTTP door's answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path, "{}" if method == "POST" else None, {"Content-Type": "application/json"})
        return connection.getresponse().status
    finally:
        connection.close()


def impersonates(worker_id: str) -> str:
    """Dial home as another worker; what comes back before the end."""
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(5)
        s.connect("/run/orpheus/link/worker.sock")
        hello = {"type": "hello", "protocol": 1, "role": "worker", "id": worker_id, "nonce": "guessed"}
        s.sendall(json.dumps(hello).encode() + b"\n")
        return s.recv(4096).decode()


def sends_descriptors(count: int) -> str:
    """To whoever listens on its own socket."""
    null = os.open("/dev/null", os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(5)
        s.connect("/run/orpheus/link/worker.sock")
        for _ in range(count // 50):
            socket.send_fds(s, [b"x"], [null] * 50)
        os.close(null)
        s.sendall(b"\n")
        return s.recv(4096).decode()


def fills(path: str, limit_bytes: int) -> int:
    """How many bytes fit into one file there, at most `limit_bytes`; the file is taken away."""
    piece, written = bytes(1 << 20), 0
    try:
        with open(path, "wb", buffering=0) as file:
            while written < limit_bytes:
                written += file.write(piece)
    except OSError:
        return written
    finally:
        os.unlink(path)
    return written


def writes_at(path: str, offset: int) -> str:
    """A file with a hole takes no room."""
    try:
        with open(path, "wb", buffering=0) as file:
            file.seek(offset)
            file.write(b"x")
    finally:
        os.unlink(path)
    return ""


def raises_limit(kind: int) -> str:
    try:
        resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, PermissionError):
        return "EPERM"
    return ""


def prints(count: int) -> str:
    line = "x" * 1000
    for _ in range(count):
        print(line)
        print(line, file=sys.stderr)
    return "printed"


def opens(count: int) -> str:
    opened = []
    try:
        for _ in range(count):
            opened.append(os.open("/dev/null", os.O_RDONLY))
    finally:
        for fd in opened:
            os.close(fd)
    return "opened"


def forks(count: int) -> str:
    """A fork bomb that stops."""
    children = []
    try:
        for _ in range(count):
            child = os.fork()
            if child == 0:
                signal.pause()
                os._exit(0)
            children.append(child)
    except OSError as error:
        return errno.errorcode[error.errno]
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return f"{len(children)}"


def forks_under(limit: int) -> str:
    """The same, with a lower limit than was set for us: whether the kernel counts at all."""
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, hard))
    try:
        return forks(limit + 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, (hard, hard))


def leaves_behind() -> str:
    """A process that did all a daemon does to get away from its parents, and keeps nothing that would tell."""
    program = ("import os, time; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0); "
               f"{MARK!r}; time.sleep(600)")
    started = subprocess.Popen([sys.executable, "-c", program], env={}, stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    started.wait(10)
    return ""


def runs_as_somebody(argv: list[str]) -> str:
    """The uid that a program finds itself with, or how it failed."""
    done = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, timeout=10, check=False)
    return done.stdout.decode().strip() if done.returncode == 0 else "failed"


def set_uid_program() -> str:
    """In memory, where no mount says nosuid."""
    fd = os.memfd_create("program", 0)
    with open("/usr/bin/id", "rb") as program, open(fd, "wb", closefd=False) as copy:
        copy.write(program.read())
    os.fchmod(fd, 0o4755)
    try:
        return runs_as_somebody(["/usr/bin/env", f"/proc/{os.getpid()}/fd/{fd}", "-u"])
    finally:
        os.close(fd)


def descriptors() -> list[str]:
    """What this process holds, by kind, apart from the listing itself."""
    found = []
    for fd in ls("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}").split(":")[0])
        except FileNotFoundError:
            continue
    return sorted(found)


def planted_program() -> int:
    """A set-uid program in the workspace, for somebody outside to run: its mode."""
    path = "/workspace/planted"
    with open(path, "wb") as file:
        file.write(b"#!/bin/sh\n")
    os.chmod(path, 0o4755)
    try:
        return stat.S_IMODE(os.stat(path).st_mode)
    finally:
        os.unlink(path)


def handler(input_data: dict[str, Any]) -> Any:
    if "code" not in input_data:
        return os.getpid()
    try:
        return eval(input_data["code"], {**globals(), **input_data["facts"]})
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
