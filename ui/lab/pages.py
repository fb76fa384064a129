"""What all pages have: the masthead, the queue, the network, and the session that their buttons need."""

from typing import Any

import aiohttp_jinja2
from aiohttp import web

from core import __version__
from ui.lab import security
from ui.lab.board import BOARD
from ui.lab.networks import NETWORKS

Context = dict[str, Any]


async def page(request: web.Request, template: str, context: Context, *, status: int = 200) -> web.Response:
    """A page with what all pages have; it brings the session that its buttons need."""
    session = security.session_of(request)
    board = request.app[BOARD]
    shared: Context = {
        "version": __version__,
        "csrf_token": request.app[security.ACCESS].csrf_token(session),
        "tables": [table for table in board.tables.values() if not table.own],
        "network": request.app[NETWORKS].view,
        "queue": board.queue(),
        "path": request.path,
    }
    response = aiohttp_jinja2.render_template(template, request, shared | context, status=status)
    return security.keep_session(response, session)
