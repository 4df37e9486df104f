"""Which rows were made where: kept short, whole when read, and compared by one list."""

from typing import Any

import pytest

from flannel_pl.recording.formats.attempts import Attempt, attempts_of, environment_changes, with_attempt

HERE: dict[str, Any] = {
    "versions": {
        "torch": "2.13.0",
        "lightning": "2.6.6",
        "transformers": "5.23",
        "numpy": "2.4",
        "rich": "14",
    },
    **{"python": "3.11.7", "libc": "glibc 2.36", "source": "0123456789abcdef", "platform": "Linux-6"},
    **{"host": "a", "command": ["fit"], "created": "2026-01-01T00:00:00Z", "git": {"commit": "abc"}},
    **{"device": "cpu", "device_name": "AMD EPYC", "threads": 2},
    "cpu": {"name": "AMD EPYC", "family": "25", "model": "17", "capability": "AVX512"},
    "settings": {"deterministic_algorithms": False, "float32_matmul_precision": "highest"},
    "variables": {},
    "cuda": None,
}
ON_A_GPU = HERE | {
    "device": "cuda:0",
    "device_name": "NVIDIA H100",
    "cuda": {"runtime": "12.8", "cudnn": 91002, "driver": "570.1"},
}

CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"versions": HERE["versions"] | {"torch": "2.14.0"}}, "versions.torch: 2.13.0 there, 2.14.0 now"),
    ({"versions": HERE["versions"] | {"numpy": "2.5"}}, "versions.numpy: 2.4 there, 2.5 now"),
    ({"python": "3.12.0"}, "python: 3.11.7 there, 3.12.0 now"),
    ({"libc": "glibc 2.39"}, "libc: glibc 2.36 there, glibc 2.39 now"),
    ({"source": "f" * 16}, f"source: 0123456789abcdef there, {'f' * 16} now"),
    ({"threads": 1}, "threads: 2 there, 1 now"),
    ({"device_name": "Intel"}, "device_name: AMD EPYC there, Intel now"),
    ({"cpu": HERE["cpu"] | {"capability": "AVX2"}}, "cpu.capability: AVX512 there, AVX2 now"),
    ({"cpu": HERE["cpu"] | {"model": "1"}}, "cpu.model: 17 there, 1 now"),
    (
        {"settings": HERE["settings"] | {"deterministic_algorithms": True}},
        "settings.deterministic_algorithms: False there, True now",
    ),
    ({"variables": {"MKL_CBWR": "AVX2"}}, "variables.MKL_CBWR: nothing there, AVX2 now"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_what_can_change_bits_is_named(change: dict[str, Any], said: str) -> None:
    assert environment_changes(HERE, HERE | change) == [said]
    assert environment_changes(HERE | change, HERE) != []


@pytest.mark.parametrize(
    "change",
    [
        {"host": "b", "created": "2027-01-01T00:00:00Z", "command": ["fit", "--again"]},
        {"platform": "Linux-7", "git": {"commit": "def"}},
        {"versions": HERE["versions"] | {"rich": "15"}},
    ],
)
def test_what_cannot_is_not(change: dict[str, Any]) -> None:
    assert environment_changes(HERE, HERE | change) == []


def test_another_gpu_of_the_same_model_is_the_same_whatever_processor_is_beside_it() -> None:
    other_host = {
        "host": "b",
        "device": "cuda:3",
        "cpu": HERE["cpu"] | {"name": "Intel", "capability": "AVX2"},
    }
    assert environment_changes(ON_A_GPU, ON_A_GPU | other_host) == []
    other_model = ON_A_GPU | {"device_name": "NVIDIA H200"}
    assert environment_changes(ON_A_GPU, other_model) == ["device_name: NVIDIA H100 there, NVIDIA H200 now"]
    other_driver = ON_A_GPU | {"cuda": ON_A_GPU["cuda"] | {"driver": "580"}}
    assert environment_changes(ON_A_GPU, other_driver) == ["cuda.driver: 570.1 there, 580 now"]
    assert "cuda.runtime: nothing there, 12.8 now" in environment_changes(HERE, ON_A_GPU)


def test_what_a_file_does_not_know_is_not_held_against_it() -> None:
    old = {"versions": {"torch": "2.13.0"}, "device": "cpu", "device_name": "x86_64", "threads": 2}
    assert environment_changes(old, HERE) == []
    assert environment_changes(old, HERE | {"threads": 3}) == ["threads: 2 there, 3 now"]
    assert environment_changes({}, HERE) == []


def test_attempts_are_kept_short_and_read_whole() -> None:
    second = HERE | {"host": "b", "threads": 4}
    metadata: dict[str, Any] = {"provenance": {"data": {"corpus": "abc"}}}
    metadata["attempts"] = with_attempt(metadata, 0, HERE)
    metadata["attempts"] = with_attempt(metadata, 8, second)
    metadata["attempts"] = with_attempt(metadata, 11, second)
    assert metadata["attempts"] == [
        {"first_row": 0, "environment": HERE},
        {"first_row": 8, "environment": {"host": "b", "threads": 4}},
        {"first_row": 11, "environment": {}},
    ]
    assert attempts_of(metadata) == (Attempt(0, HERE), Attempt(8, second), Attempt(11, second))


def test_an_attempt_of_which_no_row_is_left_is_dropped() -> None:
    metadata: dict[str, Any] = {"attempts": with_attempt({}, 0, HERE)}
    for first_row, host in ((5, "b"), (9, "c"), (9, "d"), (5, "e")):
        metadata["attempts"] = with_attempt(metadata, first_row, HERE | {"host": host})
    assert [(one.first_row, one.environment["host"]) for one in attempts_of(metadata)] == [(0, "a"), (5, "e")]


def test_an_older_file_has_one_environment_and_can_get_more() -> None:
    old = {"provenance": {"versions": {"torch": "2.12"}, "host": "a", "data": {"corpus": "abc"}}}
    assert attempts_of(old) == (Attempt(0, {"versions": {"torch": "2.12"}, "host": "a"}),)
    entries = with_attempt(old, 3, {"versions": {"torch": "2.12"}, "host": "b"})
    assert entries == [{"first_row": 0}, {"first_row": 3, "environment": {"host": "b"}}]
    assert attempts_of(old | {"attempts": entries})[1].environment == {
        **{"versions": {"torch": "2.12"}, "host": "b"}
    }
    assert attempts_of({}) == (Attempt(0, {}),)
