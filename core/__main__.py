"""The command line, as `python -m core` and installed as `pyramid-style`: arguments in, exit code out.

0 is success, 2 a mistake that the user can mend (one line on stderr says how), 130 an interruption. Anything else is a
bug and keeps its traceback.
"""

import os
import sys
from collections.abc import Sequence

from core import process
from core.cli.arguments import parse
from core.cli.interruption import INTERRUPTED
from core.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
        argv: The arguments after the program's name; those of this process where there are none.

    Raises:
        SystemExit: After `--help` and `--version`.
    """
    process.prepare()
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader has seen enough (`| head`); what is left in the buffer must go nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(argv: Sequence[str]) -> int:
    try:
        arguments = parse(argv)
        code: int = arguments.run(arguments)
        return code
    except UserError as error:
        return _complain(str(error), 2)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)


def _complain(message: str, code: int) -> int:
    print("pyramid-style:", " ".join(message.splitlines()), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
