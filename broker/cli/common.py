"""What several commands share."""

from __future__ import annotations

import os
from pathlib import Path

from broker.config.policy import PolicyError, parse_expression
from broker.config.policy.compiler import Policy, build_policy
from broker.core import log
from broker.core.errors import ConfigErrors, TapmeshError
from broker.core.generations import read_generation
from broker.core.model import Config, Place
from broker.core.shm import Pipeline, open_pipeline, shared_memory_root
from broker.supervisor.generation import names_of, read_slots
from broker.supervisor.snapshot import Names

DEFAULT_NAME = "main"
QUIET = "warning"


def compiled(config: Config) -> bytes:
    """The policy image. ConfigErrors for what only shows when all of it is put together (too large)."""
    return policy_of(config).image


def policy_of(config: Config) -> Policy:
    """The same, with what it is made of."""
    try:
        return build_policy(config)
    except PolicyError as error:
        raise ConfigErrors([(None, "maps", error.message)]) from None


def checked_expression(expression: str) -> str:
    """An expression of the command line. ConfigErrors says at which column it is wrong."""
    try:
        parse_expression(expression, {})
    except PolicyError as error:
        raise ConfigErrors([(Place("expression", 1, max(0, error.offset) + 1), "", error.message)]) from None
    return expression


def quiet_logs() -> None:
    """For commands that a person runs: our processes log what went wrong, and nothing else unless asked for."""
    os.environ.setdefault(log.LEVEL, QUIET)


def pipelines() -> list[str]:
    """Names of the pipelines on this machine that we may look at."""
    prefix = "tapmesh-"
    return sorted(p.parent.name.removeprefix(prefix) for p in shared_memory_root().glob(f"{prefix}*/control") if os.access(p, os.R_OK))


def chosen_name(given: str | None) -> str:
    """`given`; else the only pipeline there is, or the default. TapmeshError when there are several."""
    if given:
        return given
    running = pipelines()
    if len(running) == 1:
        return running[0]
    if DEFAULT_NAME in running or not running:
        return DEFAULT_NAME
    raise TapmeshError(f"several pipelines are running ({', '.join(running)}): choose one with --name")


def attach(name: str) -> tuple[Pipeline, Names]:
    """A running pipeline and what its slots are called. PipelineError in words when there is none."""
    pipeline = open_pipeline(name)
    return pipeline, names_of(read_slots(pipeline.directory))


def in_force(pipeline: Pipeline) -> Config | None:
    """The configuration, without its rules. None: none yet."""
    number = int(pipeline.header[0]["generation"])
    return read_generation(pipeline.directory, number, rules=False).config if number else None


def generation_of(pipeline: Pipeline) -> str:
    """`3 (node esx07)`."""
    config = in_force(pipeline)
    return f"{int(pipeline.header[0]['generation'])} (node {config.node})" if config else "none yet"


def writable_directory(path: Path) -> Path:
    """Made if need be. TapmeshError in words."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TapmeshError(f"{path}: {error.strerror}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise TapmeshError(f"{path}: not writable")
    return path
