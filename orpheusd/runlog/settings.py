"""How a run log behaves: limits, times, caps. Where the numbers of one daemon come from is not its business."""

from dataclasses import dataclass

from orpheusd.operations import RESULT_LIMIT_BYTES

#: What an answer waits for: nothing, or the commit of the run's end.
DURABILITIES = ("os", "disk")


@dataclass(frozen=True, slots=True)
class Settings:
    """Every number of one run log, with its reason. Durations are seconds, sizes bytes."""

    #: `disk` when replies wait for the commit: then a commit never lingers for company.
    durability: str = "os"
    #: A commit is one fsync; beyond this many rows sharing it saves nothing more.
    batch_rows: int = 256
    #: How long the first change of a commit waits for others, where nobody waits for the commit: each costs an fsync.
    #: Most runs end within it and are written once.
    linger_s: float = 0.05
    #: One commit's payload: more would hold several copies of it in memory for no gain.
    batch_bytes: int = 8 * 1024 * 1024
    #: Changes that may wait for the disk: about three seconds of the fastest traffic. Beyond, new runs are refused.
    pending_changes: int = 32_768
    pending_bytes: int = 64 * 1024 * 1024
    #: Off: payloads are never stored, but for those of detached runs, which a later daemon must be able to execute,
    #: and of runs with a key, which it must be able to answer.
    capture: bool = True
    input_limit_bytes: int = 256 * 1024
    #: Whole results by default, so that an answer which was not delivered can still be fetched.
    result_limit_bytes: int = RESULT_LIMIT_BYTES
    #: Ended runs older than this are deleted; 0 keeps them.
    max_age_s: float = 30 * 24 * 3600.0
    #: Oldest ended runs are deleted while the database holds more than this; 0 is no limit.
    max_bytes: int = 1024 * 1024 * 1024
    #: Space held back on the disk, so that the runs which are under way when it fills up can still be recorded.
    reserve_bytes: int = 1024 * 1024
    #: How often a full disk or a locked database is tried again.
    retry_s: float = 0.25
    #: What the check of the whole content may cost at start; what it did not reach is left to `verify`.
    check_budget_s: float = 0.3

    def __post_init__(self) -> None:
        if self.durability not in DURABILITIES:
            raise ValueError(f"durability must be one of {', '.join(DURABILITIES)}, not {self.durability!r}")
        if self.batch_rows < 1 or self.pending_changes < 1 or self.pending_bytes < 1:
            raise ValueError("batch_rows, pending_changes and pending_bytes must be above 0")
