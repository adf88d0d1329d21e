"""What the machine has: GPUs by NVML in a helper process; CPU, memory and disk by psutil (beside all arrows).

Reads    NVML (in `python -m core.gpu`, one JSON line for each line asked), /proc and statvfs through psutil
Units    sizes in bytes, temperature in degrees Celsius, power in watts, loads in percent
Errors   none on purpose: no driver is an empty list, a lost GPU or a dead helper is said in the reading
Effects  one helper process while a driver is there: NVML can crash its process, and there it hurts nobody
"""

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeAlias  # Any: NVML has no types, and its answers are JSON

import psutil

_ANSWER_LIMIT_BYTES = 1 << 20
NvmlAnswer: TypeAlias = Any  # a number, bytes, or a ctypes structure: NVML's bindings have no types


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device, known by its UUID: an index changes with CUDA_VISIBLE_DEVICES and with a lost neighbour."""

    uuid: str
    name: str = ""
    state: str = "ok"  # "ok" | "lost" | "unreadable"
    message: str = ""
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    utilization_percent: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None


@dataclass(frozen=True, slots=True)
class GpuReading:
    """What NVML said: `devices` is empty without a GPU; `error` says why nothing could be read."""

    devices: tuple[Gpu, ...] = ()
    driver: str | None = None
    error: str | None = None
    no_driver: bool = False

    def by_uuid(self, uuid: str) -> Gpu | None:
        """Find a device by NVML's or torch's spelling of its UUID."""
        return next((gpu for gpu in self.devices if _bare(gpu.uuid) == _bare(uuid)), None)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _bare(uuid: str) -> str:
    return uuid.lower().removeprefix("gpu-")


class GpuProbe(Protocol):
    """Whoever can say what GPUs there are."""

    def read(self) -> GpuReading: ...

    def close(self) -> None: ...


class FakeGpuProbe:
    """For tests and for machines that are only imagined: answers what it was given."""

    def __init__(self, reading: GpuReading | None = None) -> None:
        self.reading = reading or GpuReading(no_driver=True)
        self.closed = False

    def read(self) -> GpuReading:
        return self.reading

    def close(self) -> None:
        self.closed = True


class NvmlProbe:
    """Asks a helper process; one that dies or hangs is killed, named in the reading and tried again later.

    Args:
        argv: the helper's command line; tests give a crashing one.
        timeout_s: how long an answer may take. The first one starts an interpreter and loads the driver.
        fresh_s: how long an answer is good, so that many readers cost one question.
        retry_s: pause after a failure or a missing driver.
    """

    def __init__(
        self,
        argv: Sequence[str] = (sys.executable, "-m", "core.gpu"),
        *,
        timeout_s: float = 10.0,
        fresh_s: float = 1.0,
        retry_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._argv = list(argv)
        self._timeout_s, self._fresh_s, self._retry_s = timeout_s, fresh_s, retry_s
        self._clock = clock
        self._lock = threading.Lock()
        self._helper: subprocess.Popen[bytes] | None = None
        self._reading = GpuReading()
        self._good_until = float("-inf")

    def read(self) -> GpuReading:
        """The newest reading, at most `fresh_s` old. Side effects: may start or kill the helper."""
        with self._lock:
            if self._clock() >= self._good_until:
                self._reading = self._ask()
                failed = self._reading.error is not None or self._reading.no_driver
                self._good_until = self._clock() + (self._retry_s if failed else self._fresh_s)
            return self._reading

    def close(self) -> None:
        """End the helper."""
        with self._lock:
            self._end_helper()

    def _ask(self) -> GpuReading:
        try:
            reading = _reading_from(json.loads(self._question()))
        except TimeoutError:
            return self._failed(f"did not answer within {self._timeout_s:g} s")
        except OSError as error:
            return self._failed(_how_it_ended(self._helper) or str(error))
        except (ValueError, TypeError, KeyError) as error:
            return self._failed(f"answered nonsense: {error}")
        if reading.no_driver:
            self._end_helper()
        return reading

    def _failed(self, how: str) -> GpuReading:
        self._end_helper()
        old = self._reading
        known = tuple(Gpu(gpu.uuid, gpu.name, "unreadable", "NVML gave no answer") for gpu in old.devices)
        return GpuReading(known, old.driver, f"the NVML helper {how}")

    def _question(self) -> bytes:
        """Send one newline, return one line. Raises OSError (it died) or TimeoutError (it hangs)."""
        helper = self._helper or self._start_helper()
        if helper.stdin is None or helper.stdout is None:
            raise OSError("the helper has no pipes")
        helper.stdin.write(b"\n")
        helper.stdin.flush()
        deadline = time.monotonic() + self._timeout_s
        answer = b""
        while not answer.endswith(b"\n"):
            ready, _, _ = select.select([helper.stdout], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(helper.stdout.fileno(), 65536) if ready else b""
            if not ready:
                raise TimeoutError
            if not piece:
                raise OSError("the helper ended")
            answer += piece
            if len(answer) > _ANSWER_LIMIT_BYTES:
                raise ValueError("an endless answer")
        return answer

    def _start_helper(self) -> subprocess.Popen[bytes]:
        self._helper = subprocess.Popen(
            self._argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).resolve().parent.parent,  # so that `-m core.gpu` finds this core
        )
        return self._helper

    def _end_helper(self) -> None:
        helper, self._helper = self._helper, None
        if helper is None:
            return
        helper.kill()
        helper.wait()
        for pipe in (helper.stdin, helper.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # the unsent newline of a dead helper
                    pipe.close()


def _how_it_ended(helper: subprocess.Popen[bytes] | None) -> str:
    if helper is None:
        return ""
    try:
        code = helper.wait(1.0)
    except subprocess.TimeoutExpired:
        return "closed its pipe"
    return f"died by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"


def _reading_from(doc: dict[str, Any]) -> GpuReading:
    known = {item.name for item in fields(Gpu)}
    devices = tuple(Gpu(**{key: device[key] for key in known if key in device}) for device in doc["devices"])
    return GpuReading(devices, doc.get("driver"), doc.get("error"), bool(doc.get("no_driver")))


# The helper's side: everything below `collect` runs in the child.


def collect(nvml: ModuleType) -> GpuReading:
    """Ask NVML for every device; what a device does not support stays None, a lost one is named lost."""
    devices = tuple(_device(nvml, index) for index in range(nvml.nvmlDeviceGetCount()))
    driver = _optional(nvml, nvml.nvmlSystemGetDriverVersion)
    return GpuReading(devices, _text(driver) or None)


def _device(nvml: ModuleType, index: int) -> Gpu:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid = _text(nvml.nvmlDeviceGetUUID(handle))
    except nvml.NVMLError as error:
        return Gpu(uuid=f"unknown-{index}", state=_state(nvml, error), message=str(error))
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError as error:
        name = _text(_optional(nvml, nvml.nvmlDeviceGetName, handle))
        return Gpu(uuid=uuid, name=name, state=_state(nvml, error), message=str(error))
    load = _optional(nvml, nvml.nvmlDeviceGetUtilizationRates, handle)
    milliwatts = _optional(nvml, nvml.nvmlDeviceGetPowerUsage, handle)
    return Gpu(
        uuid=uuid,
        name=_text(_optional(nvml, nvml.nvmlDeviceGetName, handle)),
        memory_total_bytes=int(memory.total),
        memory_used_bytes=int(memory.used),
        utilization_percent=None if load is None else float(load.gpu),
        temperature_c=_optional(nvml, nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        power_w=None if milliwatts is None else milliwatts / 1000,
    )


def _state(nvml: ModuleType, error: Exception) -> str:
    return "lost" if isinstance(error, nvml.NVMLError_GpuIsLost) else "unreadable"


def _optional(nvml: ModuleType, function: Callable[..., Any], *arguments: object) -> NvmlAnswer:
    try:
        return function(*arguments)
    except nvml.NVMLError:
        return None


def _text(value: NvmlAnswer) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")


def _start_nvml() -> ModuleType | None:
    """The initialised pynvml module, or None without an NVIDIA driver."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except ImportError:
        return None
    except nvml.NVMLError:
        return None
    return nvml


def main() -> int:
    """The helper: one JSON line for each line read; ends when its parent's pipe closes."""
    nvml = _start_nvml()
    for _line in sys.stdin:
        if nvml is None:
            reading = GpuReading(no_driver=True)
        else:
            try:
                reading = collect(nvml)
            except nvml.NVMLError as error:
                reading = GpuReading(error=str(error))
        sys.stdout.write(json.dumps(reading.as_dict()) + "\n")
        sys.stdout.flush()
    return 0


@dataclass(frozen=True, slots=True)
class System:
    """CPU, memory and the disk of one folder."""

    cpu_count: int
    cpu_percent: float
    load_1m: float
    memory_total_bytes: int
    memory_available_bytes: int
    disk_total_bytes: int
    disk_free_bytes: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class SystemProbe:
    """Reads this machine and the disk below a folder. The CPU load is the mean since the reading before.

    psutil's own non-blocking load counts from the last call of the same thread, which in a pool of threads is mostly
    none: it then says 0 %. So the times are kept here, for at least `window_s` between two measurements.
    """

    def __init__(self, folder: Path, *, window_s: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._window_s = window_s
        self._clock = clock
        self._lock = threading.Lock()
        self._measured_at = clock()
        self._busy_s, self._total_s = _cpu_seconds()
        self._percent = 0.0

    def read(self) -> System:
        """The facts now."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(self._folder))
        return _system(memory, disk, self._cpu_percent())

    def _cpu_percent(self) -> float:
        with self._lock:
            now = self._clock()
            if now - self._measured_at >= self._window_s:
                busy_s, total_s = _cpu_seconds()
                if total_s > self._total_s:
                    self._percent = 100 * (busy_s - self._busy_s) / (total_s - self._total_s)
                self._measured_at, self._busy_s, self._total_s = now, busy_s, total_s
            return min(100.0, max(0.0, self._percent))


def _cpu_seconds() -> tuple[float, float]:
    """(busy, all) seconds of all cores since boot."""
    times = psutil.cpu_times()
    total = sum(times[:8])  # user to steal; guest time is already counted in user
    return total - times.idle - times.iowait, total


def _system(memory: Any, disk: Any, cpu_percent: float) -> System:  # psutil's named tuples
    return System(
        cpu_count=psutil.cpu_count() or 1,
        cpu_percent=cpu_percent,
        load_1m=os.getloadavg()[0],
        memory_total_bytes=memory.total,
        memory_available_bytes=memory.available,
        disk_total_bytes=disk.total,
        disk_free_bytes=disk.free,
    )


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """Memory and age of one process."""

    pid: int
    rss_bytes: int
    started_at_s: float = field(compare=False)


def read_processes(pids: Iterable[int]) -> list[ProcessFacts]:
    """Facts about those of `pids` that live; a process that cannot be seen is left out."""
    found = []
    for pid in pids:
        try:
            process = psutil.Process(pid)
            found.append(ProcessFacts(pid, process.memory_info().rss, process.create_time()))
        except (psutil.Error, ValueError):  # it may end at any moment
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
