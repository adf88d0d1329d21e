"""`python -m core.daemon.gate_worker`: run the gates over one claim after the other (arrow: intake -> gates).

Reads    requests, one JSON line each, from stdin          Writes  one JSON line each to stdout; the rest to stderr
Errors   sent as answers: no file ends this process on purpose
Effects  fsyncs what was dropped and what the gates wrote: its producer seldom does, and an accepted file must survive a
         power cut; done here because it may take seconds
"""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any  # requests are JSON

from core.atomic import fsync_tree
from core.daemon.background_worker import READY_LINE, error_document
from core.daemon.pid_manager import die_with_parent
from core.errors import DropforgeError
from core.logs import setup_logging
from core.paths import Workspace
from core.settings import settings_from
from core.validation.gate import GateContext, run_gates

logger = logging.getLogger(__name__)


def main() -> int:
    """Answer requests until stdin ends."""
    die_with_parent()
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # a stray print must not look like an answer
    answers.write(READY_LINE)
    named = False
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if not named:
            setup_logging(Workspace(Path(request["root"])), "gates")
            named = True
        answers.write(json.dumps(answer(request), ensure_ascii=True).encode() + b"\n")
    return 0


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Run both gates over one claim. Returns {"verdict", "lane"} or what error_document makes of an error."""
    folder = Path(request["folder"])
    try:
        settings = settings_from(request["settings"], "config.json")
        context = GateContext(
            root=Path(request["root"]), job_id=request["job_id"], lane=request["lane"], settings=settings
        )
        outcome = run_gates(folder, context)
        fsync_tree(folder)
    except (DropforgeError, OSError) as error:
        return error_document(error)
    except Exception as error:  # the loop's edge: whatever a file does to the gates, the next one has its turn
        logger.exception("the gates raised on %s", folder.name)
        return error_document(error)
    return {"verdict": outcome.verdict, "lane": outcome.lane}


if __name__ == "__main__":
    sys.exit(main())
