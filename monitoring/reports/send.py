"""Sends a report to where people are (beside all arrows).

Writes   HTTP: a JSON POST {title, text} to `report.webhook`; messages through apprise to `report.apprise`
Errors   MissingToolError when apprise URLs are set and the package is not installed; UnsentError, retryable, when a
         receiver does not take it. URLs hold keys: they are never logged or put into an error
"""

import importlib
from collections.abc import Sequence
from typing import Any  # apprise has no types

import requests

from core.errors import MissingToolError, ResourceError

_TIMEOUT_S = 15.0
# Discord takes 2,000 characters a message; apprise splits longer texts for services that it knows, webhooks get all.
_RETRIES = 3


class UnsentError(ResourceError):
    """A receiver did not take a report."""

    code = 3010
    slug = "report_unsent"


def send(title: str, text: str, *, webhook: str | None, apprise_urls: Sequence[str]) -> int:
    """Deliver to every receiver that is configured.

    Returns:
        How many receivers took it; 0 when none is configured.

    Raises:
        MissingToolError, UnsentError: see above; the other receivers have been tried all the same.
    """
    problems: list[str] = []
    taken = 0
    if webhook:
        problem = _post(webhook, title, text)
        problems += [problem] if problem else []
        taken += problem is None
    if apprise_urls:
        client = _apprise().Apprise()
        accepted = sum(bool(client.add(url)) for url in apprise_urls)
        if accepted < len(apprise_urls):
            problems.append(f"apprise does not know {len(apprise_urls) - accepted} of {len(apprise_urls)} URLs")
        if accepted and not client.notify(title=title, body=text):
            problems.append("apprise could not deliver to every URL")
        else:
            taken += accepted
    if problems:
        raise UnsentError("; ".join(problems), where="report.webhook, report.apprise", fix="look at those settings")
    return taken


def _post(url: str, title: str, text: str) -> str | None:
    """Post once, and again on trouble; None when it was taken. A report that arrives twice does no harm."""
    problem = ""
    for _attempt in range(_RETRIES):
        try:
            answer = requests.post(url, json={"title": title, "text": text}, timeout=_TIMEOUT_S, allow_redirects=False)
        except requests.RequestException as error:
            problem = f"the webhook cannot be reached ({type(error).__name__})"
            continue
        if 200 <= answer.status_code < 300:  # a redirect has not taken it either
            return None
        problem = f"the webhook answered {answer.status_code}"
        if answer.status_code < 500:
            break
    return problem


def _apprise() -> Any:  # no types
    try:
        return importlib.import_module("apprise")
    except ImportError as error:
        fix = "pip install 'dropforge[notify]'"
        raise MissingToolError(
            "apprise URLs are set, but apprise is not installed", where="report.apprise", fix=fix
        ) from error
