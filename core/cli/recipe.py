"""The command `recipe`."""

import json
from pathlib import Path

from core import images


def show(picture: Path) -> int:
    """Prints how a picture was made, as JSON; returns the exit code.

    Raises:
        UserError: It is no picture, or has no recipe.
    """
    print(json.dumps(images.read_recipe(picture), indent=2))
    return 0
