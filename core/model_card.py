"""The README.md of an exported checkpoint: what it is, what it saw, how it scored (beside the arrow: checkpoints).

Reads    the chain of manifests, evaluations/<id>/metrics.json          Writes  nothing: it returns the text
Format   Markdown with the Hub's YAML metadata; every string in it is quoted as JSON, which YAML reads
"""

import json
from collections.abc import Sequence
from typing import Any  # manifests and metrics are JSON documents

from core.paths import Workspace, display_name
from core.provenance import files_in
from core.status import read_status


def model_card(workspace: Workspace, chain: Sequence[dict[str, Any]], *, merged: bool) -> str:
    """The card of the last checkpoint of a chain (base first).

    Args:
        merged: the weights stand alone although the checkpoint is an adapter.
    """
    manifest = chain[-1]
    adapter = "adapter_config.json" in manifest["files"] and not merged
    metrics = read_status(workspace.evaluation_dir(manifest["run"], manifest["id"]) / "metrics.json") or {}
    parts = [
        _metadata(manifest, adapter),
        f"# {manifest['base']['name']}, checkpoint {manifest['id']}",
        _summary(manifest, adapter),
        "## Trained on",
        _files_table(chain),
        "## Evaluation",
        _evaluation(metrics),
        "## Identity",
        _identity(manifest),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(manifest: dict[str, Any], adapter: bool) -> str:
    lines = [
        f"base_model: {json.dumps(manifest['base']['name'])}",
        f"library_name: {'peft' if adapter else 'transformers'}",
        "pipeline_tag: text-generation",
        f"tags: {json.dumps(['dropforge', *(['lora'] if adapter else [])])}",
    ]
    return "\n".join(["---", *lines, "---"])


def _summary(manifest: dict[str, Any], adapter: bool) -> str:
    kind = "A LoRA adapter for" if adapter else "A fine-tuned copy of"
    return (
        f"{kind} `{display_name(manifest['base']['name'])}` after {manifest['step']} optimizer steps, committed "
        f"{manifest['created_at'][:19]}Z by Dropforge (run `{manifest['run']}`)."
    )


def _files_table(chain: Sequence[dict[str, Any]]) -> str:
    files = files_in(list(chain))
    if not files:
        return "Nothing: this is the base."
    rows = [
        f"| {_cell(f['file'])} | {_cell(f['generator'])} | {f['rows_trained']} | `{str(f['sha256'])[:16]}` |"
        for f in files
    ]
    return "\n".join(["| file | generator | row passes | sha256 |", "|---|---|---|---|", *rows])


def _cell(text: object) -> str:
    """Untrusted text inside a Markdown table: one line, no markup, no bar."""
    safe = display_name(str(text))
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#!" else c for c in safe)


def _items(suite: dict[str, Any]) -> str:
    count, of = suite.get("n"), suite.get("of")
    return f"{count} of {of}" if of not in (None, count) else str(count)


def _evaluation(metrics: dict[str, Any]) -> str:
    suites = metrics.get("suites")
    if not isinstance(suites, dict) or not suites:
        return "Not evaluated."
    rows = [
        f"| {_cell(name)} | {_cell(s.get('metric'))} | {_number(s.get('value'))} | {_items(s)} |"
        for name, s in suites.items()
    ]
    decision = f"\n\nDecision: {_cell(metrics.get('decision'))} ({_cell(metrics.get('reason'))})."
    return "\n".join(["| suite | metric | value | items |", "|---|---|---|---|", *rows]) + decision


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "-"


def _identity(manifest: dict[str, Any]) -> str:
    weights = [
        f"- `{name}` sha256 `{e['sha256']}`" for name, e in manifest["files"].items() if name.endswith(".safetensors")
    ]
    versions = ", ".join(f"{name} {version}" for name, version in (manifest.get("versions") or {}).items())
    return "\n".join(
        [*weights, f"- base sha256 `{manifest['base']['sha256']}`", f"- made with {versions or 'unknown versions'}"]
    )
