"""A root in which every text that somebody else can choose holds markup: for the page and for whoever shows it."""

from core.paths import Workspace
from sample_root import SampleRoot, candidate

HOSTILE = "<img src=x onerror=\"window.hacked='yes'\"><script>window.hacked='yes'</script><svg/onload=window.hacked=1>"


def hostile_root(workspace: Workspace) -> SampleRoot:
    """Markup in every text that somebody else can choose."""
    sample = SampleRoot(workspace)
    base = sample.checkpoint(0)
    verdict = sample.job(
        "done",
        f"{HOSTILE}\u202egpj.jsonl",
        message=HOSTILE,
        fix="javascript:alert(1)",
        spec=HOSTILE,
        code=HOSTILE,
        issues=[
            {"validator": HOSTILE, "version": "1", "severity": "error", "code": HOSTILE, "count": 1, "examples": [1]}
        ],
        effect={HOSTILE: {"before": 1.0, "after": 2.0, "delta": 1.0, "ci95": [0, 1]}},
    )
    sample.job("active", HOSTILE)
    sample.job("normal", HOSTILE)
    head = sample.checkpoint(5, [verdict])
    sample.daemon("training", reason=HOSTILE, current_job="x", ignored=[{"file": HOSTILE, "reason": HOSTILE}])
    example = {"prompt": HOSTILE, "golden_answer": HOSTILE, "model_answer": HOSTILE, "matches": False}
    sample.training(current_file=HOSTILE, recent_examples=[example], total_steps=5, current_step=1)
    sample.deployment(head.id, base.id)
    suites = {HOSTILE: {"metric": HOSTILE, "n": 1, "value": 1.0, "ci95": None}}
    sample.leaderboard(head.id, candidate(head, "keep", reason=HOSTILE, suites=suites))
    generator = {"files": 1, "rows": 1, "passed": 0, "failed": 1, "fail_rate": 1.0, "top_errors": [HOSTILE]}
    sample.status("data_lineage", {"generators": {HOSTILE: generator}, "validators": {}, "summary": {}})
    sample.event(kind=HOSTILE, message=HOSTILE)
    return sample
