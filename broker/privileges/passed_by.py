"""What a packet socket goes past: rules for packets that leave this host by IP. Who has such rules means them for our packets too."""

from __future__ import annotations

import contextlib
import errno
import struct

from broker.core.netlink import NETFILTER, ROUTE, XFRM, attributes, dump

_GET_CHAIN, _GET_POLICY = 10 << 8 | 4, 0x15  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETCHAIN; XFRM_MSG_GETPOLICY
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _HOOK_NUMBER = 1, 3, 4, 1  # NFTA_*
_IP_FAMILIES = (1, 2, 10)  # NFPROTO_INET, _IPV4, _IPV6
_LEAVING = (3, 4)  # NF_INET_LOCAL_OUT, NF_INET_POST_ROUTING
_ABSENT = (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.ENOENT)  # this kernel has no such thing
_GET_RULE, _RULE_BYTES, _ABOUT_PORTS = 34, 12, (22, 23, 24)  # RTM_GETRULE, fib_rule_hdr; FRA_IP_PROTO, _SPORT_RANGE, _DPORT_RANGE
_LEGACY = ("/proc/net/ip_tables_names", "/proc/net/ip6_tables_names")


def rules_passed_by() -> str:
    """Which rules of this network namespace a packet socket would go past, in words; empty: none."""
    try:
        return _chains() or _tables() or _policies() or _routing()
    except PermissionError:
        return "without CAP_NET_ADMIN the rules of firewall and IPsec cannot be seen"
    except OSError as error:
        return f"the rules of firewall and IPsec cannot be seen: {error.strerror}"


def _chains() -> str:
    with _none_where_absent():
        for answer in dump(_GET_CHAIN, struct.pack("=BBH", 0, 0, 0), NETFILTER):
            found = attributes(answer[4:])
            hook = attributes(found.get(_CHAIN_HOOK, b"")).get(_HOOK_NUMBER, b"\xff")
            if answer[0] in _IP_FAMILIES and int.from_bytes(hook, "big") in _LEAVING:
                table, chain = (found.get(kind, b"").rstrip(b"\0").decode(errors="replace") for kind in (_CHAIN_TABLE, _CHAIN_NAME))
                return f"nftables chain {table} {chain} is for packets that leave"
    return ""


def _tables() -> str:
    """Of the older iptables only whether they are in use can be told."""
    for path in _LEGACY:
        with contextlib.suppress(FileNotFoundError), open(path) as file:
            if names := file.read().split():
                return f"iptables are in use ({', '.join(names)})"
    return ""


def _policies() -> str:
    with _none_where_absent():
        for _ in dump(_GET_POLICY, bytes(64), XFRM):
            return "there are policies of IPsec"
    return ""


def _routing() -> str:
    """The kernel does not say which way such a rule sends GRE (rtm_getroute_parse_ip_proto), nor what it makes of ports."""
    with _none_where_absent():
        for answer in dump(_GET_RULE, bytes(_RULE_BYTES), ROUTE):
            if not attributes(answer, _RULE_BYTES).keys().isdisjoint(_ABOUT_PORTS):
                return "there are routing rules by protocol or port"
    return ""


@contextlib.contextmanager
def _none_where_absent():  # type: ignore[no-untyped-def]
    try:
        yield
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
