"""What the lab can run here: each environment is installed if it can be, and runs models of one op,
which it must compute right or refuse.

    python -m lab.selftest [--only webgpu ...] [--folder FOLDER] [--json]

A part that cannot be installed is told as not run. What is installed stays, in this user's cache
folder; Debian's own packages go into the system.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from edgewright.artifacts.errors import EdgewrightError
from edgewright.artifacts.user_dirs import cache_dir
from lab import one_op
from lab.case import Answer, difference, write_case
from lab.environments import ENVIRONMENTS, Environment

# Sums of 64 products, each rounded to what the type holds.
WITHIN = {"float32": 1e-4, "float16": 8 * 2.0**-10}


@dataclass
class Report:
    """`not_run` is the reason, where there is one."""

    environment: str
    not_run: str = ""
    passed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=ENVIRONMENTS, help="these environments alone")
    parser.add_argument("--folder", type=Path, help="where the parts are, or are to be installed")
    parser.add_argument("--jobs", type=int, default=1, help="environments at a time")
    parser.add_argument("--json", action="store_true", help="the report for a program to read")
    options = parser.parse_args()
    root = options.folder or cache_dir() / "lab"
    with ThreadPoolExecutor(options.jobs) as pool:
        chosen = [ENVIRONMENTS[name] for name in options.only or ENVIRONMENTS]
        reports = list(pool.map(lambda environment: check(environment, root), chosen))
    if options.json:
        print(json.dumps([asdict(report) for report in reports], indent=2))
    else:
        print("\n".join(table(reports)))
    return 1 if any(report.failed for report in reports) else 0


def check(environment: Environment, root: Path) -> Report:
    report = Report(environment.name)
    print(f"lab: {environment.name}", file=sys.stderr, flush=True)
    try:
        folders = environment.prepare(root)
    except (EdgewrightError, OSError) as error:
        report.not_run = str(error)
        return report
    for name, dtype, case in cases(environment):
        with tempfile.TemporaryDirectory(prefix="edgewright-lab-") as scratch:
            folder = Path(scratch) / "case"
            external = (one_op.EXTERNAL,) if case.is_external else ()
            case.write(Path(scratch) / "model.onnx")
            write_case(folder, Path(scratch) / "model.onnx", case.inputs, external)
            answer = environment.run(folders, folder)
        computed = "float16" if environment.computes_in_float16 else dtype
        problem = judged(case, environment.can_fall_back, WITHIN[computed], answer)
        if problem:
            report.failed[name] = problem
        else:
            report.passed.append(name)
    return report


def cases(environment: Environment) -> Iterator[tuple[str, str, one_op.OneOp]]:
    for dtype in ("float32", "float16") if environment.has_float16 else ("float32",):
        for make in one_op.CASES:
            case = make(np.dtype(dtype))
            yield f"{case.op} {dtype}", dtype, case


def judged(case: one_op.OneOp, can_fall_back: bool, within: float, answer: Answer) -> str:
    """What is wrong with the answer, or nothing."""
    if case.is_processors_own and can_fall_back:
        if answer.is_refused:
            return ""
        return f"it was to be refused; {answer.error or 'it ran'}"
    if answer.error:
        return answer.error
    try:
        apart = difference(answer.outputs, {"y": case.wanted})
    except EdgewrightError as error:
        return str(error)
    return "" if apart <= within else f"{apart:.1e} away from what is right; {within:.1e} may be"


def table(reports: Sequence[Report]) -> Iterator[str]:
    yield f"{'environment':16}{'installed':12}cases passed"
    for report in reports:
        if report.not_run:
            yield f"{report.environment:16}{'not run':12}{report.not_run}"
            continue
        total = len(report.passed) + len(report.failed)
        yield f"{report.environment:16}{'yes':12}{len(report.passed)} of {total}"
        for name, problem in report.failed.items():
            yield f"{'':16}{name}: {problem.splitlines()[0]}"
    passed = sum(len(report.passed) for report in reports)
    failed = sum(len(report.failed) for report in reports)
    missing = sum(bool(report.not_run) for report in reports)
    yield f"lab: {passed} passed, {failed} failed; {missing} of {len(reports)} environments not run"


if __name__ == "__main__":
    sys.exit(main())
