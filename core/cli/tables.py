"""Tables on stdout."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_WITHOUT_WRAPPING = 10_000
"""Characters per line where nobody looks at them but another program."""


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table that fits the terminal, or one line per row where there is none."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WITHOUT_WRAPPING
    table = Table(box=box.SIMPLE if console.is_terminal else None, show_edge=False, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, overflow="fold", no_wrap=head == heads[0])
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
