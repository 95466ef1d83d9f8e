"""What is right in `flows` and yet hardly meant: see `hygiene`."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any

from broker.config.flow_checks import nets_of
from broker.config.flow_files import readable_by_others, secrets
from broker.config.policy.lexer import scan
from broker.core.flow_model import Flows, Site
from broker.core.model import Place

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


def flow_warnings(flows: Flows, sets: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[Place | None, str, str]]:
    for path, file in secrets(flows):
        if readable_by_others(file):
            place = flows.store.place if flows.store and path[1] == "store" else None
            yield place, ".".join(path), f"others than its owner can read '{file}', expected mode 0600"
    holders = {site.within for site in flows.sites}
    for site in flows.sites:
        if not site.nets and site.name not in holders:
            yield site.place, f"flows.sites.{site.name}", f"site '{site.name}' has no nets and holds no other: nothing is ever there"
    yield from _overlaps(flows, sets)


def sets_of(flows: Flows) -> Iterator[tuple[str, str]]:
    """The sets that are used, and where."""
    for link in flows.links:
        for token in scan(link.match) if "$" in link.match else ():
            if token.kind == "set":
                yield f"flows.links.{link.name}", token.text
    for site in flows.sites:
        for word in site.nets:
            if word.startswith("$"):
                yield f"flows.sites.{site.name}", word[1:]


def _overlaps(flows: Flows, sets: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[Place | None, str, str]]:
    """The longer net decides; between a site and what holds it that is what is meant."""
    sites = {site.name: site for site in flows.sites}
    owner: dict[IpNetwork, Site] = {}
    for site in flows.sites:
        for word in site.nets:
            owner |= {ipaddress.ip_network(net): site for net in nets_of(word, sets)}
    lengths = {version: sorted({net.prefixlen for net in owner if net.version == version}) for version in (4, 6)}
    for net, site in owner.items():
        for length in lengths[net.version]:
            if length >= net.prefixlen:
                break
            wider = net.supernet(new_prefix=length)
            other = owner.get(wider)
            if other is not None and other.name not in _holders(site, sites):
                text = f"{net} lies in {wider} of site '{other.name}': addresses in both count as of '{site.name}'"
                yield site.place, f"flows.sites.{site.name}", text


def _holders(site: Site, sites: Mapping[str, Any]) -> set[str]:
    """The site and all that hold it."""
    found = {site.name}
    while site.within and site.within not in found:
        found.add(site.within)
        site = sites[site.within]
    return found
