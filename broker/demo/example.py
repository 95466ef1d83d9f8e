"""Sets the example up in a directory: the capture, the receiver, the configuration that names both.

Who runs the pipeline in between is the caller::

    with example(directory) as demo:
        run(demo.config)
        received = demo.stop_receiver()
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO

from broker.core.errors import TapmeshError
from broker.demo.generate import generate
from broker.demo.receiver import Received

_STOP_S = 10.0


class DemoError(TapmeshError):
    """The example could not be set up."""


def config_text(capture: Path, recorded: Path, port: int) -> str:
    text = resources.files("broker.demo").joinpath("demo.yaml").read_text()
    for name, value in {"@CAPTURE@": capture, "@RECORDED@": recorded, "@PORT@": port}.items():
        text = text.replace(name, str(value))
    return text


@dataclass
class Demo:
    config: Path  # YAML
    capture: Path  # what comes in
    n_packets: int  # in it
    received: Path  # what the tool `ids` got, as its receiver wrote it
    recorded: Path  # the file of the tool `recorder`
    port: int  # where the receiver listens, on 127.0.0.1
    receiver: subprocess.Popen[str]

    def stop_receiver(self) -> Received:
        """After the pipeline has drained: what was sent before is in the receiver's socket by then. Once."""
        self.receiver.terminate()
        said, _ = self.receiver.communicate(timeout=_STOP_S)
        return Received(**_said(said))


def _said(line: str) -> dict[str, int]:
    try:
        answer: dict[str, int] = json.loads(line)
    except ValueError:
        raise DemoError("the receiver of the example has died; its reason stands above") from None
    return answer


def _first_line(pipe: IO[str] | None) -> str:
    assert pipe is not None
    return pipe.readline()


@contextmanager
def example(directory: Path) -> Iterator[Demo]:
    """`directory` exists and is the caller's to remove. The receiver is gone when this ends, however it ends."""
    capture, received, recorded, config = (directory / name for name in ("mirror.pcap", "ids.pcap", "recorder.pcap", "demo.yaml"))
    n_packets = generate(capture)
    command = [sys.executable, "-I", "-m", "broker.demo.receiver", "--out", str(received)]
    receiver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        port = _said(_first_line(receiver.stdout))["port"]
        config.write_text(config_text(capture, recorded, port))
        yield Demo(config, capture, n_packets, received, recorded, port, receiver)
    finally:
        if receiver.poll() is None:
            receiver.kill()
        receiver.wait()
        if receiver.stdout is not None:
            receiver.stdout.close()
