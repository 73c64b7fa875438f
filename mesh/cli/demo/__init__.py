"""`weft demo`: the whole platform at work, killed in the middle, and what it proves."""

from mesh.cli.demo.tour import add_demo

__all__ = ["add_demo"]
