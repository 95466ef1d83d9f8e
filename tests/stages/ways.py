"""Blocks put through encapsulate by a configuration as it is written, and what came of them."""
