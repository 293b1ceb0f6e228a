"""Five tiny models on every execution provider that can be installed here, each case in a process
of its own, with nothing falling back, against PyTorch.

    python -m lab.providers [--only webgpu ...] [--models llama ...] [--write docs/providers.md]

What an environment needs and cannot be installed is told as not run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path

from edgewright.artifacts.errors import EdgewrightError
from edgewright.artifacts.user_dirs import cache_dir
from lab.environments import ENVIRONMENTS, Environment, Folders
from lab.judge import Report, Row, judged
from lab.models import MODELS, PROMPT, WEIGHTS, Made, make
from lab.page import page, table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=ENVIRONMENTS, help="these environments alone")
    parser.add_argument("--models", nargs="+", choices=MODELS, help="these models alone")
    parser.add_argument("--folder", type=Path, help="where the parts are, or are to be installed")
    parser.add_argument("--jobs", type=int, default=1, help="environments at a time")
    parser.add_argument("--write", type=Path, help="write the page of results here")
    parser.add_argument("--json", action="store_true", help="the report for a program to read")
    options = parser.parse_args()
    root = options.folder or cache_dir() / "lab"
    chosen = [ENVIRONMENTS[name] for name in options.only or ENVIRONMENTS]
    with tempfile.TemporaryDirectory(prefix="edgewright-lab-") as scratch:
        models = made(list(options.models or MODELS), chosen, Path(scratch), options.jobs)
        with ThreadPoolExecutor(options.jobs) as pool:
            reports = list(pool.map(lambda each: check(each, models, root), chosen))
    if options.write is not None:
        options.write.write_text(page(reports))
    if options.json:
        print(json.dumps([asdict(report) for report in reports], indent=2))
    else:
        print("\n".join(table(reports)))
    return 1 if any(row.wrong for report in reports for row in report.rows) else 0


def made(
    names: Sequence[str], environments: Sequence[Environment], folder: Path, jobs: int
) -> list[Made]:
    providers = {
        weights: sorted({name for each in environments for name in each.variants[weights]})
        for weights in WEIGHTS
    }
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return list(pool.map(make, names, [providers] * len(names), [folder] * len(names)))


def check(environment: Environment, models: Sequence[Made], root: Path) -> Report:
    report = Report(environment.name)
    print(f"lab: {environment.name}", file=sys.stderr, flush=True)
    try:
        folders = environment.prepare(root)
    except (EdgewrightError, OSError) as error:
        report.not_run = str(error)
        return report
    for model in models:
        for weights in WEIGHTS:
            for provider in environment.variants[weights]:
                row = Row(environment.name, MODELS[model.name], weights, provider)
                try:
                    row = _case(environment, folders, model, row)
                except EdgewrightError as error:
                    row = replace(row, wrong=str(error))
                report.rows.append(row)
    return report


def _case(environment: Environment, folders: Folders, model: Made, row: Row) -> Row:
    answer = environment.run_package(
        folders, model.packages[row.weights], row.variant, model.ids, PROMPT
    )
    return judged(row, answer, model.wanted[row.weights, row.variant])


if __name__ == "__main__":
    sys.exit(main())
