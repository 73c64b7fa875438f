"""What happens around a handler, one module each; `mesh.rpc.pipeline` holds the order."""
