"""A token that no log ever shows.

The HTTP client logs whole URLs, and the bot's token is part of each; exceptions quote it too. So the client is made
quiet, and every record is cleaned before any handler, present or future, sees it.
"""

import contextlib
import logging
from collections.abc import Iterator
from urllib.parse import quote

_FORMATTER = logging.Formatter()
_TALKATIVE = ("httpx", "httpcore", "telegram.request", "telegram.Bot", "telegram.ext.ExtBot")


class TokenFilter(logging.Filter):
    """Replaces secrets in a record: in its message, its traceback and its stack.

    Args:
        secrets: What must not be seen. Of a token, the part after the colon is a secret by itself.
    """

    def __init__(self, *secrets: str) -> None:
        super().__init__()
        parts = {part for secret in secrets for part in (secret, secret.partition(":")[2]) if part}
        encoded = {quote(part, safe="") for part in parts}
        self._secrets = sorted(parts | encoded, key=len, reverse=True)

    def clean(self, text: str) -> str:
        """The text without the secrets."""
        for secret in self._secrets:
            text = text.replace(secret, "<token>")
        return text

    def filter(self, record: logging.LogRecord) -> bool:
        """Cleans a record in place; lets every record pass."""
        record.msg, record.args = self.clean(_message(record)), None
        if record.exc_info and record.exc_info[0]:
            # As text: a handler that formats the exception itself would show it as it is.
            record.exc_text = _FORMATTER.formatException(record.exc_info)
            record.exc_info = None
        if record.exc_text:
            record.exc_text = self.clean(record.exc_text)
        if record.stack_info:
            record.stack_info = self.clean(record.stack_info)
        return True


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # a format that doesn't fit its arguments; logging must not break what it logs
        return f"{record.msg} {record.args}"


@contextlib.contextmanager
def redacted(*secrets: str) -> Iterator[TokenFilter]:
    """While this lasts, no log record of the process contains any of the secrets."""
    guard = TokenFilter(*secrets)
    make = logging.getLogRecordFactory()

    def make_clean(*args: object, **kwargs: object) -> logging.LogRecord:
        record = make(*args, **kwargs)
        guard.filter(record)
        return record

    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    logging.setLogRecordFactory(make_clean)
    for logger in loggers:
        logger.setLevel(max(logging.WARNING, logger.level))
    try:
        yield guard
    finally:
        logging.setLogRecordFactory(make)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
