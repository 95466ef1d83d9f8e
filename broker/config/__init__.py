"""YAML to frozen values (`broker.core.model`). Pure but for reading the file.

`load_config`, `parse_config` and `render` need pydantic and PyYAML, which only the control process has: they are imported when called.
Workers import `broker.config.lanes` and get none of it.
"""

from __future__ import annotations

import os

from broker.core.model import Config


def load_config(path: str | os.PathLike[str]) -> Config:
    """The configuration in the file `path`, slots assigned. ConfigErrors tells all its mistakes with their places."""
    from broker.config import loader

    return loader.load_config(path)


def parse_config(text: str, file_name: str = "configuration", directory: str = "") -> Config:
    """The same of a text; `file_name` is for messages, names of files are taken from `directory`."""
    from broker.config import loader

    return loader.parse_config(text, file_name, directory)


def render(config: Config) -> str:
    """The effective configuration as YAML, all defaults filled in; `parse_config` makes the same Config of it."""
    from broker.config.render import render as rendered

    return rendered(config)
