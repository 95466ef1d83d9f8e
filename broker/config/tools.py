"""The keys of tools without a tunnel: capture files, an interface, a stream."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import Field

from broker.config import scalars
from broker.config.parts import FILE, INTERFACE, TRUTH, Part, choice, defaults, kind, text, whole
from broker.config.shaping import ReceiverPart
from broker.core import model

KINDS = ("pcap", "pcapng", "interface", "stream")

_ROTATION, _TLS, _STREAM, _TOOL = map(defaults, (model.Rotation, model.Tls, model.Stream, model.Tool))


class FileTool(ReceiverPart):
    """A capture file of the frames themselves (nanoseconds, Ethernet), or several that follow one another."""

    kind: Annotated[Literal["pcap", "pcapng"], choice("pcap", "pcapng")]
    file: Annotated[str | None, FILE] = Field(None, description="the file to write; - is standard output")
    directory: Annotated[str | None, FILE] = Field(None, description="the directory in which to write TOOL.pcap, or files that are rotated")
    rotate_bytes: Annotated[int | None, whole(1 << 20, 1 << 40)] = Field(
        None, description="begin another file before this one becomes longer than so much"
    )
    rotate_s: Annotated[int | None, whole(1, 31_536_000)] = Field(
        None, description="begin another file at each multiple of so many seconds (wall clock, UTC)"
    )
    keep_files: Annotated[int | None, whole(1, 1_000_000)] = Field(
        None, description="remove the oldest when there are more, of each lane; all are kept by default"
    )
    compress: Annotated[Literal["none", "gzip"] | None, choice("none", "gzip")] = Field(
        None, description="compress files that are complete, beside the data path"
    )


class InterfaceTool(ReceiverPart):
    """A network interface out of which the frames themselves go, as they were captured."""

    kind: Annotated[Literal["interface"], kind("interface")]
    interface: Annotated[str, INTERFACE] = Field(description="the network interface to send on")
    qdisc_bypass: Annotated[bool, TRUTH] = Field(
        _TOOL["qdisc_bypass"], description="past the queueing discipline, straight to the driver: faster, and neither shaped nor waited for"
    )


class TlsPart(Part):
    """TLS 1.2 or newer; the other end's certificate is verified."""

    ca: Annotated[str, FILE] = Field(
        _TLS["ca"],
        description="trusted certificates (PEM), of the system by default; with listen: those that sign our readers' certificates",
    )
    cert: Annotated[str, FILE] = Field(_TLS["cert"], description="our certificate (PEM), and those between it and the root")
    key: Annotated[str, FILE] = Field(_TLS["key"], description="its private key (PEM); by default it stands in `cert`")
    server_name: Annotated[str, text(scalars.server_name, minLength=1)] = Field(
        _TLS["server_name"], description="dialling: the name that the receiver's certificate has; by default its address"
    )
    verify: Annotated[bool, TRUTH] = Field(_TLS["verify"], description="dialling: false takes any certificate, and anybody who has one")


class StreamTool(ReceiverPart):
    """A capture of the frames themselves over TCP: each connection is one file."""

    kind: Annotated[Literal["stream"], kind("stream")]
    connect: Annotated[str | None, text(scalars.endpoint)] = Field(None, description="address:port of the receiver that we dial")
    listen: Annotated[str | None, text(scalars.endpoint)] = Field(
        None, description="address:port at which readers find us; lane N listens at the port + N"
    )
    format: Annotated[Literal["pcap", "pcapng"], choice("pcap", "pcapng")] = Field(_TOOL["format"], description="what is sent")
    buffer_bytes: Annotated[int, whole(1 << 16, 1 << 28)] = Field(
        _STREAM["buffer_bytes"], description="what the kernel is asked to hold for a reader that is slow"
    )
    tls: TlsPart | None = Field(None, description="encrypt: {} is enough to dial; listening needs cert")


def tls(value: TlsPart, directory: str) -> model.Tls:
    files = {key: os.path.join(directory, file) if (file := getattr(value, key)) else "" for key in ("ca", "cert", "key")}
    return model.Tls(**files, server_name=value.server_name, verify=value.verify)
