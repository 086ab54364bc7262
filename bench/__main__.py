"""`make bench`: every row of the performance budget beside its baseline, in one run, with the machine named.

`make bench-walls`: what those pay who have nothing to do with it when others misbehave; each figure beside the same
without them.
"""

import argparse
import sys
import traceback
from collections.abc import Callable, Iterator

from bench import control, core, crowd, forks, greedy, http, machine, runlog
from bench.measure import Row, show

GROUPS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "control": control.rows, "http": http.rows, "forks": forks.rows, "core": core.rows,
    "runlog": runlog.rows,
}
#: Only when they are asked for: they take minutes, and the whole machine.
WALLS: dict[str, Callable[[bool], Iterator[Row]]] = {"crowd": crowd.rows, "greedy": greedy.rows}
ALL = {**GROUPS, **WALLS}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few rounds: shows that it works, not what it costs")
    parser.add_argument("groups", nargs="*", metavar="GROUP",
                        help=f"of {', '.join(ALL)} (default: all but {' and '.join(WALLS)})")
    args = parser.parse_args()
    if unknown := set(args.groups) - set(ALL):
        parser.error(f"no such group: {', '.join(sorted(unknown))}")
    print(machine.describe(), flush=True)
    rows, whole = [], True
    for name in args.groups or GROUPS:
        try:
            for row in ALL[name](args.quick):
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
