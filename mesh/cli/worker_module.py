"""Finding the worker that a module defines."""

import importlib
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType

from mesh.cli.failures import CommandFailed, usage_error
from mesh.worker import Worker

_IDENTIFIER = r"[A-Za-z_]\w*"
_MODULE = re.compile(rf"({_IDENTIFIER}(?:\.{_IDENTIFIER})*)(?::({_IDENTIFIER}))?")


def find_worker(text: str) -> Worker:
    """The worker that `MODULE` or `MODULE:ATTRIBUTE` means, whose module is imported.

    The current folder is looked in first. CommandFailed where there is no such module or
    it can't be imported, and where it isn't clear which worker is meant.
    """
    match = _MODULE.fullmatch(text)
    if match is None or text.endswith(".py"):
        raise usage_error(
            f"{text!r} is no module", "Write MODULE or MODULE:ATTRIBUTE, as in shop.images:worker."
        )
    name, attribute = match.groups()
    module = _import(name)
    return _attribute(module, attribute) if attribute else _only_worker(module)


def _import(name: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise usage_error(
                f"there is no module {error.name}", f"The current folder is {folder}."
            ) from error
        raise _not_importable(name, error) from error
    except Exception as error:
        raise _not_importable(name, error) from error


def _not_importable(name: str, error: Exception) -> CommandFailed:
    """Says where in the module it was, since its author will want to know."""
    *_, last = traceback.extract_tb(error.__traceback__)
    return CommandFailed(
        f"module {name} can't be imported: {type(error).__name__}: {error}",
        notes=[f"{last.filename}:{last.lineno}: {last.line}"],
    )


def _attribute(module: ModuleType, attribute: str) -> Worker:
    found = getattr(module, attribute, None)
    if isinstance(found, Worker):
        return found
    known = ", ".join(_workers(module)) or "none"
    problem = "no worker" if hasattr(module, attribute) else "not there"
    raise usage_error(f"{module.__name__}:{attribute} is {problem}", f"Its workers: {known}.")


def _only_worker(module: ModuleType) -> Worker:
    found = _workers(module)
    if not found:
        raise usage_error(
            f"module {module.__name__} has no worker",
            'It needs one, as in worker = mesh.worker.Worker("default").',
        )
    if len(found) > 1:
        raise usage_error(
            f"module {module.__name__} has {len(found)} workers; name one of them",
            *(f"weft worker run {module.__name__}:{attribute}" for attribute in found),
        )
    return next(iter(found.values()))


def _workers(module: ModuleType) -> dict[str, Worker]:
    """The module's workers by attribute; one with two names counts once."""
    found: dict[str, Worker] = {}
    for attribute, value in vars(module).items():
        if isinstance(value, Worker) and not any(value is other for other in found.values()):
            found[attribute] = value
    return found
