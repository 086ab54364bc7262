"""Who may use the control socket: root, the daemon's own user and the admin group all of it, others nothing."""

import grp
import os
import pwd

from orpheusd.operations import Access
from orpheusd.process.pidfds import Peer


def rights_of(peer: Peer, admin_group: str) -> Access | None:
    if peer.uid in (0, os.getuid()):
        return Access.ADMIN
    gid = gid_of(admin_group)
    return Access.ADMIN if gid is not None and gid in _groups_of(peer) else None


def gid_of(group: str) -> int | None:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return None


def _groups_of(peer: Peer) -> set[int]:
    """The peer's groups. SO_PEERCRED has only the first; the others are those of its user."""
    try:
        return {peer.gid, *os.getgrouplist(pwd.getpwuid(peer.uid).pw_name, peer.gid)}
    except KeyError:
        return {peer.gid}
