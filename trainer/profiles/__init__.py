"""Prompt profiles (beside queue -> trainer): none is built yet, and training with another template would be a lie.

Errors   ConfigError for any profile by name; the trainer is then `blocked`
"""

from core.errors import ConfigError
from core.settings import Settings

KNOWN: frozenset[str] = frozenset()


def require_known(settings: Settings) -> None:
    """Refuse settings that ask for something not built. Raises ConfigError."""
    name = settings.profile.name
    if name is not None and name not in KNOWN:
        raise ConfigError(
            f"profile {name!r} is not built yet; training without it would use another template",
            where="profile.name",
            fix="set profile.name to null to train with the model's own chat template",
        )
    if settings.auto_generate.enabled:
        raise ConfigError(
            "auto-generation is not built yet", where="auto_generate.enabled", fix="set auto_generate.enabled to false"
        )
