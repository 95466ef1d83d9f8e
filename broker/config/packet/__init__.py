"""A packet written as fields, ``{ip.src: 10.1.0.5, tcp.dst: 443}``, and the bytes of it. Pure.

| file | what |
|---|---|
| `fields.py` | the table of fields, and what was written of a packet, read by it |
| `values.py` | what the value of a field may be |
| `stack.py` | which headers there are; fields that contradict each other |
| `headers.py` | the bytes of each header |
| `build.py` | all of them together |
| `text.py` | fields in one line, as on a command line |
"""

from broker.config.packet.build import Packet, build, mistakes
from broker.config.packet.fields import json_schema
from broker.config.packet.text import fields_text, parse_fields

__all__ = ["Packet", "build", "fields_text", "json_schema", "mistakes", "parse_fields"]
