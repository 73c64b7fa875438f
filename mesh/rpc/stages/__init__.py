"""What happens around a handler, one module each; `mesh.rpc.pipeline` goes through them."""
