"""What the operator decides: a token from the environment or a file, and the rest from the data directory's `bot.toml`.

`deploy/bot.toml` shows every key of that file with its default. A key that nobody knows, or a value out of range, is an
error: a slip must not open a bot that was meant to be closed.
"""

import hashlib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from core import config
from core.errors import SettingsError
from core.studio import StudioSettings
from ui.bot.limits import CLOUD, SELF_HOSTED, FileLimits, Pace

_TOKEN = re.compile(r"[0-9]{5,}:[A-Za-z0-9_-]{30,}")
_GET_ONE = "Write to @BotFather in Telegram, send /newbot, and put the token it gives you into TELEGRAM_BOT_TOKEN"
CONFIG_NAME = "bot.toml"


class TokenError(SettingsError):
    """No token, or none that Telegram could have given."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Webhook(_Frozen):
    """Where Telegram brings updates, instead of our asking for them."""

    url: str
    """What Telegram calls; https."""
    listen: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8443

    @model_validator(mode="after")
    def _https(self) -> Self:
        if not self.url.startswith("https://"):
            raise ValueError("the webhook's url must begin with https://")
        return self

    @property
    def path(self) -> str:
        """The path of the url, without its leading slash."""
        return urlsplit(self.url).path.lstrip("/")


class Rhythm(_Frozen):
    """Times in seconds; the defaults suit people, shorter ones suit tests."""

    album_quiet: float = 1.5
    """An album is complete when no part of it came for so long."""
    album_longest: float = 10.0
    """And so long after its first part in any case."""
    pairing: float = 300.0
    """Two pictures that come within this time belong together."""
    edit: float = 3.0
    """Between two edits of a status message."""
    preview: float = 10.0
    """Between two previews in it."""
    group_factor: float = 4.0
    """Both are so many times longer in groups, where everybody shares 20 messages a minute."""
    retry: float = 1.0
    """Before the second attempt to reach Telegram; each further pause is twice as long, up to half a minute."""
    shutdown: float = 4.0
    """How long closing waits for what is on its way to Telegram."""


class BotSettings(_Frozen):
    """Everything about the bot that isn't a person's choice."""

    token: SecretStr
    directory: Path
    """Where painted styles are kept, so that each is painted once."""
    api_url: str | None = None
    """A self-hosted Bot API server; none: Telegram's own."""
    file_limits: FileLimits | None = None
    """None: those of Telegram's own server, or of a self-hosted one."""
    access: Literal["open", "allow-list"] = "open"
    allowed: frozenset[int] = frozenset()
    admins: frozenset[int] = frozenset()
    pending_per_user: Annotated[int, Field(ge=1)] = 4
    jobs_per_day: Annotated[int, Field(ge=1)] = 40
    highest_level: Annotated[int, Field(ge=0, le=config.MAX_LEVEL)] = 4
    highest_level_of_strangers: Annotated[int, Field(ge=0, le=config.MAX_LEVEL)] = 2
    keep_hours: Annotated[float, Field(gt=0)] = 72.0
    styles: Path | None = None
    painted_styles: bool = True
    changes: dict[str, Any] = {}
    webhook: Webhook | None = None
    rhythm: Rhythm = Rhythm()
    pace: Pace = Pace()

    @property
    def limits(self) -> FileLimits:
        """What the Bot API server takes."""
        return self.file_limits or (SELF_HOSTED if self.api_url else CLOUD)

    @property
    def keep_seconds(self) -> float:
        """How long pictures and results are kept."""
        return self.keep_hours * 3600

    @property
    def webhook_secret(self) -> str:
        """What Telegram has to show at our webhook: follows from the token, so that nobody has to think of one."""
        return hashlib.sha256(b"webhook " + self.token.get_secret_value().encode()).hexdigest()

    @property
    def studio(self) -> StudioSettings:
        """Settings of a studio that serves the bot: pictures that led to nothing are forgotten in time as well."""
        return StudioSettings(keep_unused_seconds=min(self.keep_seconds, 24 * 3600.0))


def load(data: Path, environment: Mapping[str, str] = os.environ, **changes: Any) -> BotSettings:
    """Reads the operator's settings.

    Args:
        data: The data directory; its `bot.toml` is read where there is one.
        environment: TELEGRAM_BOT_TOKEN, or TELEGRAM_BOT_TOKEN_FILE with the path of a file that holds it;
            TELEGRAM_API_URL for a self-hosted Bot API server.
        changes: Laid over what is read.

    Raises:
        TokenError: No token, or a malformed one.
        SettingsError: A file that can't be read, a key that nobody knows, a value that isn't allowed.
    """
    path = data / CONFIG_NAME
    found = _read(path) | {"token": _token(environment), "directory": data / "bot"}
    if "styles" in found:
        found["styles"] = path.parent / str(found["styles"])
    if url := environment.get("TELEGRAM_API_URL", "").strip():
        found["api_url"] = _checked_url(url)
    try:
        settings = BotSettings.model_validate(found | changes)
    except ValidationError as error:
        raise _explained(error, path) from None
    config.load(changes=settings.changes)  # complains of what core doesn't know
    return settings


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path} can't be read: {error}") from None


def _token(environment: Mapping[str, str]) -> SecretStr:
    token = environment.get("TELEGRAM_BOT_TOKEN", "").strip() or _token_in_file(environment)
    if not token:
        raise TokenError("there is no bot token", _GET_ONE)
    if not _TOKEN.fullmatch(token):  # and it isn't shown: it may be a real one with a slip
        raise TokenError(
            "the bot token isn't one: it has the form 123456789:AAE…, with 35 signs after the colon", _GET_ONE
        )
    return SecretStr(token)


def _token_in_file(environment: Mapping[str, str]) -> str:
    path = environment.get("TELEGRAM_BOT_TOKEN_FILE", "").strip()
    try:
        return Path(path).read_text(encoding="utf-8").strip() if path else ""
    except (OSError, UnicodeDecodeError) as error:
        raise TokenError(f"the token file {path} can't be read: {error}", _GET_ONE) from None


def _checked_url(url: str) -> str:
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        raise SettingsError(f"TELEGRAM_API_URL is '{url}'", "It has the form http://127.0.0.1:8081")
    return url.rstrip("/")


def _explained(error: ValidationError, path: Path) -> SettingsError:
    first = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(str(part) for part in first["loc"]) or "settings"
    if first["type"] == "extra_forbidden":
        return SettingsError(f"{path} has a key that nobody knows: '{key}'")
    return SettingsError(f"'{key}' in {path}: {first['msg'].removeprefix('Value error, ')}")
