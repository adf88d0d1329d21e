"""In which languages the answers of a file are written (background child; check; gates with a limit).

Units    shares 0..1; languages as ISO 639 codes
Effects  loads py3langid's model (4.6 MB packed, about 100 MB in memory) at the first question, once for a process
"""

from collections import Counter
from collections.abc import Iterable
from functools import cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from core.validation.rows import TrainingRow

SAMPLED_ROWS = 512
_MIN_LETTERS = 40  # shorter texts are guessed wrong too often
_MAX_CHARS = 1_000
_MAX_ANSWERS = 10
_SURE = 0.8


@cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=_SURE)


def language_of(text: str) -> str | None:
    """The language of a text; None when it is too short, no prose, or not clear."""
    if sum(map(str.isalpha, text[:_MAX_CHARS])) < _MIN_LETTERS:
        return None
    language = str(_identifier().classify(text[:_MAX_CHARS])[0])
    return None if language in ("und", "zxx") else language


def answers_of(row: TrainingRow) -> str:
    """What a row teaches to say, as much of it as is looked at."""
    if "text" in row:
        return str(row["text"][:_MAX_CHARS])
    answers = [message["content"][:_MAX_CHARS] for message in row["messages"] if message["role"] == "assistant"]
    return " ".join(answers[:_MAX_ANSWERS])[:_MAX_CHARS]


def languages_of(answers: Iterable[str]) -> Counter[str]:
    """How many answers are in each language; those that cannot be told are left out."""
    found = (language_of(answer) for answer in answers)
    return Counter(language for language in found if language is not None)
