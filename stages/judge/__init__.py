"""The judge: a process that says what the filter would do with a packet, and why. It stands beside the path and has no ring."""
