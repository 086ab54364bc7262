"""Whether there can be a reload: the settings and the program, as they are on disk now, are tried before anyone waits.

How a reload is carried out is the daemon's business.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from orpheusd.config import Config, http_addresses
from orpheusd.errors import OrpheusError
from orpheusd.process import image

log = logging.getLogger(__name__)

#: What a caller is told whose request the next image has to be asked.
RELOADING = "the daemon is reloading; ask again"

#: What is handed over is made for these.
FIXED = ("state_dir", "runtime_dir", "http", "http_doors", "http_admin", "http_require_token")


class Reload:
    """Invariant: `granted` is set once, when a try has gone well; at most one goes on at a time, for all who asked."""

    def __init__(self, config: Config, configure: Callable[[], Config], given: Sequence[str] = ()) -> None:
        """`configure` reads the settings as a next image would. Those of doors that systemd has `given` do nothing."""
        self.granted = asyncio.Event()
        self._config = config
        self._configure = configure
        self._given = given
        self._trial: asyncio.Task[None] | None = None

    async def ask(self) -> None:
        """Raises OrpheusError with what speaks against it; then nothing has changed."""
        if self._trial is None:
            self._trial = asyncio.get_running_loop().create_task(self._try())
        trial = self._trial
        try:
            await asyncio.shield(trial)
        finally:
            if trial.done() and self._trial is trial:
                self._trial = None

    def ask_soon(self) -> None:
        """The same, for a signal, whose sender can be told only in the log."""
        asyncio.get_running_loop().create_task(self.ask()).add_done_callback(_note)

    async def _try(self) -> None:
        if self.granted.is_set():
            return
        check_fixed(self._config, self._configure(), self._given)
        problem = await image.try_out()
        if problem:
            raise OrpheusError("conflict", f"cannot reload, and nothing has changed: {problem}")
        self.granted.set()


def check_fixed(before: Config, after: Config, given: Sequence[str]) -> None:
    """Raises OrpheusError for a setting that a reload cannot change."""
    for name in FIXED:
        old, new = getattr(before, name), getattr(after, name)
        if name not in given and _meant(name, old) != _meant(name, new):
            raise OrpheusError("conflict", f"cannot reload, and nothing has changed: {name} would be {new}, and stays "
                                           f"{old} while the daemon runs; stop it and start it again")


def _meant(name: str, setting: Any) -> Any:
    """What a setting says, however it says it: `::1:7777` is `[::1]:7777`."""
    return http_addresses(setting) if name == "http" and setting is not None else setting


def _note(asking: "asyncio.Task[None]") -> None:
    error = None if asking.cancelled() else asking.exception()
    if isinstance(error, OrpheusError):
        log.error("%s", error.message)
    elif error is not None:
        raise error
