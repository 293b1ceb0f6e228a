"""`edgewright bench`: every figure is there, and those that can be known beforehand are right."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from edgewright.artifacts import Package
from edgewright.runtime import bandwidth

Edgewright = Callable[..., Result]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    monkeypatch.setattr(bandwidth, "ARRAY_BYTES", 8 << 20)
    return (
        "--depths", "0,20,4096", "--prompt-tokens", "16", "--decode-tokens", "4", "--repeats", "1",
    )  # fmt: skip


def test_json_and_file_hold_the_same(
    edgewright: Edgewright, package: Path, quick: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "bench.json"
    ended = edgewright("bench", package, *quick, "--json", "-o", out)
    assert ended.exit_code == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert json.loads(out.read_text()) == result
    assert [speed["depth"] for speed in result["speeds"]] == [0, 20]
    assert result["depths_left_out"] == [4096]
    assert result["state_bytes_per_token"] == 384
    assert result["kernels"] == "native"
    for speed in result["speeds"]:
        expected = (
            result["weight_bytes_per_token"]
            * speed["decode_tokens_per_second"]
            / result["memory_bandwidth_bytes_per_second"]
        )
        assert speed["bandwidth_fraction"] == pytest.approx(expected)


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not show pages read")
def test_only_weights_that_are_read_count(
    edgewright: Edgewright, package: Path, quick: tuple[str, ...]
) -> None:
    """The embedding is looked up, not read: of its 57 kB one page or two."""
    result = json.loads(edgewright("bench", package, *quick, "--json").stdout)
    files = Package.open(package).manifest.files
    stored = sum(entry.size for path, entry in files.items() if path.startswith("shared_assets"))
    embedding = 300 * 48 * 4
    pages = 8192 * 20  # each tensor may begin and end within a page
    assert abs(result["weight_bytes_per_token"] - (stored - embedding)) < pages
    assert result["weight_bytes_counted"].startswith("pages")


def test_a_table_for_a_person(
    edgewright: Edgewright, package: Path, quick: tuple[str, ...]
) -> None:
    ended = edgewright("bench", package, *quick)
    for word in ("load", "384 bytes a token", "GB/s", "decode tok/s", "4096: not measured"):
        assert word in ended.stdout


@pytest.mark.parametrize("option", ["--repeats", "--prompt-tokens", "--decode-tokens"])
def test_nothing_to_measure_is_a_mistake(
    edgewright: Edgewright, package: Path, option: str
) -> None:
    ended = edgewright("bench", package, option, "0")
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert "at least 1" in ended.stderr
