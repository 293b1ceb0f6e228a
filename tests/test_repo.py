"""What the repository says about itself is so: commands, links, names, sizes, versions."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path

import click
import pytest

from edgewright.cli import main

ROOT = Path(__file__).parents[1]
LONGEST_FILE = 500
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *sorted(
    str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")
))  # fmt: skip
EXTENSION_POINTS = {
    "an-architecture": "model/architectures",
    "a-mixer": "model/mixers",
    "an-op": "custom_ops",
    "a-provider": "export/providers",
    "a-quantiser": "export/quantize",
}


@cache
def tracked_files() -> tuple[str, ...]:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=True
    )
    return tuple(name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file())


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8", errors="replace")


def shell_lines(page: str) -> Iterator[str]:
    for block in re.findall(r"```sh\n(.*?)```", text_of(page), re.DOTALL):
        for line in block.splitlines():
            command = line.partition("  #")[0].strip()
            if command:
                yield command
    yield from re.findall(r"`(python \S[^`]*)`", text_of(page))


COMMANDS = [(page, line) for page in PAGES for line in shell_lines(page)]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[line for _, line in COMMANDS])
def test_a_command_in_the_documentation_exists(page: str, line: str) -> None:
    words = shlex.split(line)
    if words[0] == "edgewright":
        check_our_command(words[1:])
    elif words[0] == "make":
        assert re.search(rf"^{re.escape(words[1])}:", text_of("Makefile"), re.MULTILINE), line
    elif words[0] == "python":
        assert words[1] in tracked_files() or words[1] == "-m", line
    elif words[:2] == ["pip", "install"]:
        check_extras(words[2])
    else:
        assert words[0] in tracked_files(), f"{page}: what is `{line}`?"


def check_our_command(words: list[str]) -> None:
    context = click.Context(main)
    assert isinstance(main, click.Group)
    command = main.get_command(context, words[0])
    assert command is not None, words[0]
    known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    assert {word for word in words if word.startswith("-")} <= known


def check_extras(requirement: str) -> None:
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    found = re.fullmatch(r"edgewright\[([a-z,]+)\]", requirement)
    assert found, requirement
    assert set(found[1].split(",")) <= set(project["optional-dependencies"])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text_of(page)):
        if not target.startswith("https://"):
            assert ((ROOT / page).parent / target).exists(), target


def test_every_command_has_a_help_page() -> None:
    context = click.Context(main)
    assert isinstance(main, click.Group)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        assert command.help, name
        assert len(command.get_short_help_str(100)) > 10, name


@pytest.mark.parametrize("point", EXTENSION_POINTS)
def test_what_can_be_added_has_a_page(point: str) -> None:
    page = f"docs/adding-{point}.md"
    there = (ROOT / EXTENSION_POINTS[point]).is_dir()
    assert (ROOT / page).exists() == there, page
    assert (page in text_of("CONTRIBUTING.md")) == there, page


def test_the_readme_lists_the_architectures() -> None:
    listed = re.search(
        r"<!-- architectures.*?-->\n(.*?)<!-- /arch", text_of("README.md"), re.DOTALL
    )
    assert listed is not None
    found = {path.stem for path in (ROOT / "model/architectures").glob("[a-z]*.py")}
    assert set(re.findall(r"`(\w+)`", listed[1])) == found


def test_no_path_of_a_machine() -> None:
    pattern = re.compile(r"/(?:home|root|Users|work)/\w|/tmp/\w")
    for name in tracked_files():
        if not name.startswith("tests/"):
            assert not (found := pattern.search(text_of(name))), f"{name}: {found}"


def test_files_read_in_one_sitting() -> None:
    sources = [n for n in tracked_files() if n.endswith((".py", ".cc", ".h"))]
    lengths = {name: text_of(name).count("\n") for name in sources}
    assert not {name: count for name, count in lengths.items() if count > LONGEST_FILE}


def test_files_say_what_they_are_for() -> None:
    for name in tracked_files():
        text = text_of(name)
        if name.endswith(".py") and text.strip():
            assert text.startswith(('"""', "#!")), f"{name} opens without a docstring"


def test_nothing_is_left_to_do() -> None:
    words = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    for name in tracked_files():
        if name != "tests/test_repo.py":
            assert not (found := words.search(text_of(name))), f"{name}: {found}"


def test_no_room_for_leftovers() -> None:
    names = {"utils.py", "helpers.py", "common.py", "util.py", "misc.py"}
    assert not [name for name in tracked_files() if Path(name).name in names]


@pytest.mark.parametrize("room", ["artifacts", "runtime"])
def test_a_device_loads_neither_torch_nor_onnx(room: str) -> None:
    modules = [
        f"edgewright.{name.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}"
        for name in tracked_files()
        if name.startswith(f"{room}/") and name.endswith(".py")
    ]
    heavy = ("torch", "onnx", "onnx_ir", "onnxscript", "transformers", "safetensors", "ziglang")
    script = (
        f"import sys, importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
        f"print(sorted(set(sys.modules) & set({heavy!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_versions_agree() -> None:
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    assert version("edgewright") == project["version"]
    changes = re.findall(r"^## \[(.+?)\]", text_of("CHANGELOG.md"), re.MULTILINE)
    assert changes[0] == "Unreleased"
    assert changes[1:2] in ([], [project["version"]])


def test_the_licence_is_mit() -> None:
    assert text_of("LICENSE").startswith("MIT License")
