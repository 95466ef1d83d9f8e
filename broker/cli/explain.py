"""``tapmesh explain``: one packet against a policy: what was parsed, each map, each rule tried and the test that failed, what is sent."""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path
from typing import Any

from broker.cli.common import policy_of, quiet_logs
from broker.cli.explain_text import text_of
from broker.cli.explained import explained
from broker.cli.judging import judging, slot_of
from broker.config import load_config
from broker.config.packet import build, parse_fields
from broker.core.errors import TapmeshError
from broker.core.layout import MAX_FRAME_BYTES
from broker.supervisor.judge import Packet


def add(commands: Any) -> None:
    sub: argparse.ArgumentParser = commands.add_parser("explain", help="what the policy does with one packet, and why")
    sub.add_argument("--config", type=Path, required=True, metavar="CONFIG")
    sub.add_argument("--capture", metavar="FILE", help="take the packet from a capture file")
    sub.add_argument(
        "--packet", metavar="N|FIELDS", help="its number in the capture file, from 1; without one its fields: 'ip.src=10.1.0.5 tcp.dst=443'"
    )
    sub.add_argument("--hex", metavar="HEX", help="the whole frame in hexadecimal digits")
    sub.add_argument("--input", metavar="NAME", help="the input that it comes from (default: the first)")
    sub.add_argument("--all", action="store_true", help="every rule of each map, those behind the one that decides too")
    sub.add_argument("--json", action="store_true", help="for programs")
    sub.set_defaults(main=main)


def main(arguments: argparse.Namespace) -> int:
    """Exit status 0, whatever becomes of the packet."""
    quiet_logs()
    number = _number(arguments)
    config = load_config(arguments.config)
    policy = policy_of(config)
    frame, wirelen, name = (b"", 0, "") if number else _packet(arguments)
    slot = slot_of(config, arguments.input or name)
    gc.freeze()  # thousands of rules are not to be looked through again for what is no garbage
    with judging((config, policy.image)) as judge:
        if number:
            answer = judge.explain_captured(arguments.capture, number, slot, beyond=arguments.all)
        else:
            answer = judge.explain(Packet(frame, wirelen, slot), beyond=arguments.all)
    found = explained(config, policy, answer)
    if number:
        found["packet"] = {"file": arguments.capture, "number": number, **found["packet"]}
    print(json.dumps(found) if arguments.json else text_of(config, found, everything=arguments.all))
    return 0


def _number(arguments: argparse.Namespace) -> int:
    """Of the packet in the capture file; 0: it is not from one."""
    if arguments.capture is None:
        if (arguments.packet is None) == (arguments.hex is None):
            raise TapmeshError("explain: --capture FILE --packet N, or --packet 'FIELDS', or --hex HEX is needed")
        if (arguments.packet or "").strip().isdigit():
            raise TapmeshError(f"explain: --packet {arguments.packet}: packet {arguments.packet} of which file? --capture FILE is needed")
        return 0
    word = arguments.packet or ""
    if arguments.hex is not None or not (word.isascii() and word.isdigit() and int(word) > 0):
        raise TapmeshError("explain: --capture FILE needs --packet N, the number of the packet in the file, from 1")
    if arguments.capture == "-":
        raise TapmeshError("explain: --capture needs a file, not standard input")
    return int(word)


def _packet(arguments: argparse.Namespace) -> tuple[bytes, int, str]:
    """(frame, its length on the wire, input or nothing). ConfigErrors, TapmeshError in words."""
    if arguments.hex is None:
        made = build(parse_fields(arguments.packet))
        return made.frame, made.wirelen, made.input
    try:
        frame = bytes.fromhex(arguments.hex.replace(":", " "))
    except ValueError:
        raise TapmeshError(f"explain: --hex {arguments.hex!r}: expected pairs of hexadecimal digits") from None
    if len(frame) > MAX_FRAME_BYTES:
        raise TapmeshError(f"explain: --hex: {len(frame):,} bytes, a packet has at most {MAX_FRAME_BYTES:,}")
    return frame, len(frame), ""
