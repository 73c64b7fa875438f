"""Back ends of the object store."""
