"""Weft's services, one folder each; `catalog` says how they stand together."""
