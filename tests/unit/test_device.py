"""What a process used of a machine."""

import pytest
import torch

from apportion.core.device import peak_memory, place, reset_peak_memory
from apportion.core.errors import InputError


def test_peak_memory_is_that_of_the_device_that_was_used_most(monkeypatch: pytest.MonkeyPatch) -> None:
    used = {0: 0, 1: 7_000, 2: 500}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(used))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=0: used[device])
    assert peak_memory() == 7_000
    used[1] = used[2] = 0
    assert (peak_memory() or 0) > 1 << 20  # of the process, where no GPU was used


def test_the_peak_begins_anew_on_every_device_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    used = {0: 3_000, 1: 7_000}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(used))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=0: used[device])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device=0: used.update({device: device}))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    reset_peak_memory()
    assert peak_memory() == 7_000
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    reset_peak_memory()
    assert peak_memory() == 1


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:\u00b2", "cuda:-1"])
def test_what_is_no_device_is_refused(device: str) -> None:
    with pytest.raises(InputError, match="expected auto, cpu, cuda or cuda:N"):
        place(device)
