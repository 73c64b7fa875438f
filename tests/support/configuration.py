"""A configuration folder of this run's own, so that no key lands in a developer's."""

import atexit
import os
import shutil
import tempfile


def use_own_configuration() -> None:
    """For this process and those that it starts, until it ends."""
    folder = tempfile.mkdtemp(prefix="weft-config-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["XDG_CONFIG_HOME"] = folder
