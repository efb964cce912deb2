"""`scripts/torture`: tortures a real service and tells what came of it."""

from __future__ import annotations

import argparse
import secrets
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from support.postgres import programs
from torture.kit.houses import FORMS
from torture.kit.running import Outcome, torture


def main() -> int:
    """0: every invariant held; 1: one did not, and the folder with the logs is kept; 2: wrong use."""
    options = _options()
    forms = FORMS if options.form == "both" else (options.form,)
    if "shared" in forms and programs() is None:
        print("The form with PostgreSQL needs its server (Debian: postgresql-15), or use --form embedded.", file=sys.stderr)
        return 2
    seed = options.seed or secrets.token_hex(4)
    root = Path(options.folder) if options.folder else Path(tempfile.mkdtemp(prefix="strongroom-torture-"))
    print(f"seed {seed}: {' and '.join(forms)}, {options.minutes:g} minutes of trouble; logs in {root}", flush=True)
    signal.signal(signal.SIGTERM, _end)
    outcomes = [torture(form, options.minutes * 60 / len(forms), seed, root / form, loud=True) for form in forms]
    for outcome in outcomes:
        print(_told(outcome))
    if any(outcome.broken for outcome in outcomes):
        print(f"The logs and the whole story are kept in {root}")
        print(f"Again: scripts/torture --seed {seed} --form {options.form} --minutes {options.minutes:g}")
        return 1
    if not options.keep:
        shutil.rmtree(root)
    return 0


def _end(number: int, _frame: object) -> None:
    """SIGTERM unwinds like Ctrl-C, so that every process that was started is ended."""
    sys.exit(128 + number)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/torture", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=2.0, help="of trouble, shared by the forms (2); rests and proofs come on top"
    )
    parser.add_argument(
        "--form", choices=("both", *FORMS), default="both", help="embedded: SQLite and a directory; shared: PostgreSQL and S3"
    )
    parser.add_argument("--seed", help="repeats a run's choices, as far as real time does")
    parser.add_argument("--folder", help="a new folder for logs and data (a temporary one)")
    parser.add_argument("--keep", action="store_true", help="keep the folder also where nothing was broken")
    return parser.parse_args()


def _told(outcome: Outcome) -> str:
    words = [f"\n{outcome.form}, seed {outcome.seed}", outcome.table]
    if outcome.broken:
        words += ["", "The last events:", outcome.last, "", f"{len(outcome.broken)} broken:"]
        words += [f"  {one}" for one in outcome.broken]
    else:
        words += ["", "Every invariant held."]
    return "\n".join(words)


if __name__ == "__main__":
    sys.exit(main())
