"""The log of a service: JSON on stderr."""

import json
import logging
import sys
from typing import Any

LOG = logging.getLogger("splitattn.serving")


def log_as_json() -> None:
    """Write the logs of this process as JSON to stderr.

    Of libraries other than uvicorn only warnings: some log the addresses of downloads, which may
    hold a signature.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in ("splitattn", "uvicorn"):
        logging.getLogger(name).setLevel(logging.INFO)


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "data", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)
