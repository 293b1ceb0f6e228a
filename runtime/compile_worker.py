"""A graph and a provider go in; a context binary, read back once, and a report come out. Run in a
process of its own by runtime/compiling.py, because a plugin may end the one it is in."""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgewright.artifacts.errors import SessionError
from edgewright.runtime.execution_providers import execution_provider
from edgewright.runtime.ort import EXTERNAL_DATA, load_onnxruntime, one_line


def compile_graph(
    ort: Any, provider: str, graph: Path, root: Path, out: Path
) -> dict[str, str | float | dict[str, str]]:
    found = execution_provider(provider)
    if found is None or found.plugin is None:
        raise SessionError(f"{provider} compiles nothing ahead")

    def options(weights: Path | None = None) -> Any:
        made = ort.SessionOptions()
        made.log_severity_level = 4
        if weights is not None:
            made.add_session_config_entry(EXTERNAL_DATA, str(weights))
        found.add_to(ort, made, provider)
        return made

    began = time.perf_counter()
    compiler = ort.ModelCompiler(
        options(root), graph.read_bytes(), embed_compiled_data_into_model=False
    )
    compiler.compile_to_file(str(out))
    seconds = time.perf_counter() - began
    session = ort.InferenceSession(str(out), options(), enable_fallback=0)
    told = session.get_modelmeta().custom_metadata_map
    return {
        "seconds": seconds,
        "compatibility": told.get(f"ep_compatibility_info.{found.name}", ""),
        "versions": {
            "onnxruntime": ort.__version__,
            found.plugin.distribution: version(found.plugin.distribution),
        },
    }


def main() -> None:
    provider, graph, root, out, report = sys.argv[1:]
    try:
        said = compile_graph(load_onnxruntime(), provider, Path(graph), Path(root), Path(out))
    except Exception as error:  # whatever the plugin raises is the answer
        said = {"error": one_line(error)}
    Path(report).write_text(json.dumps(said))


if __name__ == "__main__":
    main()
