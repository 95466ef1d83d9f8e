"""Flow records on their way to collectors: IPFIX, NetFlow and JSON lines, over UDP, TCP, TLS or into a file."""
