"""Writes the outer header of every frame."""
