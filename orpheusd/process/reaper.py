"""Ends what a daemon left behind that will not come back: its templates with their workers, and its HTTP doors.

It goes by the records in the runtime directory. Whether somebody is to be ended is decided here in one table, by what
systemd says of the service that ended.
"""

from pathlib import Path

from orpheusd.process.records import Records
from orpheusd.process.sandbox import SANDBOX_TAG
from orpheusd.process.survivors import kill_tagged

#: $SERVICE_RESULT (systemd.exec(5)) of a service that was stopped, in time or not. `timeout` is also what a start
#: gets that took too long: longer than workers wait for a daemon. After any other the next daemon comes at once.
STOPPED = frozenset(("success", "timeout"))


async def reap(runtime_dir: Path, door_tag: str, service_result: str | None) -> int:
    """Kill what is left, unless the service crashed and its workers are awaited; how many were killed.

    `service_result` is None when somebody asks by hand. The caller holds the directory's lock.
    """
    if service_result is not None and service_result not in STOPPED:
        return 0
    records = Records(runtime_dir / "born")
    killed = await kill_tagged(door_tag)
    for template in records.templates():
        killed += await kill_tagged(f"{SANDBOX_TAG}={template}")
        records.forget(template)
    return killed
