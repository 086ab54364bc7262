"""`make bench`: every row of the performance budget beside its baseline, in one run, with the machine named."""

import argparse
import sys
import traceback
from collections.abc import Callable, Iterator

from bench import control, core, forks, http, machine, runlog
from bench.measure import Row, show

GROUPS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "control": control.rows, "http": http.rows, "forks": forks.rows, "core": core.rows,
    "runlog": runlog.rows,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds: shows that it works, not what it costs")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)} (default: all)")
    args = parser.parse_args()
    if unknown := set(args.groups) - set(GROUPS):
        parser.error(f"no such group: {', '.join(sorted(unknown))}")
    print(machine.describe(), flush=True)
    rows, whole = [], True
    for name in args.groups or GROUPS:
        try:
            for row in GROUPS[name](args.quick):
                print(f"  {row.what}: {row.ours}", file=sys.stderr, flush=True)
                rows.append(row)
        except Exception:  # a group that fails must not cost the others their figures
            traceback.print_exc()
            rows.append(Row(name, verdict="failed, see above"))
            whole = False
    print(show(rows))
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
