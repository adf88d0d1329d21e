"""What `dropforge doctor` asks of settings, ports, accelerator and model. Beside the arrows: the CLI.

Reads    config.json, NVML (in its helper), the headers of safetensors files, the installed torch's version
Units    sizes in bytes          Errors  none: what is wrong is a finding with its one fix
Effects  imports no torch; with a GPU it asks a child process which architectures torch was built for
"""

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from core.atomic import read_json
from core.checkpoints import Catalogue
from core.commands.liveness import daemon_runs
from core.commands.machine_checks import FAIL, PASS, WARN, Finding
from core.commands.ports import addresses, another, problem, told
from core.errors import DropforgeError
from core.gpu import GpuReading, NvmlProbe
from core.memory_estimate import (
    CPU_MICRO_BATCH_TOKENS,
    GPU_MICRO_BATCH_TOKENS,
    advice,
    method_for,
    needed,
    shape_of,
)
from core.paths import Workspace
from core.settings import Settings

EMBEDDED_MODEL = "dropforge-tiny"
_STATE_FILE = "state.json"  # trainer.state writes it
_ARCHITECTURES = (
    "import json, torch; print(json.dumps({'built': torch.cuda.get_arch_list(), 'devices': "
    "[torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]}))"
)
_TORCH_IMPORT_S = 120.0


def settings_findings(workspace: Workspace, settings: Settings) -> Iterator[Finding]:
    """Every check that needs the settings."""
    yield unbuilt(settings)
    yield ports(workspace, settings)
    probe = NvmlProbe()
    try:
        reading = probe.read()
    finally:
        probe.close()
    yield nvml(reading)
    yield torch_build(reading)
    yield memory(workspace, settings, reading)
    yield precision(workspace, settings)


def unbuilt(settings: Settings) -> Finding:
    """Settings of older systems that Dropforge reads but cannot obey yet stop the trainer; say so."""
    wanted = []
    if settings.profile.name is not None:
        wanted.append(f"profile.name = {settings.profile.name}")
    if settings.auto_generate.enabled:
        wanted.append("auto_generate.enabled = true")
    if not wanted:
        return Finding("settings", PASS, "config.json is valid")
    message = f"{' and '.join(wanted)}: not built yet, so the trainer is blocked rather than train otherwise"
    return Finding("settings", WARN, message, "take these keys out of config.json")


def ports(workspace: Workspace, settings: Settings) -> Finding:
    """The ports are free, or our own processes hold them."""
    refused = [(address, why) for address in addresses(settings) if (why := problem(address))]
    if not refused:
        return Finding("ports", PASS, ", ".join(str(a.port) for a in addresses(settings)) + " are free")
    if daemon_runs(workspace):
        return Finding("ports", PASS, "Dropforge is running in this root")
    return Finding("ports", FAIL, told(refused), another(refused))


def nvml(reading: GpuReading) -> Finding:
    """What the driver says of the GPUs."""
    if reading.error:
        return Finding("gpu", FAIL, reading.error, "look at nvidia-smi; reload or reinstall the driver")
    if reading.no_driver or not reading.devices:
        return Finding("gpu", PASS, "no NVIDIA GPU: training and serving run on the CPU")
    lost = [gpu for gpu in reading.devices if gpu.state != "ok"]
    if lost:
        return Finding("gpu", FAIL, f"{lost[0].uuid} is {lost[0].state}: {lost[0].message}", "reset or reseat that GPU")
    names = ", ".join(f"{gpu.name} ({(gpu.memory_total_bytes or 0) / 1e9:.0f} GB)" for gpu in reading.devices)
    return Finding("gpu", PASS, f"{names}, driver {reading.driver}")


def torch_build(reading: GpuReading) -> Finding:
    """The installed torch can use the GPUs that are there."""
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return Finding("torch", FAIL, "torch is not installed", "pip install torch")
    if not reading.devices:
        return Finding("torch", PASS, f"torch {version}")
    return _torch_against_gpu(version)


def _torch_against_gpu(version: str) -> Finding:
    """Compare the architectures torch was built for with those of the devices, in a child process."""
    argv = [sys.executable, "-c", _ARCHITECTURES]
    fix = "pip install torch from the index for your CUDA version (pytorch.org/get-started)"
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_TORCH_IMPORT_S, check=True)
        answer = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError) as error:
        return Finding("torch", FAIL, f"torch {version} does not load: {error}", fix)
    if not answer["devices"]:
        return Finding("torch", FAIL, f"torch {version} sees no GPU although the driver does", fix)
    for major, minor in answer["devices"]:
        if not supports(answer["built"], major, minor):
            return Finding("torch", FAIL, f"torch {version} has no code for compute capability {major}.{minor}", fix)
    return Finding("torch", PASS, f"torch {version}, built for {' '.join(answer['built'])}")


def supports(built: list[str], major: int, minor: int) -> bool:
    """Whether binaries (`sm_90`: same major, minor not above) or portable code (`compute_90`: any newer) fit."""
    for name in built:
        kind, _, digits = name.partition("_")
        number = "".join(c for c in digits if c.isdigit())
        if not number:
            continue
        has = (int(number[:-1]), int(number[-1]))
        if (kind == "sm" and has[0] == major and has[1] <= minor) or (kind == "compute" and has <= (major, minor)):
            return True
    return False


def memory(workspace: Workspace, settings: Settings, reading: GpuReading) -> Finding:
    """A training step with this model and these settings fits into memory."""
    folder = workspace.resolve(settings.model_path)
    if not (folder / "config.json").is_file():
        return _no_model(settings, folder)
    totals = [gpu.memory_total_bytes for gpu in reading.devices if gpu.memory_total_bytes]
    there_bytes = max(totals) if totals else psutil.virtual_memory().available
    try:
        shape = shape_of(folder)
    except DropforgeError as error:
        return Finding("memory", FAIL, f"{error.where}: {error.message}", error.fix or "copy the model's folder again")
    need = needed(shape, settings, micro_batch_tokens=GPU_MICRO_BATCH_TOKENS if totals else CPU_MICRO_BATCH_TOKENS)
    method = "LoRA" if method_for(settings.trainer.method, shape.parameters) == "lora" else "full fine-tuning"
    message = (
        f"{shape.parameters / 1e6:.1f} M parameters, {method}: a step needs about {need.with_margin / 1e9:.1f} GB, "
        f"{there_bytes / 1e9:.1f} GB {'on the GPU' if totals else 'available'}"
    )
    fix = advice(need, there_bytes, settings, shape.parameters)
    return Finding("memory", FAIL, message, fix) if fix else Finding("memory", PASS, message)


def precision(workspace: Workspace, settings: Settings) -> Finding:
    """Which number format the products of training are in."""
    wanted = settings.hyperparams.fp_precision
    if wanted != "auto":
        return Finding("precision", PASS, f"products in {wanted}, as set")
    try:
        head = Catalogue(workspace, settings.run).head()
        if head is None:
            return Finding("precision", PASS, f"fp32 or bf16, by a probe when run {settings.run!r} begins")
        on_cpu = read_json(head.folder / _STATE_FILE).get("auto_precision", "fp32")
    except DropforgeError as error:
        return Finding("precision", WARN, f"{error.where}: {error.message}", error.fix or "dropforge verify")
    return Finding("precision", PASS, f"products in {on_cpu} on this CPU, as a probe said when the run began")


def _no_model(settings: Settings, folder: Path) -> Finding:
    if settings.model_name == EMBEDDED_MODEL:
        return Finding("memory", PASS, "the embedded model (0.2 M parameters) is made at the first start")
    if not folder.exists() and settings.model_path.count("/") == 1 and not settings.model_path.startswith("models/"):
        message = f"{settings.model_path} is no folder: taken for a Hub id, loaded at the first start"
        return Finding("memory", WARN, message, "download it into models/ for a start without a network")
    return Finding("memory", FAIL, f"no model in {folder}", "put a transformers model folder there, or mend model_path")
