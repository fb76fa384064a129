"""Who may ask for what: closed unless opened.

Each guard is a middleware that sees every request, so that a new route is as safe as the old ones:

    Host     is one of ours: a name that an attacker's DNS points here (rebinding) is not
    token    is known, where one is set; a route is open only if it is marked `public`
    Origin   of whatever changes something is this very site, and it carries the page's CSRF token

The token is asked for by HTTP's own means (Basic, any user name; or Bearer), which browsers, curl and Prometheus know.
A script that wants to change something asks `/api/csrf` first, and sends what a page would send.
"""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
import secrets
import socket
from collections.abc import Iterable
from dataclasses import dataclass

import psutil
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from core.errors import UserError

TOKEN_VARIABLE = "PYRAMID_STYLE_TOKEN"
CSRF_HEADER = "X-CSRF-Token"
SESSION_COOKIE = "lab-session"

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_WILDCARDS = frozenset({"0.0.0.0", "::", ""})
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)(?::\d{1,5})?", re.ASCII)
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_YEAR_SECONDS = 365 * 24 * 3600
_STALE = "The page is too old: reload it and try again."

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Sent with every response."""


@dataclass(frozen=True)
class Access:
    """Who may talk to the lab.

    Attributes:
        hosts: Names by which it may be addressed, lower case, IPv6 in brackets, without ports.
        token: What everyone must know; none: nobody needs one.
        secret: Signs CSRF tokens; the same after a restart, so that open pages go on working.
    """

    hosts: frozenset[str]
    token: str | None
    secret: bytes

    def knows_host(self, header: str) -> bool:
        """Whether a `Host` header names this lab."""
        match = _HOST.fullmatch(header.lower())
        return match is not None and match["name"] in self.hosts

    def admits(self, authorization: str) -> bool:
        """Whether an `Authorization` header holds the token; takes the same time for every wrong one."""
        if self.token is None:
            return True
        given = _token_in(authorization)
        return hmac.compare_digest(_digest(given), _digest(self.token))

    def csrf_token(self, session: str) -> str:
        """The token that the pages of a session send with what they change."""
        return hmac.new(self.secret, session.encode(), hashlib.sha256).hexdigest()


ACCESS = web.AppKey("access", Access)


def check_address(host: str, token: str | None) -> None:
    """Refuses to let strangers in.

    Raises:
        UserError: The address can be reached from other machines, and there is no token.
    """
    if token is not None and not token.strip():
        raise UserError("the token is empty", f"Give --token or {TOKEN_VARIABLE} a long random value")
    if token is None and not is_loopback(host):
        raise UserError(
            f"other machines could reach {host or 'every address'}, and there is no token to keep strangers out",
            f"Give one by --token or {TOKEN_VARIABLE}, or leave --host at 127.0.0.1",
        )


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def names_of(host: str, more: Iterable[str] = ()) -> frozenset[str]:
    """The names by which a lab that listens on `host` may be addressed."""
    names = set(_LOOPBACK) | {name.lower() for name in more}
    names |= _names_of_this_machine() if host in _WILDCARDS else {_in_url(host.lower())}
    return frozenset(names)


def _names_of_this_machine() -> set[str]:
    addresses = [address for found in psutil.net_if_addrs().values() for address in found]
    families = (socket.AF_INET, socket.AF_INET6)
    numbers = {_in_url(address.address.partition("%")[0]) for address in addresses if address.family in families}
    return numbers | {socket.gethostname().lower()}


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _token_in(authorization: str) -> str:
    scheme, _, value = authorization.partition(" ")
    match scheme.lower():
        case "bearer":
            return value.strip()
        case "basic":
            try:
                return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return ""
        case _:
            return ""


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="replace")).digest()


# ── Guards ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def public(handler: Handler) -> Handler:
    """Marks a route that needs no token."""
    handler.public = True  # type: ignore[attr-defined]
    return handler


def form(handler: Handler) -> Handler:
    """Marks a route that a page without scripts sends a form to: its token is in the form (see `check_form`)."""
    handler.form = True  # type: ignore[attr-defined]
    return handler


def check_form(request: web.Request, token: str) -> None:
    """Refuses a form without the token of its page; every handler that is marked as `form` calls it.

    Raises:
        web.HTTPForbidden: It is another one.
    """
    if not _knows_token(request, token):
        raise web.HTTPForbidden(text=_STALE)


@web.middleware
async def host_guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses requests that were meant for another name, as those of a rebound DNS name are."""
    hosts = request.headers.getall(hdrs.HOST, [])
    if len(hosts) != 1 or not request.app[ACCESS].knows_host(hosts[0]):
        raise web.HTTPMisdirectedRequest(text="This is not a name of this lab; see hosts in its configuration.")
    return await handler(request)


@web.middleware
async def token_guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses requests without the token, except to routes that are marked as public."""
    is_public = getattr(request.match_info.handler, "public", False)
    if not is_public and not request.app[ACCESS].admits(request.headers.get(hdrs.AUTHORIZATION, "")):
        raise web.HTTPUnauthorized(
            text="This lab needs its token: give it as the password, with any user name.",
            headers={hdrs.WWW_AUTHENTICATE: 'Basic realm="Pyramid Style", charset="UTF-8"'},
        )
    return await handler(request)


@web.middleware
async def origin_guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses changes that another site's page asks for in a visitor's name."""
    if request.method not in _SAFE_METHODS:
        if not _is_same_origin(request):
            raise web.HTTPForbidden(text="This request comes from another site.")
        in_form = getattr(request.match_info.handler, "form", False)
        if not in_form and not _knows_token(request, request.headers.get(CSRF_HEADER, "")):
            raise web.HTTPForbidden(text=_STALE)
    return await handler(request)


def _is_same_origin(request: web.Request) -> bool:
    origins = request.headers.getall(hdrs.ORIGIN, [])
    fetched_from = request.headers.get("Sec-Fetch-Site", "same-origin")
    ours = {f"{scheme}://{request.headers[hdrs.HOST].lower()}" for scheme in ("http", "https")}
    return len(origins) == 1 and origins[0].lower() in ours and fetched_from == "same-origin"


def _knows_token(request: web.Request, given: str) -> bool:
    session = request.cookies.get(SESSION_COOKIE, "")
    expected = request.app[ACCESS].csrf_token(session)
    return bool(session) and hmac.compare_digest(_digest(given), _digest(expected))


async def send_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Adds `HEADERS` to a response that is about to be sent (a signal of the application)."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    lasting = "no-cache" if request.path.startswith("/static/") else "no-store"  # the former asks whether it changed
    response.headers.setdefault(hdrs.CACHE_CONTROL, lasting)


def session_of(request: web.Request) -> str:
    """The visitor's session; a new one where there is none yet (then `keep_session` has to send it)."""
    return request.cookies.get(SESSION_COOKIE) or secrets.token_urlsafe(24)


def keep_session(response: web.Response, session: str) -> web.Response:
    """Lets the browser keep the session."""
    response.set_cookie(SESSION_COOKIE, session, max_age=_YEAR_SECONDS, httponly=True, samesite="Strict", path="/")
    return response


GUARDS: tuple[Middleware, ...] = (host_guard, token_guard, origin_guard)
"""From the outermost."""
