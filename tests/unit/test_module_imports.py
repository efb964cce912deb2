"""Any module of the use cases can be imported first: none needs another to have been imported before it."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

from strongroom import backups

_EACH = """
import importlib, sys
for name in sys.argv[1:]:
    for known in [one for one in sys.modules if one.split(".")[0] == "strongroom"]:
        del sys.modules[known]
    try:
        importlib.import_module(name)
    except ImportError as error:
        sys.exit(f"{name}: {error}")
"""


def test_every_module_of_the_use_cases_can_be_imported_first() -> None:
    """In a process of its own, with nothing of ours imported before each."""
    names = [one.name for one in pkgutil.iter_modules(backups.__path__, "strongroom.backups.")]
    assert len(names) > 20
    done = subprocess.run([sys.executable, "-c", _EACH, *names], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
