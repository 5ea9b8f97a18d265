"""Masks in recorded environments of CUDA and ROCm machines, read as torch reads them."""

import pytest

from runner.compute.visible_devices import (
    CUDA,
    HIP,
    ROCR,
    Mask,
    config_mask,
    contradiction,
    hides_all,
    in_force,
    lookalikes,
    notices,
    unusable,
    variable,
    variable_mask,
)

READ = [
    ("0,1", ("0", "1")),
    (" 1, 0", ("1", "0")),
    ("7", ("7",)),
    ("", ()),
    ("-1", ()),
    ("0,-1,1", ("0",)),
    ("0,0", ()),
    ("1,0,1", ()),
    ("0;1", ("0",)),
    ("1gpu2,2ampere", ("1", "2")),
    ("all", ()),
    ("none", ()),
    ("0,,1", ("0",)),
    ("0,1,", ("0", "1")),
    ("GPU-aa,GPU-bb", ("GPU-aa", "GPU-bb")),
    ("GPU-aa,0", ("GPU-aa",)),
    ("0,GPU-aa", ("0",)),
    ("GPU-aa,GPU-aa", ()),
    ("MIG-aa", ("MIG-aa",)),
]


@pytest.mark.parametrize(("value", "entries"), READ)
def test_valid_entries(value: str, entries: tuple[str, ...]) -> None:
    assert variable_mask(CUDA, value).entries == entries


@pytest.mark.parametrize(("value", "entries"), READ)
def test_torch_reads_the_same_entries(value: str, entries: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv(CUDA, value)
    assert tuple(map(str, torch.cuda._parse_visible_devices())) == entries


@pytest.mark.parametrize("value", ["0,1", " 1, 0", "", "-1", "0,1,", "+1", "007", "GPU-aa,GPU-bb"])
def test_a_valid_mask_has_no_fault(value: str) -> None:
    assert variable_mask(CUDA, value).fault is None


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("0,0", "names GPU 0 twice, which hides every GPU"),
        ("all", "has the entry 'all' where another ordinal or UUID must be, which hides every GPU"),
        ("0,-1,1", "has the entry '-1' where another ordinal or UUID must be, so it and all later entries are ignored"),
        ("0;1", "has the entry '0;1', of which only 0 is read"),
        (
            "GPU-aa,0",
            "has the entry '0' where another ordinal or UUID must be, so it and all later entries are ignored",
        ),
    ],
)
def test_faults_are_named(value: str, fault: str) -> None:
    assert variable_mask(CUDA, value).fault == fault


def test_rocr_accepts_ordinals_with_uuids_and_ends_at_a_duplicate() -> None:
    assert variable_mask(ROCR, "3,GPU-aa,0").entries == ("3", "GPU-aa", "0")
    doubled = variable_mask(ROCR, "3,1,3,2")
    assert doubled.entries == ("3", "1")
    assert doubled.fault is not None
    assert "'3'" in doubled.fault


def test_device_visible_as_a_mask() -> None:
    assert config_mask((0, 2)) == Mask("device.visible", "0,2", "device.visible=[0, 2]")
    assert config_mask(("GPU-aa",)).value == "GPU-aa"
    # An empty text would hide nothing on ROCm.
    assert config_mask(()) == Mask("device.visible", "-1", "device.visible=[]")
    assert variable(hip=False) == CUDA
    assert variable(hip=True) == HIP


def test_masks_in_force() -> None:
    shell = {CUDA: "1", HIP: "2", ROCR: "3"}
    assert [mask.label for mask in in_force(None, shell, hip=False)] == ["CUDA_VISIBLE_DEVICES='1'"]
    assert [mask.source for mask in in_force(None, shell, hip=True)] == [ROCR, HIP]
    assert [mask.source for mask in in_force(None, {CUDA: "1", ROCR: "3"}, hip=True)] == [ROCR, CUDA]
    assert [mask.source for mask in in_force((0,), shell, hip=True)] == [ROCR, "device.visible"]
    assert [mask.source for mask in in_force((0,), shell, hip=False)] == ["device.visible"]
    assert in_force(None, {HIP: "2", ROCR: "3"}, hip=False) == []


@pytest.mark.parametrize(
    ("shell", "effect"),
    [
        ({ROCR: "1", HIP: "1"}, "so no GPU is left"),
        ({ROCR: "1", CUDA: "1"}, "so no GPU is left"),
        ({ROCR: "0,1", HIP: "0,3"}, "so 3 is ignored"),
    ],
)
def test_masks_that_contradict(shell: dict[str, str], effect: str) -> None:
    clause = contradiction(in_force(None, shell, hip=True))
    assert clause is not None
    assert clause.endswith(effect)
    assert all(f"{name}={value!r}" in clause for name, value in shell.items())
    assert f"{clause}; set only one of the two" in notices(None, shell, hip=True)


@pytest.mark.parametrize("shell", [{ROCR: "2,3", HIP: "0,1"}, {ROCR: "2"}, {HIP: "2"}, {ROCR: "", HIP: "0"}])
def test_masks_that_do_not_contradict(shell: dict[str, str]) -> None:
    assert contradiction(in_force(None, shell, hip=True)) is None


def test_masks_that_leave_no_gpu() -> None:
    def found(shell: dict[str, str]) -> tuple[str, str] | None:
        obstacle = hides_all(in_force(None, shell, hip=True))
        return (obstacle.found, obstacle.remedy) if obstacle else None

    assert found({CUDA: "-1"}) == ("CUDA_VISIBLE_DEVICES='-1' hides every GPU", "unset CUDA_VISIBLE_DEVICES")
    assert found({ROCR: "", HIP: "0"}) == ("ROCR_VISIBLE_DEVICES='' hides every GPU", "unset ROCR_VISIBLE_DEVICES")
    assert found({ROCR: "1", HIP: "1"}) == (
        "ROCR_VISIBLE_DEVICES='1' leaves 1 GPU, number 0, and HIP_VISIBLE_DEVICES='1' selects among these, "
        "so no GPU is left",
        "set only one of the two",
    )
    assert found({ROCR: "0,1", HIP: "0,3"}) is None
    assert found({HIP: "7"}) is None
    assert found({}) is None


@pytest.mark.parametrize("visible", [None, (0,), (1, 0), ("GPU-aa", "GPU-bb")])
def test_device_visible_that_can_be_used(visible: tuple[int | str, ...] | None) -> None:
    assert unusable(visible) is None


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        ((), "device.visible=[] hides every GPU"),
        ((0, 0), "device.visible=[0, 0] names GPU 0 twice, which hides every GPU"),
        (("all",), "device.visible=[all] has the entry 'all' where another ordinal or UUID must be"),
        ((0, "GPU-aa"), "device.visible=[0, GPU-aa] has the entry 'GPU-aa'"),
        (("-1",), "device.visible=[-1] hides every GPU"),
    ],
)
def test_device_visible_that_cannot_be_used(visible: tuple[int | str, ...], found: str) -> None:
    obstacle = unusable(visible)
    assert obstacle is not None
    assert obstacle.found.startswith(found)


@pytest.mark.parametrize(
    "name",
    [
        "CUDA_VISIBLE_DEVICE",
        "CUDA_VISBLE_DEVICE",
        "CUDA_VISBLE_DEVICES",
        "CUDA_VISIBLE_DEVICES_",
        "CUDA_VISIBLE_DEVICES ",
        "CUDA_VISIBILE_DEVICES",
        "CUDA_DEVICES",
        "cuda_visible_devices",
        "GPU_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICE",
    ],
)
def test_lookalikes_are_named_on_cuda(name: str) -> None:
    assert lookalikes({name: "1", CUDA: "0"}, hip=False) == [
        f"the environment variable {name!r} ('1') has no effect; did you mean CUDA_VISIBLE_DEVICES?"
    ]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("HIP_VISIBLE_DEVICE", HIP),
        ("HIP_VISBLE_DEVICES", HIP),
        ("ROCR_VISIBLE_DEVICE", ROCR),
        ("ROCM_VISIBLE_DEVICES", ROCR),
        ("CUDA_VISIBLE_DEVICE", CUDA),
    ],
)
def test_lookalikes_are_named_on_rocm(name: str, meant: str) -> None:
    (sentence,) = lookalikes({name: "1"}, hip=True)
    assert sentence.endswith(f"did you mean {meant}?")


@pytest.mark.parametrize("hip", [False, True])
def test_variables_with_a_meaning_of_their_own_are_ignored(hip: bool) -> None:
    real = """CUDA_HOME CUDA_PATH CUDA_VERSION CUDA_LAUNCH_BLOCKING CUDA_DEVICE_ORDER CUDA_MODULE_LOADING
        CUDA_DEVICE_MAX_CONNECTIONS CUDA_DISABLE_PTX_JIT CUDA_CACHE_PATH CUDA_MPS_PIPE_DIRECTORY
        CUDA_MANAGED_FORCE_DEVICE_ALLOC HIP_PATH HIP_PLATFORM HIP_LAUNCH_BLOCKING HIP_VISIBLE_DEVICES
        ROCR_VISIBLE_DEVICES CUDA_VISIBLE_DEVICES ROCM_PATH GPU_DEVICE_ORDINAL GPU_MAX_HW_QUEUES
        NVIDIA_VISIBLE_DEVICES AMD_VISIBLE_DEVICES HABANA_VISIBLE_DEVICES TPU_VISIBLE_DEVICES NCCL_DEBUG
        RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"""
    assert lookalikes(dict.fromkeys(real.split(), "1"), hip) == []


def test_the_configuration_wins_over_the_shell_with_a_notice() -> None:
    expected = ["CUDA_VISIBLE_DEVICES='1' from the shell disagrees with device.visible=[0]; the configuration wins"]
    assert notices((0,), {CUDA: "1"}, hip=False) == expected
    assert notices((0,), {CUDA: "1", HIP: "0"}, hip=True) == expected
    assert notices((0,), {CUDA: "0", HIP: "1"}, hip=False) == []
    assert notices((1, 0), {CUDA: " 1,0"}, hip=False) == []
    assert notices((), {CUDA: ""}, hip=False) == []


def test_one_of_two_shell_masks_has_no_effect_on_rocm() -> None:
    expected = ["CUDA_VISIBLE_DEVICES='1' has no effect because HIP_VISIBLE_DEVICES='0' is set; unset one of them"]
    assert notices(None, {HIP: "0", CUDA: "1"}, hip=True) == expected
    assert notices(None, {HIP: "0", CUDA: "1"}, hip=False) == []
    assert notices(None, {HIP: "0", CUDA: "0"}, hip=True) == []


def test_faults_of_the_shells_mask_are_reported_when_it_is_in_force() -> None:
    assert notices(None, {CUDA: "0,0"}, hip=False) == [
        "CUDA_VISIBLE_DEVICES='0,0' names GPU 0 twice, which hides every GPU"
    ]
    assert notices(None, {HIP: "0;1", CUDA: "0"}, hip=False) == []
    # A replaced mask is only reported as replaced; faults of the configuration are errors, not notices.
    (sentence,) = notices((0, 0), {CUDA: "1;2"}, hip=False)
    assert "disagrees" in sentence


def test_an_empty_mask_has_two_meanings_on_rocm() -> None:
    (sentence,) = notices(None, {HIP: ""}, hip=True)
    assert sentence.startswith("HIP_VISIBLE_DEVICES='' is ignored by ROCm but hides every GPU from torch")
    assert notices(None, {CUDA: ""}, hip=False) == []
    assert notices(None, {ROCR: ""}, hip=True) == []
