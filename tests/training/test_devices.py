"Devices: what PyTorch reports is obeyed, what is not there is refused, precision follows the processor."
import platform
import sys

import numpy as np
import pytest
import torch

from medstrat.training.devices import bfloat16_is_fast, buffers_kept, pick_device, pick_precision


@pytest.mark.parametrize("asked", ["auto", "gpu", "cuda", "mps"])
def test_an_accelerator_is_taken_unless_the_cpu_is_asked_for(asked, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("meta"))
    assert pick_device(asked).type == "meta" and pick_device("cpu").type == "cpu"


def test_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    assert pick_device().type == pick_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="accelerator='mps', but PyTorch finds none here. Use 'auto' or 'cpu'"): pick_device("mps")


@pytest.mark.parametrize("flags, fast", [(dict(amx_bf16=True), True), (dict(avx512_bf16=True, amx_bf16=False), True), (dict(avx2=True), False), ({}, False)])
def test_precision_follows_the_processor(flags, fast, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    cpu = torch.device("cpu")
    assert bfloat16_is_fast(cpu) is fast and pick_precision("auto", cpu) == ("bf16-mixed" if fast else "32-true")
    assert pick_precision("16-mixed", cpu) == "16-mixed"
    assert not bfloat16_is_fast(torch.device("mps")) and pick_precision("auto", torch.device("mps")) == "32-true"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this C library has no such limits")
def test_buffers_are_kept_within_and_given_back_after():
    import resource
    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(8): np.ones(6_000_000)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    before = faults()
    with pytest.raises(KeyError), buffers_kept():
        assert faults() < before / 4
        raise KeyError
    assert faults() > before / 2


def test_elsewhere_nothing_is_asked_of_the_c_library(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", lambda *_: sys.exit("there is none"))
    with buffers_kept(): pass
