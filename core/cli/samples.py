"""The command `samples`."""

import json

from core import samples
from core.cli.tables import print_table


def list_them(*, as_json: bool) -> int:
    """Prints the pictures that can be used without any file; returns the exit code."""
    found = (*samples.photographs(), *samples.styles())
    if as_json:
        print(json.dumps([{"name": f"sample:{each.name}", "kind": each.kind, "title": each.title} for each in found]))
    else:
        rows = [(f"sample:{each.name}", each.kind, each.description) for each in found]
        print_table(("sample", "kind", "description"), rows)
    return 0
