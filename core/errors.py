"""The one error family: every arrow from inbox to inference server raises these and nothing else on purpose.

An error says what happened (`message`), where (`where`: file, line, field) and the one command or edit that mends it
(`fix`).
`code` and `retryable` stand on the class; they are mapped to exit codes and HTTP statuses here and nowhere else.
"""


class DropforgeError(Exception):
    """Something Dropforge knows how to explain."""

    code = 5000
    slug = "error"
    retryable = False
    exit_code = 1
    http_status = 500

    def __init__(self, message: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text} (fix: {self.fix})" if self.fix else text

    def as_dict(self) -> dict[str, object]:
        """The same facts for `--json` and for logs."""
        return {
            "code": self.code,
            "error": self.slug,
            "message": self.message,
            "where": self.where or None,
            "fix": self.fix or None,
            "retryable": self.retryable,
        }


class DataError(DropforgeError):
    """A file, a row or a sidecar is not what it must be."""

    code = 1000
    slug = "bad_data"
    exit_code = 5
    http_status = 400


class JsonError(DataError):
    """A JSON document cannot be read strictly."""

    code = 1001
    slug = "bad_json"


class UsageError(DropforgeError):
    """The command or the request was asked wrongly."""

    code = 1100
    slug = "usage"
    exit_code = 2
    http_status = 400


class ConfigError(UsageError):
    """The configuration is refused."""

    code = 1101
    slug = "config"


class NotFoundError(UsageError):
    """The named job, checkpoint, suite or file does not exist."""

    code = 1102
    slug = "not_found"
    http_status = 404


class ModelError(DropforgeError):
    """A model, a tokenizer or a checkpoint cannot be used."""

    code = 2000
    slug = "model"


class CheckpointError(ModelError):
    """A checkpoint is missing, damaged or does not fit."""

    code = 2001
    slug = "checkpoint"


class NonFiniteLossError(ModelError):
    """The loss or a gradient is NaN or infinite."""

    code = 2002
    slug = "non_finite_loss"


class AnswerNoError(ModelError):
    """The question was understood and the answer is no."""

    code = 2100
    slug = "answer_no"
    exit_code = 5
    http_status = 409


class GateFailedError(AnswerNoError):
    """A deployment did not pass its gate."""

    code = 2101
    slug = "gate_failed"


class ResourceError(DropforgeError):
    """The machine lacks something."""

    code = 3000
    slug = "resource"
    http_status = 503
    retryable = True


class StorageError(ResourceError):
    """The disk or a folder refuses."""

    code = 3001
    slug = "storage"
    exit_code = 4


class AlreadyRunningError(ResourceError):
    """Another process of the same kind holds this root."""

    code = 3002
    slug = "already_running"
    exit_code = 3
    retryable = False


class MissingToolError(ResourceError):
    """A program or a package that is needed is not installed."""

    code = 3003
    slug = "missing_tool"
    retryable = False


class QueueError(ResourceError):
    """A job folder could not be moved."""

    code = 3004
    slug = "queue"
    exit_code = 4


class OverloadedError(ResourceError):
    """Too much is asked at once."""

    code = 3005
    slug = "overloaded"


class DeadlineError(DropforgeError):
    """Something took longer than it may."""

    code = 4000
    slug = "timeout"
    http_status = 504
    retryable = True


class InternalError(DropforgeError):
    """A promise of the code itself is broken."""

    code = 5001
    slug = "internal"
