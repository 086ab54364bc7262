"""Deploying: from an upload to a version that serves, and back to nothing.

It drives the steps (unpack, build, canary, switch), keeps the disk and the supervisor in agreement, and undoes
what it did when a step fails: until the switch, what was current still is. Slow file work is done in threads.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orpheusd.agents import Manifest, parse_manifest
from orpheusd.config import Config
from orpheusd.core import events as ev
from orpheusd.core.agent import Settings
from orpheusd.deploy.beneath import Emptied
from orpheusd.deploy.build import ensure_venv, prune_venvs
from orpheusd.deploy.bundle import read_manifest_text, survey
from orpheusd.deploy.versions import StoredVersion, VersionStore
from orpheusd.engine import Engine, Verdict
from orpheusd.errors import OrpheusError
from orpheusd.operations import RESULT_LIMIT_BYTES
from orpheusd.process.plan import Plan
from orpheusd.process.sandbox import Isolation
from orpheusd.remembered import Remembered

log = logging.getLogger(__name__)

Step = Callable[[str, str, str], None]

NO_WALLS = (
    "isolation is off: agents can read and change whatever the daemon's user can, and /workspace is not mapped "
    "(use WORKSPACE_DIR or workspace.path)"
)


class Deployments:
    """Invariant: an agent has at most one change under way, and `deployed` holds the current version of each."""

    def __init__(
        self, store: VersionStore, engine: Engine, config: Config, isolation: Isolation, remembered: Remembered
    ) -> None:
        self.deployed: dict[str, StoredVersion] = {}
        self._store = store
        self._engine = engine
        self._config = config
        self._isolation = isolation
        self._remembered = remembered
        self._changing: set[str] = set()

    def load_all(self) -> list[str]:
        """Start the current version of every agent on disk. Returns a sentence for each that cannot be."""
        listing = self._store.list_agents()
        for version in listing.versions:
            self.deployed[version.name] = version
            self._plan(version)
            settings = settings_of(version.manifest)
            sessions = self._remembered.load(version.name, settings.session_ttl_s, settings.session_max)
            self._engine.feed(ev.AgentLoaded(version.name, version.number, settings, tuple(sessions)))
        return listing.problems

    async def inspect(self, upload_id: str) -> dict[str, Any]:
        found = await asyncio.to_thread(survey, self._store.uploads.open(upload_id))
        manifest = parse_manifest(found.manifest_text)
        return {"name": manifest.name, "env_needed": manifest.env_needed(), "requirements": found.requirements,
                "warnings": manifest.warnings()}  # fmt: skip

    async def deploy(self, upload_id: str, env: dict[str, str], step: Step) -> dict[str, Any]:
        """Raises OrpheusError with the reason; then nothing has changed but the version counter.

        The upload is used up either way.
        """
        try:
            return await self._deploy(upload_id, env, step)
        finally:
            self._store.uploads.drop(upload_id)

    async def _deploy(self, upload_id: str, env: dict[str, str], step: Step) -> dict[str, Any]:
        manifest = await self._manifest(upload_id)
        name = manifest.name
        environment = manifest.resolved_env(env)
        warnings = [*manifest.warnings(), *([NO_WALLS] if self._isolation.mode == "none" else [])]
        with self._change(name):
            step("step", "unpack", f"unpacking {name}")
            bundle = self._store.uploads.open(upload_id)
            version = await asyncio.to_thread(self._store.stage, name, bundle)
            try:
                await asyncio.to_thread(self._store.write_env, name, version.number, environment)
                version = await self._build(version, step)
                step("step", "canary", f"starting a worker of version {version.number}")
                await self._try_out(version)
            except BaseException:
                self._engine.plans.pop((name, version.number), None)
                await asyncio.to_thread(self._store.discard, name, version.number)
                raise
            step("step", "switch", f"version {version.number} serves")
            self.deployed[name] = version
            await asyncio.to_thread(self._store.set_current, name, version.number)
            await self._tidy(name)
        return {"name": name, "version": version.number, "isolation": self._isolation.mode, "warnings": warnings}

    async def restart(self, name: str) -> dict[str, Any]:
        version = self.known(name)
        with self._change(name):
            await self._try_out(version)
        return {"name": name, "version": version.number}

    async def undeploy(self, name: str, purge: bool) -> dict[str, Any]:
        self.known(name)
        with self._change(name):
            request = secrets.token_hex(8)
            with self._engine.verdict(request) as verdict:
                self._engine.feed(ev.RemovalRequested(name, request))
                await verdict
            del self.deployed[name]
            for key in [key for key in self._engine.plans if key[0] == name]:
                del self._engine.plans[key]
            self._remembered.forget_agent(name)
            await asyncio.to_thread(self._store.remove_agent, name, purge)
        return {"name": name, "purged": purge}

    async def clean(self, name: str) -> Emptied:
        """Delete what the workspace holds; not while the agent is changed otherwise."""
        with self._change(name):
            return await asyncio.to_thread(self._store.workspace_clean, name)

    def known(self, name: str) -> StoredVersion:
        """The current version of a deployed agent. Raises OrpheusError(not-found)."""
        version = self.deployed.get(name)
        if version is None:
            raise OrpheusError("not-found", f"there is no agent {name}; `orpheusctl list` shows those there are")
        return version

    def _change(self, name: str) -> "_Change":
        return _Change(self._changing, name)

    async def _manifest(self, upload_id: str) -> Manifest:
        bundle = self._store.uploads.open(upload_id)
        return parse_manifest(await asyncio.to_thread(read_manifest_text, bundle))

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

    async def _try_out(self, version: StoredVersion) -> None:
        """Let the supervisor try the version; returns when it serves."""
        self._plan(version)
        request = secrets.token_hex(8)
        with self._engine.verdict(request) as future:
            settings = settings_of(version.manifest)
            self._engine.feed(ev.VersionStaged(version.name, version.number, settings, request))
            verdict: Verdict = await future
        if verdict.error:
            first, _, rest = verdict.error.partition("\n")
            code = "conflict" if first.startswith("cannot change") else "handler-failed"
            if code == "handler-failed":
                served = "; what served before still does" if version.name in self.deployed else ""
                first = f"{version.name} does not start: {first}{served}"
            raise OrpheusError(code, first, {"traceback": rest} if rest else None)

    def _plan(self, version: StoredVersion) -> None:
        manifest = version.manifest
        setup = {
            "agent": version.name, "version": version.number, "module": manifest.module_name,
            "entrypoint": manifest.entrypoint, "concurrency": manifest.concurrency, "preload": manifest.preload,
            "env": self._store.read_env(version.name, version.number), "result_limit_bytes": RESULT_LIMIT_BYTES,
        }  # fmt: skip
        venv_dir: Path | None = self._store.state_dir / "venvs" / version.venv if version.venv else None
        self._engine.plans[version.name, version.number] = Plan(
            version.name, version.code_dir, self._store.workspace_dir(version.name), venv_dir, manifest.network, setup)

    async def _tidy(self, name: str) -> None:
        """Remove versions nobody runs or goes back to."""
        agent = self._engine.supervisor.agents.get(name)
        if agent is None:
            return
        in_use = {worker.version for worker in agent.workers.values()}
        try:
            for number in await asyncio.to_thread(self._store.prune, name, in_use):
                self._engine.plans.pop((name, number), None)
            await asyncio.to_thread(prune_venvs, self._store.state_dir, self._store.venvs_in_use())
        except OSError as error:
            # what could not be removed now is removed after a later deploy
            log.warning("old versions of %s cannot be removed: %s", name, error)


class _Change:
    """One change of an agent. Invariant: while it lasts nobody else changes that agent."""

    def __init__(self, changing: set[str], name: str) -> None:
        self._changing = changing
        self._name = name

    def __enter__(self) -> None:
        if self._name in self._changing:
            raise OrpheusError("conflict", f"another change of {self._name} is going on; try again when it is over")
        self._changing.add(self._name)

    def __exit__(self, *_error: object) -> None:
        self._changing.discard(self._name)


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
    )
