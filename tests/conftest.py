"""What holds for every test."""

import os
import tempfile

# Keys that hosts make, here or in processes, must not land in the developer's own folder.
_configuration = tempfile.TemporaryDirectory(prefix="weft-config-")
os.environ["XDG_CONFIG_HOME"] = _configuration.name
