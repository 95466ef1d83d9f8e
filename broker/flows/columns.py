"""What a stored record is: the columns of the two tables, the same in every kind of store. No code.

``flows``: a row for each record (`broker.core.flow_layout.FLOW`). Of pairs the second column ends in ``_back``: from the destination to the
source. An address is two numbers, its upper and its lower 64 bits; IPv4 is in the lower one. ``meters``: a row for each input and tool
(and the store itself) every `flows.meter_s` seconds, with what it counted in that time.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    duckdb: str
    clickhouse: str
    help: str


FLOWS: tuple[Column, ...] = (
    Column("node", "VARCHAR", "LowCardinality(String)", "the broker that metered it"),
    Column("input", "VARCHAR", "LowCardinality(String)", "where its packets came from"),
    Column("run", "BIGINT", "Int64", "when that broker was started, ns since 1970: numbers begin anew with each run"),
    Column("lane", "USMALLINT", "UInt16", "ring"),
    Column("number", "BIGINT", "Int64", "of the record in its run and lane, from 0: a gap is a loss"),
    Column("first_ns", "BIGINT", "Int64", "first packet, ns since 1970 (UTC)"),
    Column("last_ns", "BIGINT", "Int64", "last packet"),
    Column("version", "UTINYINT", "UInt8", "of IP"),
    Column("protocol", "UTINYINT", "UInt8", "of IP"),
    Column("source_high", "UBIGINT", "UInt64", "address of who began, or sent first"),
    Column("source_low", "UBIGINT", "UInt64", ""),
    Column("destination_high", "UBIGINT", "UInt64", "address of the other end"),
    Column("destination_low", "UBIGINT", "UInt64", ""),
    Column("source_port", "USMALLINT", "UInt16", "of ICMP the type"),
    Column("destination_port", "USMALLINT", "UInt16", "of ICMP the type of the answer, or the code"),
    Column("icmp", "USMALLINT", "UInt16", "type << 8 | code"),
    Column("vlan", "USMALLINT", "UInt16", "0: none"),
    Column("tunnel", "VARCHAR", "LowCardinality(String)", "what carried it; empty: nothing"),
    Column("tunnel_id", "UINTEGER", "UInt32", "key, VNI, session, TEID or label"),
    Column("packets", "BIGINT", "Int64", "from the source"),
    Column("packets_back", "BIGINT", "Int64", ""),
    Column("bytes", "BIGINT", "Int64", "of IP packets, headers and all"),
    Column("bytes_back", "BIGINT", "Int64", ""),
    Column("min_bytes", "USMALLINT", "UInt16", "shortest packet"),
    Column("min_bytes_back", "USMALLINT", "UInt16", ""),
    Column("max_bytes", "USMALLINT", "UInt16", "longest packet"),
    Column("max_bytes_back", "USMALLINT", "UInt16", ""),
    Column("tcp_flags", "UTINYINT", "UInt8", "all that were seen"),
    Column("tcp_flags_back", "UTINYINT", "UInt8", ""),
    Column("tos", "UTINYINT", "UInt8", "of the first packet"),
    Column("tos_back", "UTINYINT", "UInt8", ""),
    Column("ttl", "UTINYINT", "UInt8", "of the first packet"),
    Column("rtt_source_us", "UINTEGER", "UInt32", "of the handshake, from here to the source and back; 0: not seen"),
    Column("rtt_destination_us", "UINTEGER", "UInt32", "from here to the destination and back"),
    Column("retransmitted", "USMALLINT", "UInt16", "segments that had come before, or late"),
    Column("retransmitted_back", "USMALLINT", "UInt16", ""),
    Column("one_in", "UINTEGER", "UInt32", "of how many it is one; 1: unsampled"),
    Column("end_reason", "UTINYINT", "UInt8", "END_*: 1 idle, 2 active, 3 end, 4 forced, 5 lack of resources"),
    Column("flags", "UTINYINT", "UInt8", "FLOW_*"),
    Column("named", "VARCHAR", "LowCardinality(String)", "what `name` is: dns, tls, or empty"),
    Column("name", "VARCHAR", "String", "the name asked for"),
    Column("dns_type", "USMALLINT", "UInt16", "of the question"),
    Column("dns_code", "UTINYINT", "UInt8", "of the answer; 255: not seen"),
)

METERS: tuple[Column, ...] = (
    Column("node", "VARCHAR", "LowCardinality(String)", "the broker"),
    Column("at_ns", "BIGINT", "Int64", "end of the time that is counted, ns since 1970"),
    Column("for_ns", "BIGINT", "Int64", "how long that was"),
    Column("kind", "VARCHAR", "LowCardinality(String)", "input, tool or store"),
    Column("name", "VARCHAR", "LowCardinality(String)", "its name"),
    Column("packets", "BIGINT", "Int64", "captured, delivered; of the store: records stored"),
    Column("bytes", "BIGINT", "Int64", "of them, on the wire; of the store: bytes that it holds now"),
    Column("dropped_packets", "BIGINT", "Int64", "for whatever reason"),
    Column("capacity_bytes", "BIGINT", "Int64", "of the store: what it may hold; else 0"),
)
