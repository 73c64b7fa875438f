"""Those who run models, behind the one port of `provider`."""
