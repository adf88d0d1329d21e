"""Logs of every process: JSON lines for machines, short lines on stderr for people (beside all arrows).

Writes   status/logs/<process>.jsonl, rotated at 10 MB, three old ones kept
Effects  a log that cannot be written never stops the work; rows, prompts and keys are never logged
"""

import datetime
import json
import logging
import logging.handlers
import sys

from core.errors import DropforgeError
from core.paths import Workspace

_ROTATE_BYTES = 10_000_000
_KEEP = 3
_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "taskName"}


class JsonLines(logging.Formatter):
    """One record, one line of JSON: control characters are escaped, so a name with a newline stays one line."""

    def format(self, record: logging.LogRecord) -> str:
        doc: dict[str, object] = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(),
            "level": record.levelname.lower(),
            "process": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        doc |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            doc["exception"] = self.formatException(record.exc_info)
            error = record.exc_info[1]
            if isinstance(error, DropforgeError):
                doc["error"] = error.as_dict()
        return json.dumps(doc, default=str)


class PlainLines(logging.Formatter):
    """One record, one short line for a person."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if not text.isprintable():
            text = text.encode("unicode_escape").decode("ascii")
        line = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower():7} {text}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def setup_logging(workspace: Workspace, process: str, *, level: int = logging.INFO) -> None:
    """Send this process's records to stderr and, where the disk lets it, to status/logs/<process>.jsonl."""
    logging.raiseExceptions = False  # a full disk must not stop training
    to_stderr = logging.StreamHandler(sys.stderr)
    to_stderr.setFormatter(PlainLines())
    logging.basicConfig(level=level, handlers=[to_stderr], force=True)
    try:
        workspace.logs_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logging.getLogger(__name__).error("no log file: %s: %s", workspace.logs_dir, error.strerror)
        return
    to_file = logging.handlers.RotatingFileHandler(
        workspace.logs_dir / f"{process}.jsonl", maxBytes=_ROTATE_BYTES, backupCount=_KEEP, delay=True
    )
    to_file.setFormatter(JsonLines())
    logging.getLogger().addHandler(to_file)
