"""The tools that Weft brings."""
