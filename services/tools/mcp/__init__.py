"""Servers that speak the Model Context Protocol: their tools, and the connections to them."""
