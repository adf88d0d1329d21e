"""The tokenizer and template of the run, as the gates and the background child use them (arrow: intake).

Reads    checkpoints/<run>/<HEAD>/, else model_path
Errors   EncoderMissingError, EncoderDamagedError, retryable: the root lacks something, and no file is refused for that
"""

from functools import lru_cache
from pathlib import Path

from core.chat_templates import ChatEncoder
from core.checkpoints import Catalogue
from core.errors import DropforgeError, ModelError, ResourceError
from core.paths import Workspace
from core.settings import Settings


class EncoderMissingError(ResourceError):
    """Neither a checkpoint nor the base model has a tokenizer yet."""

    code = 3020
    slug = "no_tokenizer"


class EncoderDamagedError(ResourceError):
    """The run's tokenizer is there and cannot be used, or the chain of checkpoints does not say which one it is."""

    code = 3022
    slug = "tokenizer_damaged"


def encoder_for(workspace: Workspace, settings: Settings) -> ChatEncoder:
    """The tokenizer and template of the run: HEAD's, else the base model's.

    Raises:
        EncoderMissingError: neither has one yet.
        EncoderDamagedError: it cannot be used, or the checkpoints cannot be read.
    """
    try:
        head = Catalogue(workspace, settings.run).head()
    except DropforgeError as error:
        message = f"the checkpoints cannot be read: {error.message}"
        raise EncoderDamagedError(message, where=error.where, fix=error.fix) from error
    base = workspace.resolve(settings.model_path)
    folder = head.folder if head is not None else base
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise EncoderMissingError(
            "there is no tokenizer yet", where=str(folder), fix="start the daemon: the trainer imports the base model"
        )
    try:
        return _encoder(folder, file.stat().st_mtime_ns)
    except ModelError as error:
        fix = error.fix or "put the model's own tokenizer files back"
        message = f"the tokenizer cannot be used: {error.message}"
        raise EncoderDamagedError(message, where=str(folder), fix=fix) from error


@lru_cache(maxsize=2)
def _encoder(folder: Path, _changed_ns: int) -> ChatEncoder:
    return ChatEncoder.from_folder(folder)
