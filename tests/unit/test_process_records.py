"""What is written down of templates: read again in the order in which they were started."""

import os
from pathlib import Path

from orpheusd.process.records import Record, Records


def test_records_are_read_in_the_order_in_which_their_templates_were_started(tmp_path: Path) -> None:
    """Names tell nothing of it: each daemon has a random one in those of its templates."""
    records = Records(tmp_path)
    started = [Record(name, "echo", 1, "00" * 32) for name in ("t-f00-9", "t-f00-10", "t-a11-1", "t-b22-1")]
    for at, record in enumerate(started):
        records.write(record)
        os.utime(tmp_path / f"{record.template}.json", (at, at))
    assert records.all() == started
    records.forget("t-f00-10")
    (tmp_path / "t-b22-1.json").write_text("{")
    assert records.all() == [started[0], started[2]] and not (tmp_path / "t-b22-1.json").exists()
