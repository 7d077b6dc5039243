"""The command line as a user meets it: real processes, a real Ray, real signals."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from specserve import Client
from specserve.types import Chunk, Finished

ROOT = Path(__file__).parents[2]
SPECSERVE = [sys.executable, "-c", "from specserve.cli import main; main()"]


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """Whatever the commands started has ended with them."""
    before = {p.pid for p in psutil.process_iter()}
    yield
    deadline, pause = time.monotonic() + 30, threading.Event()
    while left := [p for p in psutil.process_iter(["cmdline"]) if p.pid not in before and _is_ray(p)]:
        assert time.monotonic() < deadline, f"left running: {left}"
        pause.wait(0.1)


def _is_ray(process: psutil.Process) -> bool:
    line = " ".join(process.info["cmdline"] or ())
    return process.status() != psutil.STATUS_ZOMBIE and ("ray::" in line or "raylet" in line or "gcs_server" in line)


def test_the_demo_runs_from_a_cold_start_to_a_table() -> None:
    peak = _PeakMemory()
    process = subprocess.Popen(
        [*SPECSERVE, "demo", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    peak.watch(process.pid)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    figures = json.loads(out.splitlines()[-1])
    assert {"off", "ngram", "ar"} <= set(figures["arms"])
    assert figures["first_token_s"] > 0
    for drafter in ("ngram", "ar"):
        assert figures["arms"][drafter]["tokens_per_round"] > 1
    assert peak.bytes < 5 << 30


@pytest.mark.parametrize("command", ["bench", "demo", "generate", "info", "train", "up"])
def test_every_command_explains_itself(command: str) -> None:
    out = subprocess.run([*SPECSERVE, command, "--help"], capture_output=True, text=True, check=True)
    assert "Usage" in out.stdout


def test_a_bad_config_ends_with_one_line_naming_file_and_key(tmp_path: Path) -> None:
    config = _config()
    config["applications"][0]["args"]["target"]["slotz"] = 5
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(config))
    out = subprocess.run([*SPECSERVE, "up", str(path)], capture_output=True, text=True, check=False)
    assert out.returncode == 1
    assert out.stderr.strip() == f"specserve: config {path}: target: 'slotz' is no known key; did you mean 'slots'?"


def test_up_serves_until_told_to_stop_and_then_finishes_open_streams(tmp_path: Path) -> None:
    path = tmp_path / "up.yaml"
    path.write_text(yaml.safe_dump(_config()))
    up = subprocess.Popen([*SPECSERVE, "up", str(path), "--json"], stdout=subprocess.PIPE, text=True)
    assert up.stdout is not None
    address = json.loads(up.stdout.readline())["grpc"]

    shown = subprocess.run(
        [*SPECSERVE, "generate", "def f(", "--address", address, "--max-tokens", "8", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(shown.stdout)["emitted_tokens"] <= 8
    info = subprocess.run(
        [*SPECSERVE, "info", "--address", address, "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(info.stdout)["vocab_size"] == 4096

    tokens, finished = 0, False
    with Client(address) as client:
        for event in client.stream("import os\n", max_tokens=400, ignore_eos=True):
            if isinstance(event, Chunk):
                if tokens < 20 <= tokens + len(event.tokens):
                    os.kill(up.pid, signal.SIGTERM)
                tokens += len(event.tokens)
            finished = isinstance(event, Finished)
    assert finished
    assert tokens == 400
    assert up.wait(timeout=60) == 0


def test_the_readme_example_runs(tmp_path: Path) -> None:
    """The README's Python example, word for word, against a server on the default port."""
    blocks = (ROOT / "README.md").read_text().split("```python\n")[1:]
    example = blocks[0].split("```")[0]
    path = tmp_path / "up.yaml"
    path.write_text(yaml.safe_dump(_config()))
    up = subprocess.Popen([*SPECSERVE, "up", str(path), "--json"], stdout=subprocess.PIPE, text=True)
    assert up.stdout is not None
    up.stdout.readline()
    out = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=False, timeout=120)
    up.send_signal(signal.SIGINT)
    assert up.wait(timeout=60) == 0
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip()


def _config() -> dict:
    config: dict = yaml.safe_load((ROOT / "deployments/configs/demo.yaml").read_text())
    return config


class _PeakMemory:
    """Largest sum of the resident sizes of a process and all below it (shared pages counted once each)."""

    def __init__(self) -> None:
        self.bytes = 0

    def watch(self, pid: int) -> None:
        threading.Thread(target=self._run, args=(psutil.Process(pid),), daemon=True).start()

    def _run(self, root: psutil.Process) -> None:
        pause = threading.Event()
        while root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
            total = 0
            for process in [root, *root.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.bytes = max(self.bytes, total)
            pause.wait(1.0)
