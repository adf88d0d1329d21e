"""The call into the gates, made in the worker process (arrow: intake -> gates).

Effects  fsyncs what was dropped and what the gates wrote: its producer seldom does, and an accepted file must survive a
         power cut; done here because it may take seconds
Errors   as the gates raise them; a disk that fails under a file comes back as OSError with its number
"""

from pathlib import Path

from core.atomic import fsync_tree
from core.settings import Settings
from core.validation.gate import GateContext, GateOutcome, run_gates


def check_claim(claim_folder: Path, root: Path, job_id: str, lane: str, settings: Settings) -> GateOutcome:
    """Run both gates over a claim folder."""
    try:
        outcome = run_gates(claim_folder, GateContext(root=root, job_id=job_id, lane=lane, settings=settings))
        fsync_tree(claim_folder)
        return outcome
    except Exception as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and not isinstance(error, OSError):
            # A cause does not survive the way between processes, and its number decides what happens to the file.
            raise OSError(cause.errno, str(error)) from error
        raise
