"""The changes that one commit writes, gathered by run: one that began and ended within it is written once."""

from orpheusd.runlog.rows import Change, Ended, Queued, Started, payload_bytes


class Story:
    """What one commit has to say about one run. Invariant: at most one of each kind, in their order."""

    __slots__ = ("ended", "queued", "started")

    def __init__(self) -> None:
        self.queued: Queued | None = None
        self.started: Started | None = None
        self.ended: Ended | None = None


class Batch:
    """Invariant: `stories` has, in order of arrival, the runs of all added changes that were not repeats."""

    __slots__ = ("_limit_bytes", "_limit_rows", "change_count", "repeats", "size_bytes", "stories")

    def __init__(self, limit_rows: int, limit_bytes: int) -> None:
        self.stories: dict[str, Story] = {}
        self.repeats: list[Change] = []
        self.change_count = 0
        self.size_bytes = 0
        self._limit_rows = limit_rows
        self._limit_bytes = limit_bytes

    @property
    def full(self) -> bool:
        # A run has at most three changes that count; the rest are repeats, which must not keep a batch open.
        return (len(self.stories) >= self._limit_rows or self.size_bytes >= self._limit_bytes
                or self.change_count >= 4 * self._limit_rows)

    def add(self, change: Change) -> None:
        self.change_count += 1
        self.size_bytes += payload_bytes(change)
        story = self.stories.get(change.run_id)
        if story is None:
            story = self.stories[change.run_id] = Story()
        if isinstance(change, Queued):
            if story.queued or story.started or story.ended:
                self.repeats.append(change)
            else:
                story.queued = change
        elif isinstance(change, Started):
            if story.ended:
                self.repeats.append(change)
            else:
                story.started = change  # again, when the worker before was gone without having read the run
        elif story.ended:
            self.repeats.append(change)
        else:
            story.ended = change
