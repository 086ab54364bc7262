"""`make fuzz`: a minute of hostile input at each way into a real daemon, which must neither fall nor change its mind.

    python -m tests.fuzz [--seconds 60] [--target NAME ...] [--seed N]
    python -m tests.fuzz --target NAME --replay FILE ...

An input is kept in the corpus when it led a decoder where none had led it before, or brought an answer that was new.
What broke something is kept too, and how to send it again is printed.
"""

import argparse
import random
import sys
from pathlib import Path

from tests.fuzz.campaign import Report, replay, run
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each target (60)")
    parser.add_argument("--target", action="append", choices=TARGETS, help="only this one; may be given again")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--replay", type=Path, nargs="+", metavar="FILE",
    help="send these inputs, in order")
    options = parser.parse_args()
    names = options.target or list(TARGETS)
    if options.replay:
        if len(names) != 1:
            parser.error("--replay needs the one --target that the files are for")
        found = replay(TARGETS[names[0]](), [path.read_bytes() for path in options.replay])
        for line in found:
            print(line)
        return 1 if found else 0
    print(f"seed {options.seed}", file=sys.stderr, flush=True)
    reports: list[Report] = []
    for name in names:
        reports.append(run(TARGETS[name](), options.seconds, options.seed))
        print(reports[-1].line(), flush=True)
    findings = [finding for report in reports for finding in report.findings]
    for finding in findings:
        print(f"\nFOUND {finding}")
    print(f"{sum(report.sent for report in reports)} inputs, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
