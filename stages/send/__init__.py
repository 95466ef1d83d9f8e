"""Hands every frame over: to the wire or to a file."""
