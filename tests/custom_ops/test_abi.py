"""native/abi.h against ONNX Runtime's official header, where that is to be had; and the slots of
the lab's driver for Windows.

The header is taken from $EDGEWRIGHT_ORT_INCLUDE, from the system, or from Debian's package, which
apt downloads into a folder of its own with lists of its own; the system is never touched.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "custom_ops"
LAB_DRIVER = ROOT.parent / "lab/runners/ort_case.cc"
HEADER = "onnxruntime_c_api.h"
SOURCE = "http://deb.debian.org/debian trixie main"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# Our names for the fields of OrtCustomOp, in the header's order, follow from its own.
CHECK = """
#include <cstddef>
#include "onnxruntime_c_api.h"
#include "native/abi.h"
#define EDGE_SLOT(name, slot, ...) \\
  static_assert(offsetof(OrtApi, name) == edge::slots::name * sizeof(void*), #name);
EDGE_SLOTS(EDGE_SLOT)
%s
#define FIELD(theirs, ours) \\
  static_assert(offsetof(OrtCustomOp, theirs) == offsetof(edge::CustomOp, ours), #theirs);
%s
static_assert(sizeof(OrtCustomOp) >= sizeof(edge::CustomOp));
static_assert(offsetof(OrtApiBase, GetApi) == offsetof(edge::ApiBase, get_api));
#define ENUM(theirs, ours) static_assert(int(theirs) == int(edge::ours), #theirs);
ENUM(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ElementType::kFloat32)
ENUM(ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, ElementType::kUint8)
ENUM(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, ElementType::kInt8)
ENUM(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, ElementType::kInt32)
ENUM(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, ElementType::kInt64)
ENUM(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, ElementType::kFloat16)
ENUM(ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, ElementType::kBfloat16)
ENUM(ORT_FAIL, ErrorCode::kFail)
ENUM(ORT_INVALID_ARGUMENT, ErrorCode::kInvalidArgument)
ENUM(INPUT_OUTPUT_REQUIRED, ElementType::kUndefined)
"""


def fields() -> str:
    text = (ROOT / "native" / "abi.h").read_text()
    body = text[text.index("struct CustomOp {") : text.index("// EDGE_SLOT(name")]
    ours = re.findall(r"\(\*(\w+)\)\(", body)
    assert len(ours) == 25
    return "\n".join(f"FIELD({theirs(name)}, {name})" for name in ours)


def lab_slots() -> str:
    slots = re.findall(r"LAB_SLOT\((\w+), (\d+),", LAB_DRIVER.read_text())
    assert len(slots) == 12
    return "\n".join(
        f'static_assert(offsetof(OrtApi, {name}) == {slot} * sizeof(void*), "{name}");'
        for name, slot in slots
    )


def theirs(name: str) -> str:
    camel = "".join(word.capitalize() for word in name.split("_"))
    return {"InferOutputShape": "InferOutputShapeFn"}.get(camel, camel)


def find_header(folder: Path) -> Path:
    given = os.environ.get("EDGEWRIGHT_ORT_INCLUDE")
    for place in (given, "/usr/include/onnxruntime", "/usr/local/include/onnxruntime"):
        if place and (Path(place) / HEADER).is_file():
            return Path(place)
    return download_header(folder)


def download_header(folder: Path) -> Path:
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb") and KEYRING.is_file()):
        pytest.skip(f"no {HEADER} on this machine, and no Debian tools to get it with")
    for name in ("lists/partial", "cache/archives/partial", "parts"):
        (folder / name).mkdir(parents=True)
    source = f"deb [signed-by={KEYRING}] {SOURCE}\n"
    (folder / "parts" / "trixie.list").write_text(source)
    options = {
        "Dir::Etc::SourceList": "/dev/null",
        "Dir::Etc::SourceParts": str(folder / "parts"),
        "Dir::State::Lists": str(folder / "lists"),
        "Dir::Cache": str(folder / "cache"),
        "APT::Sandbox::User": "root",
        "Acquire::Retries": "0",
        "Acquire::http::Timeout": "10",
    }
    flags = [flag for item in options.items() for flag in ("-o", "=".join(item))]
    for command in (["update"], ["download", "libonnxruntime-dev"]):
        done = subprocess.run(
            ["apt-get", *flags, *command], cwd=folder, capture_output=True, text=True, check=False
        )
        packages = list(folder.glob("libonnxruntime-dev*.deb"))
        if done.returncode or (command[0] == "download" and not packages):
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            pytest.skip(f"no {HEADER} on this machine, and apt-get {command[0]} says: {reason}")
    subprocess.run(["dpkg-deb", "-x", packages[0], folder / "package"], check=True)
    return folder / "package" / "usr" / "include" / "onnxruntime"


def test_our_header_says_what_the_official_one_says(tmp_path: Path) -> None:
    compiler = next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), None)
    if compiler is None:
        pytest.skip("no C++ compiler with a standard library on this machine")
    include = find_header(tmp_path)
    source = tmp_path / "check.cc"
    source.write_text(CHECK % (lab_slots(), fields()))
    command = [compiler, "-std=c++20", "-fsyntax-only", f"-I{include}", f"-I{ROOT}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
