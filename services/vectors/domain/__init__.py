"""What collections decide without I/O: filters, metadata, vectors, how ranks are merged."""
