"""Log lines as ``name=value`` pairs. Values of keys and passwords are never among them."""

from __future__ import annotations

import json
import logging
import re

_PLAIN = re.compile(r"[^\s\"=\\]+").fullmatch


def line(at: str, **fields: object) -> str:
    """``at=set key=user:1 ...``; what holds spaces or quotes is quoted as JSON."""
    parts = [f"at={at}"]
    for name, value in fields.items():
        text = str(value)
        parts.append(f"{name}={text if _PLAIN(text) else json.dumps(text)}")
    return " ".join(parts)


class Log:
    """A logger that may be absent, and that can say a thing once."""

    def __init__(self, logger: logging.Logger | None) -> None:
        self._logger = logger
        self._said: set[str] = set()

    def adopt(self, logger: logging.Logger | None) -> None:
        """Take the logger of somebody who shares what this logs for, if there was none."""
        if self._logger is None:
            self._logger = logger

    @property
    def debugging(self) -> bool:
        return self._logger is not None and self._logger.isEnabledFor(logging.DEBUG)

    def __call__(self, level: int, at: str, **fields: object) -> None:
        if self._logger is not None and self._logger.isEnabledFor(level):
            try:
                self._logger.log(level, "%s", line(at, **fields))
            except Exception:  # a filter of the user's, say: what is logged here must not fail for it
                logging.getLogger("mqkv").exception("the logger of a store failed")

    def debug(self, at: str, **fields: object) -> None:
        self(logging.DEBUG, at, **fields)

    def once(self, level: int, what: str, at: str, **fields: object) -> None:
        """Log, unless ``what`` was logged so before."""
        if what not in self._said:
            self._said.add(what)
            self(level, at, **fields)
