"""Keys, seals and credentials: what everything else here relies on to keep a secret."""
