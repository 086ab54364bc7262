"""Deploying: from an upload to a version that serves, back to an older one, and back to nothing.

It drives the steps (unpack, build, canary, switch), keeps the disk and the supervisor in agreement, and undoes
what it did when a step fails: until the switch, what was current still is. Slow file work is done in threads.
Changes of one agent are made one after another, in order of arrival.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from orpheusd.agents import Manifest, parse_manifest
from orpheusd.config import Config
from orpheusd.core import effects as ef
from orpheusd.core import events as ev
from orpheusd.core.agent import Settings
from orpheusd.deploy.beneath import Emptied
from orpheusd.deploy.build import ensure_venv, prune_venvs
from orpheusd.deploy.bundle import read_manifest_text, survey
from orpheusd.deploy.versions import RolledBackFrom, StoredVersion, VersionStore
from orpheusd.engine import Engine, Verdict
from orpheusd.errors import OrpheusError
from orpheusd.failpoints import reached
from orpheusd.operations import RESULT_LIMIT_BYTES
from orpheusd.process.adopted import is_there
from orpheusd.process.causes import MB
from orpheusd.process.plan import Plan
from orpheusd.process.records import Record
from orpheusd.process.sandbox import Isolation
from orpheusd.remembered import Remembered
from orpheusd.turns import Turns

log = logging.getLogger(__name__)

Step = Callable[[str, str, str], None]


class Deployments:
    """Invariant: an agent has at most one change under way, and `deployed` holds the current version of each;
    `rolled_back` those that took the place of a newer one by themselves. `_planned` are the versions that the engine
    has a plan of."""

    def __init__(
        self, store: VersionStore, engine: Engine, config: Config, isolation: Isolation, remembered: Remembered
    ) -> None:
        self.deployed: dict[str, StoredVersion] = {}
        self.rolled_back: dict[str, RolledBackFrom] = {}
        self._store = store
        self._engine = engine
        self._config = config
        self._isolation = isolation
        self._remembered = remembered
        self._planned: dict[tuple[str, int], StoredVersion] = {}
        self._changes = Turns()
        self._writes = Turns()
        self._writing: set[asyncio.Task[None]] = set()

    def load_all(self) -> list[str]:
        """Start the current version of every agent on disk. Returns a sentence for each that cannot be."""
        orphans = self._engine.processes.orphans()
        self._store.settle_trials(lambda name, number: any(
            is_there(record.template) for record in orphans if (record.agent, record.version) == (name, number)))
        listing = self._store.list_agents()
        for version in listing.versions:
            self.deployed[version.name] = version
            rolled_back = self._store.rolled_back(version.name)
            if rolled_back is not None:
                self.rolled_back[version.name] = rolled_back
            self._plan(version)
            settings = settings_of(version.manifest)
            sessions = self._remembered.load(version.name, settings.session_ttl_s, settings.session_max)
            expected = self._expect([record for record in orphans if record.agent == version.name])
            self._engine.load(version.name, version.number, settings, tuple(sessions), expected)
        for record in orphans:
            if record.agent not in self.deployed:
                self._engine.processes.adopt_template(record)
                self._engine.processes.kill_template(record.template)
        return listing.problems

    def _expect(self, records: list[Record]) -> tuple[ev.Orphan, ...]:
        """Listen for the templates of an agent that an earlier daemon started."""
        expected = []
        for record in records:
            try:
                settings = settings_of(self._store.load(record.agent, record.version).manifest)
            except (OrpheusError, OSError) as error:
                log.warning("workers of %s are killed: there is no version %d any more (%s)", record.agent,
                            record.version, error)
                self._engine.processes.adopt_template(record)
                self._engine.processes.kill_template(record.template)
                continue
            self._engine.processes.adopt_template(record, settings.session_max)
            expected.append(ev.Orphan(record.template, record.version, settings))
        return tuple(expected)

    async def inspect(self, upload_id: str) -> dict[str, Any]:
        found = await asyncio.to_thread(survey, self._store.uploads.open(upload_id))
        manifest = parse_manifest(found.manifest_text)
        return {"name": manifest.name, "env_needed": manifest.env_needed(), "requirements": found.requirements,
                "warnings": manifest.warnings()}  # fmt: skip

    def deploy(self, upload_id: str, env: dict[str, str], step: Step) -> Coroutine[Any, Any, dict[str, Any]]:
        """Raises OrpheusError with the reason; then nothing has changed but the version counter.

        The upload is this deploy's from now on, and used up either way: it does not matter who stays to see.
        """
        bundle = self._store.uploads.claim(upload_id)

        async def carry_out() -> dict[str, Any]:
            try:
                return await self._deploy(bundle, env, step)
            finally:
                self._store.uploads.drop(upload_id)

        return carry_out()

    async def _deploy(self, bundle: Path, env: dict[str, str], step: Step) -> dict[str, Any]:
        manifest = parse_manifest(await asyncio.to_thread(read_manifest_text, bundle))
        name = manifest.name
        environment = manifest.resolved_env(env)
        warnings = [*manifest.warnings(), *self._isolation.weaknesses]
        async with self._changes.turn(name):
            step("step", "unpack", f"unpacking {name}")
            version = await asyncio.to_thread(self._store.stage, name, bundle)
            try:
                await asyncio.to_thread(self._store.write_env, name, version.number, environment)
                reached("deploy-env-written")
                version = await self._build(version, step)
                reached("deploy-built")
                step("step", "canary", f"starting a worker of version {version.number}")
                await self._try_out(version)
            except BaseException:
                self._forget_plan(name, version.number)
                await asyncio.to_thread(self._store.discard, name, version.number)
                raise
            reached("deploy-promoted")
            step("step", "switch", f"version {version.number} serves")
            await self._serves(version)
        return {"name": name, "version": version.number, "isolation": self._isolation.mode, "warnings": warnings}

    async def restart(self, name: str) -> dict[str, Any]:
        """New workers in place of all there are, at once: nobody stays for a session."""
        async with self._changes.turn(name):
            version = self.known(name)
            await self._try_out(version, at_once=True)
        return {"name": name, "version": version.number}

    async def rollback(self, name: str, number: int | None) -> dict[str, Any]:
        """Deploy an older version again, the newest unless `number` says which. Raises as `deploy` does."""
        async with self._changes.turn(name):
            current = self.known(name).number
            chosen = _older(name, current, number, await asyncio.to_thread(self._store.served, name))
            version = await asyncio.to_thread(self._store.load, name, chosen)
            await self._try_out(version)
            await self._serves(version)
        return {"name": name, "version": chosen, "from": current}

    def rolled_back_to(self, effect: ef.RolledBack) -> None:
        """The supervisor has put an older version back: keep the disk in agreement."""
        name = effect.agent
        self.deployed[name] = self._planned[name, effect.version]
        self.rolled_back[name] = RolledBackFrom(
            effect.failed, effect.reason.partition("\n")[0], round(time.time(), 3))
        task = asyncio.get_running_loop().create_task(self._write_rolled_back(name))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def close(self, timeout_s: float) -> None:
        """Let what is being written come to the disk."""
        if self._writing:
            await asyncio.wait(self._writing, timeout=timeout_s)

    async def undeploy(self, name: str, purge: bool) -> dict[str, Any]:
        async with self._changes.turn(name):
            self.known(name)
            request = secrets.token_hex(8)
            with self._engine.verdict(request) as verdict:
                self._engine.feed(ev.RemovalRequested(name, request))
                await verdict
            del self.deployed[name]
            self.rolled_back.pop(name, None)
            for _, number in [key for key in self._engine.plans if key[0] == name]:
                self._forget_plan(name, number)
            self._remembered.forget_agent(name)
            async with self._writes.turn(name):
                await asyncio.to_thread(self._store.remove_agent, name, purge)
        return {"name": name, "purged": purge}

    async def clean(self, name: str) -> Emptied:
        """Delete what the workspace holds; not while the agent is changed otherwise."""
        async with self._changes.turn(name):
            return await asyncio.to_thread(self._store.workspace_clean, name)

    def known(self, name: str) -> StoredVersion:
        """The current version of a deployed agent. Raises OrpheusError(not-found)."""
        version = self.deployed.get(name)
        if version is None:
            raise OrpheusError("not-found", f"there is no agent {name}; `orpheusctl list` shows those there are")
        return version

    async def _build(self, version: StoredVersion, step: Step) -> StoredVersion:
        if not version.requirements.exists():
            return version
        step("step", "build", "installing requirements.txt")
        venv = await ensure_venv(
            version.requirements, self._store.state_dir, self._isolation,
            lambda text: step("log", "build", text), self._config.build_timeout_s,
            self._config.build_environ)
        if venv is None:
            return version
        return await asyncio.to_thread(self._store.set_venv, version.name, version.number, venv.name)

    async def _try_out(self, version: StoredVersion, at_once: bool = False) -> None:
        """Let the supervisor try the version; returns when it serves."""
        self._plan(version)
        request = secrets.token_hex(8)
        with self._engine.verdict(request) as future:
            settings = settings_of(version.manifest)
            self._engine.feed(ev.VersionStaged(version.name, version.number, settings, request, at_once))
            verdict: Verdict = await future
        if verdict.error:
            first, _, rest = verdict.error.partition("\n")
            code = "conflict" if first.startswith("cannot change") else "handler-failed"
            if code == "handler-failed":
                served = "; what served before still does" if version.name in self.deployed else ""
                first = f"{version.name} does not start: {first}{served}"
            raise OrpheusError(code, first, {"traceback": rest} if rest else None)

    async def _serves(self, version: StoredVersion) -> None:
        """Somebody wanted the version, and it has shown that it works: it is current from now on."""
        name = version.name
        self.deployed[name] = version
        self.rolled_back.pop(name, None)
        try:
            await self._write_current(name)
        except OSError as error:
            raise OrpheusError(
                "internal", f"version {version.number} of {name} serves, but that cannot be written down "
                f"({error.strerror}), so a restart of the daemon goes back; make space and deploy again") from error
        reached("deploy-switched")
        await self._tidy(name)

    async def _write_current(self, name: str) -> None:
        """Bring what is current to the disk. One at a time, each writes what is true then: the last is right."""
        async with self._writes.turn(name):
            version = self.deployed.get(name)
            if version is not None:
                await asyncio.to_thread(
                    self._store.set_current, name, version.number, self.rolled_back.get(name))

    async def _write_rolled_back(self, name: str) -> None:
        try:
            await self._write_current(name)
        except OSError as error:
            log.error("cannot note that a version of %s was rolled back: %s; the next start of the daemon tries it "
                      "again", name, error)

    def _plan(self, version: StoredVersion) -> None:
        manifest = version.manifest
        setup = {
            "agent": version.name, "version": version.number, "module": manifest.module_name,
            "entrypoint": manifest.entrypoint, "concurrency": manifest.concurrency, "preload": manifest.preload,
            "env": self._store.read_env(version.name, version.number), "result_limit_bytes": RESULT_LIMIT_BYTES,
            "orphan_ttl_s": self._config.orphan_ttl_s,
        }  # fmt: skip
        self._planned[version.name, version.number] = version
        venv_dir: Path | None = self._store.state_dir / "venvs" / version.venv if version.venv else None
        self._engine.plans[version.name, version.number] = Plan(
            version.name, version.number, version.code_dir, self._store.make_workspace(version.name), venv_dir,
            manifest.network, manifest.memory * MB, setup)

    def _forget_plan(self, name: str, number: int) -> None:
        self._engine.plans.pop((name, number), None)
        self._planned.pop((name, number), None)

    async def _tidy(self, name: str) -> None:
        """Remove versions nobody runs or goes back to. The one of before may be gone back to at any moment."""
        agent = self._engine.supervisor.agents.get(name)
        if agent is None:
            return
        in_use = {worker.version for worker in agent.workers.values()}
        if agent.previous is not None:
            in_use.add(agent.previous.version)
        try:
            for number in await asyncio.to_thread(self._store.prune, name, in_use):
                self._forget_plan(name, number)
            await asyncio.to_thread(prune_venvs, self._store.state_dir, self._store.venvs_in_use())
        except OSError as error:
            # what could not be removed now is removed after a later deploy
            log.warning("old versions of %s cannot be removed: %s", name, error)


def _older(name: str, current: int, wanted: int | None, served: list[int]) -> int:
    """The version to go back to. Raises OrpheusError that says which there are."""
    listed = ", ".join(f"{number} (serves now)" if number == current else str(number) for number in served)
    there_are = f"the versions of {name} that have served and are kept: {listed or 'none'}"
    if wanted is None:
        older = [number for number in served if number < current]
        if not older:
            raise OrpheusError("conflict", f"cannot roll {name} back: nothing older than version {current} is there; "
                                           f"{there_are}")
        return older[-1]
    if wanted == current:
        raise OrpheusError("conflict", f"cannot roll {name} back to version {wanted}: it serves now; {there_are}")
    if wanted not in served:
        raise OrpheusError("not-found", f"cannot roll {name} back to version {wanted}: there is none; {there_are}")
    return wanted


def settings_of(manifest: Manifest) -> Settings:
    """What the supervisor needs of an agent.yaml."""
    scaling, session = manifest.scaling, manifest.session
    return Settings(
        concurrency=manifest.concurrency,
        timeout_s=manifest.timeout,
        min_workers=scaling.min_workers,
        max_workers=scaling.max_workers,
        queue_size=scaling.queue_size,
        queue_timeout_s=scaling.queue_timeout_seconds,
        scale_up_threshold=scaling.scale_up_threshold,
        scale_down_threshold=scaling.scale_down_threshold,
        idle_timeout_s=scaling.idle_timeout_seconds,
        affinity=session.affinity,
        patience_s=session.patience_ms / 1000,
        overlap=session.overlap,
        session_ttl_s=session.ttl,
        session_max=session.max,
        session_queue_size=session.queue_size,
        memory_mb=manifest.memory,
        drain_s=manifest.deploy.drain_seconds,
        recycle_runs=manifest.recycle.max_runs or 0,
        recycle_mb=manifest.recycle.memory_mb or 0,
    )
