"""Every use case can be imported first: no module needs another one to have been imported before it."""

from __future__ import annotations

import subprocess
import sys

_EACH = """
import importlib, pkgutil, sys
import strongroom.backups
names = [one.name for one in pkgutil.iter_modules(strongroom.backups.__path__, "strongroom.backups.")]
for name in names:
    for loaded in [one for one in sys.modules if one.partition(".")[0] == "strongroom"]:
        del sys.modules[loaded]
    importlib.import_module(name)
print(len(names))
"""


def test_the_use_cases_are_imported_in_any_order() -> None:
    """Each alone, in a process of its own that has forgotten all the others."""
    done = subprocess.run([sys.executable, "-c", _EACH], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 20
