"""The runtime that all of Weft's services share; it knows none of them."""
