"""The configuration of a replay: what the operator's file says, with files in place of interfaces and networks. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from broker.core.errors import TapmeshError
from broker.core.model import Config, Input, Map, Place, Rule, Tool

SELECTION = "selection"


@dataclass(frozen=True)
class Play:
    """One file, and the input that it is played as; "" is the first."""

    file: str
    input: str = ""


def parse_plays(words: Sequence[str], inputs: Sequence[str]) -> list[Play]:
    """`FILE` or `INPUT=FILE`. A word whose part before `=` is no input is a file that has a `=` in its name."""
    plays = []
    for word in words:
        name, equals, file = word.partition("=")
        if equals and name in inputs:
            plays.append(Play(file, name))
        elif equals and inputs and not Path(word).exists() and "/" not in name:
            raise TapmeshError(f"{word}: there is no input {name!r}; the configuration has {', '.join(inputs)}")
        else:
            plays.append(Play(word))
    return plays


def replayed(config: Config, plays: Sequence[Play], out: Path | None, pace: str | None) -> Config:
    """`config` with the files as its inputs, all in one lane in the order given, and each tool as a file in `out`.

    Without `out` nobody will open the tools' files.
    """
    inputs: list[Input] = []
    by_name = {i.name: i for i in config.inputs}
    for play in plays:
        origin = by_name[play.input] if play.input else config.inputs[0]
        file = _absolute(play.file)
        if inputs and inputs[-1].name == origin.name:
            inputs[-1] = replace(inputs[-1], files=(*inputs[-1].files, file))
        else:
            # An input comes up again where its files are not next to each other: the order of the files is what counts.
            inputs.append(Input(origin.name, "pcap", slot=origin.slot, files=(file,), pace=pace or "max"))
    played = {i.name for i in inputs}
    # Maps may name the others.
    inputs += [Input(i.name, "pcap", slot=i.slot, files=()) for i in config.inputs if i.name not in played]
    tools = tuple(_in_file(tool, (out or Path()).absolute() / f"{tool.name}.pcap") for tool in config.tools)
    return replace(config, inputs=tuple(inputs), tools=tools, stages=replace(config.stages, capture=1), http="")


def _in_file(tool: Tool, path: Path) -> Tool:
    return replace(tool, file=str(path), format="pcap", rotation=None, interface="", qdisc_bypass=False, stream=None)


def selecting(plays: Sequence[Play], out: Path, expression: str, pace: str | None) -> Config:
    """What matches `expression` goes to the file `out`, as tcpdump does: what a packet does not show, it does not match."""
    one = Input("files", "pcap", files=tuple(_absolute(play.file) for play in plays), pace=pace or "max")
    tool = Tool("out", file=_absolute(str(out)), waits=True)
    rule = Rule("pass", expression, Place("expression", 1, 1))
    chosen = Map(SELECTION, (rule,), (tool.name,), undetermined="libpcap")
    return Config("replay", (one,), (tool,), (chosen,) if expression else (), collector=() if expression else (tool.name,))


def _absolute(file: str) -> str:
    return file if file == "-" else str(Path(file).absolute())
