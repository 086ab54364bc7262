"""The units as files: what they leave open, as systemd itself counts it."""

import shutil
import subprocess

import pytest

from tests.daemon import ROOT

#: What must remain open is what bubblewrap needs to put walls around agents without being root: namespaces and mounts.
EXPOSURE_AT_MOST = 3.0


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("unit", ["orpheusd.service", "orpheus-agents@.service"])
def test_no_unit_is_exposed_more_than_sandboxes_need(unit: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", f"--threshold={EXPOSURE_AT_MOST * 10:.0f}", "--no-pager",
         f"systemd/{unit}"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
