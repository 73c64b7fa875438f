"""Implementations of `services.vectors.index.PassageIndex`."""
