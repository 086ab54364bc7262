"""Texts that would be an agent.yaml, in bundles that are right otherwise: each is inspected, and some are deployed."""

import base64
import random
import zlib
from collections.abc import Sequence

from orpheusd.agents import Manifest, parse_manifest
from orpheusd.errors import OrpheusError
from tests.fuzz.house import Broken, House, short
from tests.fuzz.mutation import mutated
from tests.fuzz.target import ANSWER_S, packed

HANDLER = "async def handler(input_data):\n    return input_data\n"
#: Of those that are valid one in so many is deployed; it takes as long as a hundred inspections.
DEPLOYED_IN = 8
#: A box that is to be used for something else while it is fuzzed starts no thousand workers.
WORKERS_LIMIT = 3

_FULL = b"""\
name: fuzzed
runtime: python3
module: agent.py
entrypoint: handler
memory: 512
timeout: 300
concurrency: 2
preload: false
scaling: {min_workers: 1, max_workers: 2, queue_size: 200, scale_up_threshold: 1.0, scale_down_threshold: 0.5,
  idle_timeout_seconds: 300, queue_timeout_seconds: 300}
session:
  affinity: soft
  patience_ms: 100
  overlap: allow
  ttl: 24h
  max: 100000
  queue_size: 32
  header: X-My-ID
deploy: {drain_seconds: 0}
workspace: {max_mb: 100}
env: [MODE=prod, 'A=b', OPENAI_API_KEY]
network: true
telemetry:
  labels: {team: platform, on: yes}
engine: vllm
model: "m"
"""
_WORDS = (
    *(name.encode() for name in Manifest.model_fields), b": ", b"- ", b"\n", b"\n  ", b"\t", b"&a ", b"*a",
    b"!!python/object:os.system ", b"!<", b">", b"|", b"|9", b"? ", b"--- ", b"...\n", b"%YAML 1.", b"%TAG ! tag:",
    b"%TAG !a! ", b"<<: ", b"=", b"~", b"# ", b'"', b"'", b"{", b"[", b"}", b"]", b"\\x", b"\\u", b"\\U", b"\\ud800",
    b"\\U00110000", b"\\UFFFFFFFF", b"\\U0010FFFF", b"\\N", b"\\0", b"!%ff", b"!a%", b"0o17", b"0x", b"1:30", b".inf",
    b".nan", b"1e400", b"2026-01-31", b"12345678901234567890", b"\xef\xbb\xbf", b"\xff\xfe", b"\xc2\x85",
    b"\xe2\x80\xa8", b"\x07", b"{a: " * 20, b"[" * 20, b"X-Session-ID", b"Content-Id", b"24h", b"-1ms")


class AgentYaml:
    name = "agent.yaml"
    tries = 4

    def seeds(self) -> list[bytes]:
        name = b"name: a\nruntime: python3\n"
        lines = _FULL.splitlines(keepends=True)
        return [_FULL, name, b"{name: a, runtime: python3}",
                b'{"name": "a", "runtime": "python3", "env": {"A": null, "B": 1}}\n',
                b"%YAML 1.1\n---\n" + name + b"...\n",
                name + b'env:\n  A: "\\x41\\u0041\\U00000041"\n  B: |2\n    text\n',
                name + b"env: {A: !!str 1, B: on, ? C : d}\n", name + b"model: >-\n  folded\n  text\n",
                *(name + line for line in lines[2:8]), b"".join(lines[:4] + lines[10:18])]

    def mutated(self, dice: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
        return mutated(dice, data, others, _WORDS)

    def decode(self, data: bytes) -> Manifest | None:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            return None
        manifest = parse_manifest(text)
        manifest.settings()
        return manifest

    def prepare(self, house: House) -> None:
        """Each input brings its own agent."""

    def send(self, house: House, data: bytes) -> set[str]:
        bundle = packed({"agent.yaml": data, "agent.py": HANDLER})
        with house.daemon.connect(ANSWER_S) as control:
            upload = control.call("bundle.put", data=base64.b64encode(bundle).decode())
            try:
                found = control.call("bundle.inspect", **upload_of(upload))
                manifest = self.decode(data)
                if manifest is None or manifest.scaling.min_workers > WORKERS_LIMIT or zlib.crc32(data) % DEPLOYED_IN:
                    return {f"{'env' if found['env_needed'] else 'plain'} {bool(found['warnings'])}"}
                values = dict.fromkeys(found["env_needed"], "value")
                control.call("deploy", env=values, **upload_of(upload))
            except OrpheusError as error:
                return {refused(error)}
            return {looked_at(house, found["name"])}


def upload_of(told: dict[str, str]) -> dict[str, str]:
    return {"upload_id": told["upload_id"]}


def refused(error: OrpheusError) -> str:
    if error.code == "internal":
        raise Broken(f"refused with an internal error: {error.message}")
    return short(f"{error.code}: {error.message}")


def looked_at(house: House, name: str) -> str:
    """An agent that was deployed can be shown, listed, run and undeployed."""
    with house.daemon.connect(ANSWER_S) as control:
        try:
            for method in ("agent.show", "agent.stats"):
                control.call(method, agent=name)
            for method in ("agent.list", "metrics", "status"):
                control.call(method)
            try:
                ran = f"ran {type(control.call('run', agent=name, input={'a': 1}, timeout_s=5)['result']).__name__}"
            except OrpheusError as error:
                ran = refused(error)
            control.call("undeploy", agent=name, purge=True)
        except OrpheusError as error:
            raise Broken(f"{name} was deployed, and then: {error.code}: {error.message}") from None
    return f"deployed; {ran}"
