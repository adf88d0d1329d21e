"""`dropforge doctor`: is this machine able to run this root? Beside the arrows: the CLI.

Reads    the machine, the root and its settings (machine_checks, model_checks)
Errors   exit 5 when a check fails; a refused config.json is a finding, not an end
"""

import click

from core.commands.invocation import common_options, current, finish
from core.commands.machine_checks import FAIL, Finding, machine_findings, refused
from core.commands.model_checks import settings_findings
from core.commands.output import coloured, say
from core.errors import AnswerNoError, ConfigError
from core.paths import Workspace, display_name


@click.command("doctor")
@common_options
def doctor_command() -> None:
    """Check the machine and the root; every problem comes with its one fix."""
    workspace = current().workspace()
    findings = [*machine_findings(workspace), *_with_settings(workspace)]
    failed = [finding for finding in findings if finding.status == FAIL]
    doc = {"ok": not failed, "checks": [finding.as_dict() for finding in findings]}
    current().show(doc, lambda: _show(findings))
    if failed:
        finish(AnswerNoError.exit_code)


def _with_settings(workspace: Workspace) -> list[Finding]:
    try:
        settings = current().settings(workspace)
    except ConfigError as error:
        return [Finding("settings", FAIL, f"{error.where}: {error.message}", error.fix)]
    findings: list[Finding] = []
    try:
        findings.extend(settings_findings(workspace, settings))
    except OSError as error:
        findings.append(refused("root", error))
    return findings


def _show(findings: list[Finding]) -> None:
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        click.echo(f"{coloured(finding.status)}  {finding.name.ljust(width)}  {display_name(finding.message)}")
        if finding.fix:
            say(f"      {' ' * width}  fix: {finding.fix}")
