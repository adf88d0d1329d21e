"""What the model really sees: the first rows of a job, token by token, for the monitor (trainer -> status).

Writes   status/first_batch.json: first_batch.v1; it holds text of the rows, as the page that shows it does
Units    lines count from 1, lengths in tokens
"""

from collections.abc import Sequence
from typing import Any  # JSON documents

from core.chat_templates import ChatEncoder
from core.paths import Workspace
from core.status import iso_now, write_status
from trainer.packing import Row
from trainer.state import Records

ROWS_SHOWN = 4
TOKENS_SHOWN = 512


def write_first_batch(
    workspace: Workspace, encoder: ChatEncoder, about: dict[str, Any], rows: Sequence[Row], records: Records
) -> None:
    """Show the first rows of an optimizer step.

    Args:
        about: what else belongs into the document: job_id, file, max_length.

    Raises:
        StorageError: the disk refuses.
    """
    shown = [
        _shown(encoder, row, int(record["row"]) + 1, about["max_length"])
        for row, record in zip(rows[:ROWS_SHOWN], records, strict=False)
    ]
    document = {"schema": "first_batch.v1", **about, "at": iso_now(), "rows_in_step": len(rows), "rows": shown}
    write_status(workspace.status_file("first_batch.json"), document)


def _shown(encoder: ChatEncoder, row: Row, line: int, max_length: int) -> dict[str, Any]:
    ids = row.ids[:TOKENS_SHOWN].tolist()
    return {
        "line": line,
        "length": len(row.ids),
        "trained": int(row.mask[1:].sum()),
        "cut_at_max_length": len(row.ids) >= max_length,
        "tokens": [encoder.decode([token], False) for token in ids],
        "mask": row.mask[:TOKENS_SHOWN].tolist(),
    }
