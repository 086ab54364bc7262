"""The root directory of a sandbox, made of parts: the system's programs, some files of /etc, and nothing else.

It is the same for agents, builds and doors, which add their own directories to it. What is not listed here is not
there: no home, no state, no socket of the host.
"""

import os
from collections.abc import Sequence
from pathlib import Path

#: The home of whoever lives inside.
WORKSPACE_DIR = "/workspace"

#: /dev/shm, for multiprocessing and the like; the size containers commonly get.
SHM_LIMIT_BYTES = 64 * 1024 * 1024

#: One uid inside, whoever runs the daemon: agents behave the same on every box and never see themselves as root.
INSIDE_ID = 1000

#: Directories beside /usr that hold programs and libraries; on most systems symlinks into it.
_SYSTEM_DIRS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")

#: Private, and gone with the sandbox.
TMP_DIR = "/tmp"  # noqa: S108
_SHM = "/dev/shm"  # noqa: S108

#: The files of /etc that libraries need. Never a directory that also holds private keys.
_ETC = (
    "ld.so.cache", "localtime", "mime.types", "services", "protocols", "alternatives",
    "ssl/certs", "ssl/cert.pem", "ssl/openssl.cnf", "ca-certificates", "ca-certificates.conf",
    "pki/ca-trust/extracted", "pki/tls/certs", "pki/tls/cert.pem", "pki/tls/openssl.cnf", "crypto-policies",
)


def root_of(binds: Sequence[Path], network: bool, tmp_limit_bytes: int) -> list[str]:
    """The arguments that make it. `binds` are further directories, at their own place; `sealed` must come last."""
    args = ["--ro-bind", "/usr", "/usr"]
    for path in map(Path, _SYSTEM_DIRS):
        if path.is_symlink():
            args += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            args += ["--ro-bind", str(path), str(path)]
    args += ["--dir", "/etc", "--dir", "/run"]
    for name in _ETC:
        args += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    for name in etc_files("", network):
        args += ["--perms", "0444", "--file", name, f"/etc/{name[4:-1]}"]
    if network and Path("/etc/resolv.conf").exists():
        args += ["--ro-bind", os.path.realpath("/etc/resolv.conf"), "/etc/resolv.conf"]
    args += ["--proc", "/proc", "--dev", "/dev", "--size", str(SHM_LIMIT_BYTES), "--perms", "1777"]
    args += ["--tmpfs", _SHM, "--size", str(tmp_limit_bytes), "--perms", "1777", "--tmpfs", TMP_DIR]
    for path in binds:
        args += ["--ro-bind", str(path), str(path)]
    return args


def sealed() -> list[str]:
    """The last arguments. /dev and / are made by bubblewrap and stay writable until they are sealed.

    /proc is sealed because of daemons that run as root: uid 0 of the host may write /proc/sys and
    /proc/sysrq-trigger without any capability, whatever uid it has inside.
    """
    return ["--remount-ro", "/proc", "--remount-ro", "/dev", "--remount-ro", "/"]


def etc_files(hostname: str, network: bool) -> dict[str, bytes]:
    """Generated files of /etc by descriptor name: the host's users and services are none of an agent's business."""
    hosts = "127.0.0.1 localhost\n::1 localhost\n"
    if network and Path("/etc/hosts").exists():
        hosts = Path("/etc/hosts").read_text("utf-8", "replace").rstrip() + "\n"
    files = {
        "passwd": f"agent:x:{INSIDE_ID}:{INSIDE_ID}::{WORKSPACE_DIR}:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
        "group": f"agent:x:{INSIDE_ID}:\nnogroup:x:65534:\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
        "hosts": f"{hosts}127.0.1.1 {hostname}\n",
    }
    return {f"{{fd:{name}}}": text.encode() for name, text in files.items()}
