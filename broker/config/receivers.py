"""What the tools at the far end can read: profiles that `receiver:` names. A tool that its receiver cannot read is refused with the reason;
what it reads and yet may not be meant is a warning. Pure.

The table was made from the receivers' own sources (Suricata 9.0-dev, Zeek 9.1-dev, Arkime 6, Snort 3), by running them (tshark 4.0.17,
tcpdump 4.99.3, the kernel's devices), and for the commercial ones from their manuals. `unknown` are tunnels of which nobody has found out.

To add a receiver: a row in `RECEIVERS`; its name in the README.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from broker.core.model import UDP_PORTS, Tunnel

GRE = frozenset(("gre", "nvgre", "gre-ip"))
ERSPAN = frozenset(("erspan1", "erspan2", "erspan3"))
VIRTUAL = frozenset(("vxlan", "geneve"))
EVERY = GRE | ERSPAN | VIRTUAL | {"gre-udp"}

Found = tuple[str, str]
"""Key of the tunnel, and what about it."""


@dataclass(frozen=True, slots=True)
class Trait:
    """`text` of tunnels of these kinds for which `when` holds; `key` is what the operator would change."""

    kinds: frozenset[str]
    key: str
    text: str
    when: Callable[[Tunnel], bool] = lambda _: True


@dataclass(frozen=True, slots=True)
class Receiver:
    label: str
    refuses: tuple[Trait, ...] = ()
    warns: tuple[Trait, ...] = ()
    unknown: frozenset[str] = frozenset()


def _only(*kinds: str) -> frozenset[str]:
    return frozenset(kinds)


def _other_port(tunnel: Tunnel) -> bool:
    return tunnel.udp_port != UDP_PORTS.get(tunnel.kind)


def _has_key(tunnel: Tunnel) -> bool:
    return tunnel.key is not None


def _no_checksum(label: str) -> Trait:
    return Trait(GRE | {"gre-udp"}, "checksum", f"{label} skips the GRE checksum unverified", lambda t: t.checksum)


_SURICATA_TENANTS = (
    "Suricata tells flows apart by VLAN ids and not by this: equal inner addresses of two networks become one flow there, unless the "
    "frames have different VLAN tags"
)
_ARKIME_TENANTS = "Arkime's sessionIdTracking is none by default: equal inner addresses of two networks become one session there"

RECEIVERS: dict[str, Receiver] = {
    "suricata": Receiver(
        "Suricata",
        refuses=(Trait(_only("erspan3"), "kind", "Suricata does not decode ERSPAN III and does not say so, expected erspan2 or gre"),),
        warns=(
            Trait(_only("gre", "gre-ip"), "key", _SURICATA_TENANTS, _has_key),
            Trait(_only("nvgre"), "vsid", _SURICATA_TENANTS, lambda t: t.vsid != 0),
            Trait(VIRTUAL, "vni", _SURICATA_TENANTS, lambda t: t.vni != 0),
            Trait(_only("vxlan"), "port", "list it in Suricata's decoder.vxlan.ports, where 4 are possible", _other_port),
            Trait(_only("geneve"), "port", "list it in Suricata's decoder.geneve.ports, where 4 are possible", _other_port),
            _no_checksum("Suricata"),
        ),
        unknown=_only("gre-udp"),
    ),
    "zeek": Receiver(
        "Zeek",
        refuses=(Trait(_only("gre-udp"), "port", "Zeek decodes GRE in UDP at port 4754 only, expected 4754", _other_port),),
        warns=(
            Trait(_only("vxlan"), "port", "Zeek must be told to look for VXLAN there: PacketAnalyzer::VXLAN::vxlan_ports", _other_port),
            Trait(_only("geneve"), "port", "Zeek must be told to look for Geneve there: PacketAnalyzer::Geneve::geneve_ports", _other_port),
            _no_checksum("Zeek"),
        ),
    ),
    "arkime": Receiver(
        "Arkime",
        warns=(
            Trait(_only("gre", "gre-ip"), "key", _ARKIME_TENANTS, _has_key),
            Trait(_only("nvgre"), "vsid", _ARKIME_TENANTS, lambda t: t.vsid != 0),
            Trait(VIRTUAL, "vni", _ARKIME_TENANTS, lambda t: t.vni != 0),
            Trait(VIRTUAL, "port", "Arkime looks for VXLAN at port 4789 and for Geneve at 6081 unless it is told otherwise", _other_port),
            _no_checksum("Arkime"),
        ),
        unknown=_only("gre-udp"),
    ),
    "snort3": Receiver(
        "Snort 3",
        refuses=(
            Trait(_only("erspan1"), "kind", "Snort 3 does not decode ERSPAN I, expected erspan2 or gre"),
            Trait(
                _only("erspan3"), "subheader", "Snort 3 takes ERSPAN III with its subheader only, expected true", lambda t: not t.subheader
            ),
        ),
        warns=(
            Trait(_only("vxlan"), "port", "Snort 3 must be told to look for VXLAN there: udp.vxlan_ports", _other_port),
            Trait(_only("geneve"), "port", "Snort 3 must be told to look for Geneve there: udp.geneve_ports", _other_port),
            _no_checksum("Snort 3"),
        ),
        unknown=_only("gre-udp"),
    ),
    "tshark": Receiver(
        "tshark",
        warns=(Trait(VIRTUAL | {"gre-udp"}, "port", "tshark must be told what is there: -d udp.port==PORT,PROTOCOL", _other_port),),
    ),
    "tcpdump": Receiver(
        "tcpdump",
        refuses=(
            Trait(ERSPAN, "kind", "tcpdump does not decode ERSPAN, expected gre, vxlan or geneve"),
            Trait(_only("gre-udp"), "kind", "tcpdump does not decode GRE in UDP, expected gre, vxlan or geneve"),
        ),
        warns=(Trait(VIRTUAL, "port", "tcpdump must be told what is there: -T vxlan; it knows Geneve at port 6081 only", _other_port),),
    ),
    "packetbeat": Receiver(
        "Packetbeat",
        refuses=(
            Trait(
                EVERY, "kind", "Packetbeat decodes no tunnel: let a device of the kernel end it (gretap, vxlan), which is receiver: linux"
            ),
        ),
    ),
    "extrahop": Receiver(
        "ExtraHop",
        warns=(Trait(_only("vxlan"), "port", "list it among ExtraHop's VXLAN ports", _other_port),),
        unknown=ERSPAN | _only("nvgre", "gre-ip", "geneve", "gre-udp"),
    ),
    "vectra": Receiver(
        "Vectra",
        warns=(Trait(_only("erspan2"), "kind", "Vectra decodes ERSPAN II from version 9.10 on"),),
        unknown=_only("nvgre", "gre-ip", "erspan1", "erspan3", "gre-udp"),
    ),
    "linux": Receiver(
        "Linux",
        refuses=(
            Trait(
                _only("erspan3"), "subheader",
                "the kernel's erspan device takes the subheader for a part of the frame, expected false", lambda t: t.subheader,
            ),
        ),
        warns=(
            Trait(_only("gre", "gre-ip"), "key", "the kernel's device must have the same key, or be made with external", _has_key),
            Trait(
                _only("nvgre"), "flow_id", "it is part of the key: the kernel's device must be made with external",
                lambda t: t.flow_id is None,
            ),
            Trait(ERSPAN - {"erspan1"}, "session", "the kernel's device must have it as its key, or be made with external"),
            Trait(VIRTUAL, "port", "the kernel's device must be made with dstport and this number", _other_port),
        ),
        unknown=_only("gre-udp"),
    ),
}  # fmt: skip


def refusals(receiver: str, tunnel: Tunnel) -> Iterator[Found]:
    """Why `receiver` (empty: not told) cannot read what comes through `tunnel`."""
    if receiver:
        yield from _those(RECEIVERS[receiver].refuses, tunnel)


def traps(receiver: str, tunnel: Tunnel) -> Iterator[Found]:
    """What it reads, and yet not as may be meant."""
    if receiver:
        profile = RECEIVERS[receiver]
        if tunnel.kind in profile.unknown:
            yield "kind", f"whether {profile.label} decodes {tunnel.kind} is not known here"
        yield from _those(profile.warns, tunnel)


def _those(traits: tuple[Trait, ...], tunnel: Tunnel) -> Iterator[Found]:
    return ((trait.key, trait.text) for trait in traits if tunnel.kind in trait.kinds and trait.when(tunnel))
