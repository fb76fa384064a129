"""A case of a benchmark that is a process of its own: it holds some memory, or fails."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """How many bytes to hold, and whether to end with 3."""

    held: int
    fails: bool = False


def main(arguments: Sequence[str]) -> None:
    """Does so, and tells what was held and which other arguments there were."""
    case = Case(**json.loads(arguments[arguments.index("--one") + 1]))
    ballast = b"x" * case.held
    if case.fails:
        sys.exit(3)
    print(json.dumps({"held": len(ballast), "others": [word for word in arguments if word.startswith("--other")]}))


if __name__ == "__main__":
    main(sys.argv)
