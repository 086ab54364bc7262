"""The system calls that nothing in a sandbox may make, as the seccomp filter that refuses them.

What is not in the tables is allowed: agents are ordinary programs, and the namespaces and missing capabilities
are the walls. The filter takes away what reaches the kernel itself, other processes' memory, or new namespaces,
in which a process would have every capability again. It knows nothing of bubblewrap, which loads it.
"""

import errno
import os
import socket
from tempfile import TemporaryFile
from typing import Any

#: Refused as to anybody without the right: EPERM, which programs expect and report.
DENIED = (
    # the memory and the descriptors of other processes
    "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp",
    # keys are the user's, whatever namespace asks
    "keyctl", "add_key", "request_key",
    # ways into the kernel that made its faults exploitable more often than any other
    "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register", "fanotify_init",
    # mounts, roots and namespaces
    "mount", "umount2", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick", "open_tree",
    "mount_setattr", "pivot_root", "chroot", "unshare", "setns", "open_by_handle_at",
    # the box as a whole
    "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "create_module", "reboot",
    "swapon", "swapoff", "acct", "quotactl", "quotactl_fd", "syslog", "vhangup", "sethostname", "setdomainname",
    "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "iopl", "ioperm", "lookup_dcookie", "nfsservctl",
    "move_pages", "uselib", "ustat", "sysfs", "_sysctl",
)  # fmt: skip

#: Flags of clone(2) that make a namespace. clone3(2) hides its flags behind a pointer and is not there at all, so
#: that libc falls back to clone.
NAMESPACE_FLAGS = {
    "CLONE_NEWTIME": 0x80, "CLONE_NEWNS": 0x20000, "CLONE_NEWCGROUP": 0x02000000, "CLONE_NEWUTS": 0x04000000,
    "CLONE_NEWIPC": 0x08000000, "CLONE_NEWUSER": 0x10000000, "CLONE_NEWPID": 0x20000000, "CLONE_NEWNET": 0x40000000,
}  # fmt: skip

#: ioctl(2) requests that type into the terminal of another process.
DENIED_IOCTLS = {"TIOCSTI": 0x5412, "TIOCLINUX": 0x541C}

#: The families of sockets there are; libc asks for NETLINK when it looks at interfaces. The others are as if the
#: kernel did not have them: AF_VSOCK is in no namespace and leads to the hypervisor, AF_ALG and the rest to old code.
FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)

_ARGUMENT_MASK = 0xFFFFFFFF  # the kernel looks at this much of an ioctl's request


class NoFilter(Exception):
    """There can be no filter here; the text says why, as a part of a sentence."""


def compiled() -> bytes:
    """The filter, in the form bubblewrap takes. Raises NoFilter when libseccomp is missing or too old."""
    try:
        import pyseccomp as seccomp  # noqa: PLC0415 (its import is what fails without libseccomp)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise NoFilter(f"libseccomp is not installed ({error})") from error
    refuse = seccomp.ERRNO(errno.EPERM)
    rules: list[tuple[int, str, tuple[Any, ...]]] = [(refuse, name, ()) for name in DENIED]
    rules += [(refuse, "clone", (seccomp.Arg(_clone_flags_at(), seccomp.MASKED_EQ, flag, flag),))
              for flag in NAMESPACE_FLAGS.values()]
    rules += [(refuse, "ioctl", (seccomp.Arg(1, seccomp.MASKED_EQ, _ARGUMENT_MASK, request),))
              for request in DENIED_IOCTLS.values()]
    rules.append((refuse, "personality", (seccomp.Arg(0, seccomp.NE, 0),)))
    rules.append((seccomp.ERRNO(errno.ENOSYS), "clone3", ()))
    absent = seccomp.ERRNO(errno.EAFNOSUPPORT)
    rules += [(absent, "socket", (seccomp.Arg(0, seccomp.EQ, family),))
              for family in range(max(FAMILIES)) if family not in FAMILIES]
    rules.append((absent, "socket", (seccomp.Arg(0, seccomp.GT, max(FAMILIES)),)))
    try:
        made = seccomp.SyscallFilter(seccomp.ALLOW)
        # calls of another architecture (int 0x80, x32) have other numbers, which no rule here is about
        made.set_attr(seccomp.Attr.ACT_BADARCH, refuse)
        for action, name, arguments in rules:
            made.add_rule(action, name, *arguments)
        return _exported(made)
    except OSError as error:
        raise NoFilter(f"libseccomp cannot make the filter ({error.strerror})") from error


def _clone_flags_at() -> int:
    """Which argument of clone(2) has the flags: the second one on s390, the first one everywhere else."""
    return 1 if os.uname().machine.startswith("s390") else 0


def _exported(made: Any) -> bytes:
    with TemporaryFile() as file:
        made.export_bpf(file)
        file.seek(0)
        return file.read()
