"""A daemon that was to have walls and finds none says so wherever one looks, and what to do."""

from pathlib import Path

import pytest

from tests.daemon import Daemon, write_agent

#: In a mount namespace of its own, where bubblewrap fails as its 0.12 does when openat2(2) is kept from it.
WITHOUT = """
printf '#!/bin/sh\\necho "bwrap: Can'"'"'t open source /usr: Function not implemented" >&2\\nexit 1\\n' >"$0/bwrap"
chmod 755 "$0/bwrap"
mount --bind "$0/bwrap" "$(readlink -f /usr/bin/bwrap)"
exec "$@"
"""


@pytest.mark.root
@pytest.mark.parametrize("isolation", ["auto", "none"])
def test_who_has_no_walls_says_so_unless_none_were_wanted(tmp_path: Path, isolation: str) -> None:
    daemon = Daemon(isolation=isolation, wrapper=("unshare", "--mount", "sh", "-ec", WITHOUT, str(tmp_path)))
    try:
        status = daemon.start().call("status")
        assert status["isolation"] == "none"
        if isolation == "none":
            assert status["problems"] == []
            return
        [problem] = status["problems"]
        assert problem.startswith("agents run without walls: bubblewrap does not work here (bwrap: Can't open")
        assert "take away what answers openat2(2) with ENOSYS (RestrictSUIDSGID= of a unit does)" in problem
        told = daemon.ctl("deploy", str(write_agent(tmp_path / "agent", "def handler(input_data): pass\n")))
        assert told.returncode == 0 and "isolation none" in told.stdout + told.stderr
    finally:
        daemon.close()
