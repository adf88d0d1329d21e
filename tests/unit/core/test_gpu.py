"""core.gpu: devices are known by UUID, a lost one is named, and no crash of NVML reaches us."""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.gpu import FakeGpuProbe, Gpu, GpuReading, NvmlProbe, SystemProbe, collect, read_processes


class NvmlError(Exception):
    pass


class GpuIsLost(NvmlError):
    pass


def fake_nvml(*devices: dict[str, Any]) -> Any:
    """The part of pynvml that we use, over devices given as {uuid, lost, ...}."""

    def guarded(key: str, default: Any = None) -> Any:
        def read(device: dict[str, Any], *_: Any) -> Any:
            if device.get("lost") == key:
                raise GpuIsLost("GPU is lost")
            if key in device.get("unsupported", ()):
                raise NvmlError("Not Supported")
            return device.get(key, default)

        return read

    handle = guarded("handle")
    return SimpleNamespace(
        NVMLError=NvmlError,
        NVMLError_GpuIsLost=GpuIsLost,
        NVML_TEMPERATURE_GPU=0,
        nvmlDeviceGetCount=lambda: len(devices),
        nvmlSystemGetDriverVersion=lambda: b"555.42",
        nvmlDeviceGetHandleByIndex=lambda index: (handle(devices[index]), devices[index])[1],
        nvmlDeviceGetUUID=guarded("uuid"),
        nvmlDeviceGetName=guarded("name", b"Fake 9000"),
        nvmlDeviceGetMemoryInfo=guarded("memory", SimpleNamespace(total=24_000, used=6_000)),
        nvmlDeviceGetUtilizationRates=guarded("load", SimpleNamespace(gpu=83)),
        nvmlDeviceGetPowerUsage=guarded("power", 215_500),
        nvmlDeviceGetTemperature=guarded("temperature", 61),
    )


def test_a_device_is_read_with_its_units() -> None:
    reading = collect(fake_nvml({"uuid": "GPU-aa"}))
    assert reading.driver == "555.42"
    expected = Gpu("GPU-aa", "Fake 9000", "ok", "", 24_000, 6_000, 83.0, 61, 215.5)
    assert reading.devices == (expected,)


def test_a_device_is_found_by_uuid_in_either_spelling_whatever_its_index() -> None:
    first_order = collect(fake_nvml({"uuid": "GPU-AA"}, {"uuid": "GPU-bb", "power": 1000}))
    other_order = collect(fake_nvml({"uuid": "GPU-bb", "power": 1000}, {"uuid": "GPU-AA"}))
    assert first_order.by_uuid("bb") == other_order.by_uuid("GPU-bb")
    assert first_order.by_uuid("aa") is not None
    assert first_order.by_uuid("cc") is None


def test_what_a_device_does_not_support_is_none_and_the_rest_is_kept() -> None:
    (gpu,) = collect(fake_nvml({"uuid": "GPU-aa", "unsupported": ("power", "temperature", "load")})).devices
    assert (gpu.power_w, gpu.temperature_c, gpu.utilization_percent) == (None, None, None)
    assert gpu.memory_used_bytes == 6_000


@pytest.mark.parametrize("place", ["handle", "memory"])
def test_a_lost_gpu_is_named_lost_and_its_neighbour_is_still_read(place: str) -> None:
    lost, well = collect(fake_nvml({"uuid": "GPU-aa", "lost": place}, {"uuid": "GPU-bb"})).devices
    assert (lost.state, lost.message) == ("lost", "GPU is lost")
    assert (well.uuid, well.state) == ("GPU-bb", "ok")


def helper(tmp_path: Path, body: str) -> list[str]:
    """The command line of a helper that runs `body` for each line read, and counts its starts in starts.txt."""
    script = tmp_path / "helper.py"
    script.write_text(
        "import json, os, signal, sys, time\n"
        f"open({str(tmp_path / 'starts.txt')!r}, 'a').write('x')\n"
        f"for line in sys.stdin:\n    {body}\n    sys.stdout.flush()\n"
    )
    return [sys.executable, str(script)]


ONE_GPU = json.dumps(GpuReading((Gpu("GPU-aa", "Fake 9000"),), "555.42").as_dict())


def starts(tmp_path: Path) -> int:
    return len((tmp_path / "starts.txt").read_text())


def test_the_helper_is_asked_again_only_when_its_answer_is_no_longer_fresh(tmp_path: Path, clock: Any) -> None:
    probe = NvmlProbe(helper(tmp_path, f"print({ONE_GPU!r})"), clock=clock)
    first = probe.read()
    assert [gpu.uuid for gpu in first.devices] == ["GPU-aa"]
    assert probe.read() is first
    clock.advance(1.5)
    assert probe.read() is not first
    probe.close()
    assert starts(tmp_path) == 1


def test_a_helper_that_segfaults_is_named_and_tried_again_after_a_pause(tmp_path: Path, clock: Any) -> None:
    died = tmp_path / "died"
    body = f"(print({ONE_GPU!r}) if not os.path.exists({str(died)!r}) else os.kill(os.getpid(), signal.SIGSEGV))"
    probe = NvmlProbe(helper(tmp_path, body), clock=clock, retry_s=30)
    probe.read()
    died.touch()
    clock.advance(2)
    crashed = probe.read()
    assert crashed.error == "the NVML helper died by signal 11 (SIGSEGV)"
    assert [(gpu.uuid, gpu.state) for gpu in crashed.devices] == [("GPU-aa", "unreadable")]
    clock.advance(29)
    assert probe.read() is crashed, "no storm of retries"
    died.unlink()
    clock.advance(2)
    healed = probe.read()
    assert (healed.error, [gpu.state for gpu in healed.devices]) == (None, ["ok"])
    probe.close()
    assert starts(tmp_path) == 2


def test_a_helper_that_hangs_is_killed_and_named(tmp_path: Path, clock: Any) -> None:
    pid_file = tmp_path / "pid"
    body = f"open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    probe = NvmlProbe(helper(tmp_path, body), clock=clock, timeout_s=2.0)
    assert probe.read().error == "the NVML helper did not answer within 2 s"
    assert not Path(f"/proc/{pid_file.read_text()}").exists()


@pytest.mark.parametrize("answer", ["nonsense", "[]", '{"devices": 3}', '{"devices": [{"name": "x"}]}'])
def test_a_helper_that_answers_nonsense_is_an_error_not_an_exception(tmp_path: Path, answer: str) -> None:
    probe = NvmlProbe(helper(tmp_path, f"print({answer!r})"))
    assert "answered nonsense" in (probe.read().error or "")


def test_a_helper_that_cannot_start_is_an_error_not_an_exception(tmp_path: Path) -> None:
    assert "the NVML helper" in (NvmlProbe([str(tmp_path / "absent")]).read().error or "")


def test_the_real_helper_answers_on_this_machine_and_leaves_no_process_behind() -> None:
    probe = NvmlProbe(timeout_s=60)
    reading = probe.read()
    probe.close()
    assert reading.error is None
    assert reading.devices or reading.no_driver
    assert not [child for child in os.listdir("/proc") if child.isdigit() and _is_our_helper(child)]


def _is_our_helper(pid: str) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return int(fields[1]) == os.getpid() and b"core.gpu" in command


def test_system_facts_are_in_bytes_and_percent(tmp_path: Path) -> None:
    system = SystemProbe(tmp_path).read()
    assert system.cpu_count >= 1
    assert 0 <= system.cpu_percent <= 100
    assert 0 < system.memory_available_bytes < system.memory_total_bytes
    assert 0 <= system.disk_free_bytes < system.disk_total_bytes


def test_the_cpu_load_is_the_same_from_every_thread(tmp_path: Path, clock: Any, monkeypatch: Any) -> None:
    busy = iter([(10.0, 100.0), (40.0, 140.0)])
    monkeypatch.setattr("core.gpu._cpu_seconds", lambda: next(busy))
    probe = SystemProbe(tmp_path, clock=clock)
    clock.advance(2)
    with ThreadPoolExecutor(4) as pool:
        seen = list(pool.map(lambda _: probe.read().cpu_percent, range(4)))
    assert seen == [75.0] * 4


def test_a_process_that_is_gone_is_left_out() -> None:
    (facts,) = read_processes([os.getpid(), 2**22 + 1])
    assert facts.pid == os.getpid()
    assert facts.rss_bytes > 1_000_000


def test_the_fake_probe_says_no_driver_unless_told_otherwise() -> None:
    assert FakeGpuProbe().read().no_driver
    told = GpuReading((Gpu("GPU-aa"),))
    assert FakeGpuProbe(told).read() is told
