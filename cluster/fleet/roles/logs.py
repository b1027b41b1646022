"""How a role's log is written: lines for people, or a JSON object a line for programs.

What is known about an event beside its words travels as `extra={"fields": {...}}`, and is written as
`name=value` behind the message, or as keys of the object. Prompts and answers are never logged.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from cluster.config import LogFormat

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def formatter(kind: LogFormat, role: str) -> logging.Formatter:
    """role: name of the process, a key of every JSON object."""
    return JsonFormatter(role) if kind is LogFormat.json else TextFormatter(TEXT)


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    return fields


class TextFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        return " ".join([line, *(f"{name}={value}" for name, value in _fields(record).items())])


class JsonFormatter(logging.Formatter):
    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        values = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "role": self._role,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            values["exception"] = self.formatException(record.exc_info)
        return json.dumps(values, ensure_ascii=False, default=str)
