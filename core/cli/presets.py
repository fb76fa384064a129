"""The command `presets`."""

import json

import tomli_w

from core import config
from core.cli.tables import print_table


def list_them(*, as_json: bool) -> int:
    """Prints every preset with what it says of itself; returns the exit code."""
    found = config.presets()
    if as_json:
        plain = [{"name": each.name, "title": each.title, "description": each.description} for each in found]
        print(json.dumps(plain, indent=2))
    else:
        print_table(("preset", "title", "description"), [(each.name, each.title, each.description) for each in found])
    return 0


def show(preset: str, *, as_json: bool) -> int:
    """Prints all settings of a preset, as TOML that `--preset` reads, or as JSON; returns the exit code.

    Raises:
        SettingsError: There is no such preset.
    """
    settings = config.load(preset).model_dump(mode="json", exclude_none=True)  # TOML has no null
    print(json.dumps(settings, indent=2) if as_json else tomli_w.dumps(settings).rstrip())
    return 0
