"""A deployed config under test: its replicas' processes, what they report, and how to hurt them."""

import copy
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

from specserve import Client

APP = "specserve"
_PAUSE = threading.Event()


def until(condition: Callable[[], Any], what: str, timeout_s: float = 60.0) -> Any:
    """Wait for a condition; its first true value. Fails with what was waited for."""
    deadline = time.monotonic() + timeout_s
    while True:
        if value := condition():
            return value
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for: {what}"
        _PAUSE.wait(0.05)  # between two looks at the condition


def replicas(deployment: str) -> dict[int, psutil.Process]:
    """The living replica processes of a deployment, by process id; of clusters that this process started."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            title = process.cmdline()
        except psutil.Error:
            continue
        if title and title[0].startswith(f"ray::ServeReplica:{APP}:{deployment}"):
            found[process.pid] = process
    return found


def no_ray_process() -> bool:
    """Whether every Ray process that this one started has ended."""
    return not [p for p in psutil.Process().children(recursive=True) if "ray" in " ".join(_cmdline(p)).lower()]


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() if process.status() != psutil.STATUS_ZOMBIE else []
    except psutil.Error:
        return []


def serve_config(args: dict[str, Any], http_port: int, grpc_port: int) -> dict[str, Any]:
    """A Serve config file's content around our `args`."""
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": http_port},
        "grpc_options": {"port": grpc_port},
        "applications": [
            {
                "name": APP,
                "import_path": "deployments.app:build_app",
                "route_prefix": "/",
                "args": copy.deepcopy(args),
            }
        ],
    }


@dataclass
class Cluster:
    """A deployed config."""

    address: str
    args: dict[str, Any]

    def client(self) -> Client:
        return Client(self.address)

    def handle(self, deployment: str) -> Any:
        from ray import serve

        return serve.get_deployment_handle(deployment, APP)

    def where(self, deployment: str) -> dict[int, dict[str, Any]]:
        """What every replica of a worker deployment reports, by process id."""
        seen: dict[int, dict[str, Any]] = {}
        handle = self.handle(deployment)

        def all_seen() -> bool:
            answers = [handle.where.remote() for _ in range(4)]
            seen.update((a["pid"], a) for a in (r.result(timeout_s=30) for r in answers))
            return set(replicas(deployment)) <= set(seen)

        until(all_seen, f"an answer of every {deployment} replica")
        return {pid: a for pid, a in seen.items() if pid in replicas(deployment)}

    def workers(self) -> list[str]:
        return ["Verifier", *(f"Drafter-{name}" for name in self.args["drafters"])]

    def kill(self, deployment: str, pid: int | None = None) -> int:
        """kill -9 one replica."""
        pid = pid if pid is not None else next(iter(replicas(deployment)))
        os.kill(pid, 9)
        return pid

    def settle(self, timeout_s: float = 90.0) -> None:
        """Wait until every deployment is whole again and nothing is held anywhere."""
        from ray import serve

        def whole() -> bool:
            return serve.status().applications[APP].status.value == "RUNNING"

        until(whole, "all replicas running", timeout_s)
        for deployment in self.workers():
            until(lambda d=deployment: self._idle(d), f"{deployment}: no session and no slot left", timeout_s)

    def _idle(self, deployment: str) -> bool:
        return all(not a["sessions"] and not a.get("slots_used", 0) for a in self.where(deployment).values())


MAIN: dict[str, Any] = {
    "target": {
        "model": "zoo:target",
        "dtype": "float32",
        "threads": 1,
        "slots": 16384,
        "replicas": {"min": 2, "max": 2},
        "placement": {"num_cpus": 0.25},
    },
    "drafters": {
        "ngram": {"kind": "ngram", "table": "zoo:ngram", "placement": {"num_cpus": 0.25}},
        "ar": {"kind": "ar", "model": "zoo:ar", "dtype": "float32", "slots": 16384, "placement": {"num_cpus": 0.25}},
    },
    "router": {"placement": {"num_cpus": 0.25}, "draft_deadline_ms": 2000, "max_sessions": 32},
    "data_plane": {"secret": "of-the-tests"},
}


PROMPTS = [
    'def read_lines(path):\n    """Return the lines of a text file without their newlines."""\n',
    'import os\nimport sys\n\n\nclass Stack:\n    """A last-in, first-out stack."""\n\n    def __init__(self):\n',
    "def test_add(self):\n    self.assertEqual(add(1, 2), 3)\n    self.assertEqual(add(2, 2), 4)\n    self.assert",
    "try:\n    import json\nexcept ImportError:\n",
]
