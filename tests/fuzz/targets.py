"""The table of targets. Where each has its corpus is its name, below `corpus.PLACE`."""

from collections.abc import Callable

from tests.fuzz.agent_yaml import AgentYaml
from tests.fuzz.bundles import Bundles
from tests.fuzz.control_frames import ControlFrames
from tests.fuzz.http_bytes import HttpBytes
from tests.fuzz.target import Target
from tests.fuzz.worker_frames import WorkerFrames

TARGETS: dict[str, Callable[[], Target]] = {
    "control": ControlFrames, "worker": WorkerFrames, "http": HttpBytes, "agent.yaml": AgentYaml, "bundles": Bundles}
