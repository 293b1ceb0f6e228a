"""The reports of all environments go in; lines for a terminal, and a page of docs, come out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lab.judge import Report, Row

_HEAD = """# What runs where

Written by `make providers ARGS="--write docs/providers.md"`: five tiny models of random weights on
every execution provider that the lab installs ([provider-lab.md](provider-lab.md)), each case in a
process of its own, with nothing falling back to the processor. There is no device and no GPU among
them: Vulkan runs in software, DirectML and the kernels for Windows under Wine, QNN on its own
emulation of the HTP. They prove that graphs are taken whole and compute right; they say nothing of
speed.

- **error**: the farthest that a logit is from the reference's, over the greater of one and the
  deviation of the logits; in brackets, what is allowed. A prompt of 13 tokens is read, then 7 more
  one by one.
- At 16 bits the reference is transformers in float32, of the same float16 weights. What computes in
  float32 may err by 1e-4; what computes in float16, by twice what torch in float16 errs, and must
  choose the same token wherever that error cannot change the choice.
- Quantised, the reference is what the same bits give on this machine's processor in float32,
  without kernels of ours: 1e-2 may be between them, or in float16 what it may err at 16 bits.
- **tokens**: those generated greedily that are the reference's, before the first other one.
- **nodes**: those placed on the provider, prefill and decode graphs together; DirectML and QNN
  count what they joined. All are: an answer of which a node ran elsewhere is an error.
- **binary**: compiled ahead for the chip, and the seconds that took.
"""


def table(reports: Sequence[Report]) -> Iterator[str]:
    yield f"{'environment':16}cases right"
    for report in reports:
        if report.not_run:
            yield f"{report.environment:16}not run: {report.not_run}"
            continue
        right = sum(not row.wrong for row in report.rows)
        yield f"{report.environment:16}{right} of {len(report.rows)}"
        for row in report.rows:
            if row.wrong:
                case = f"{row.model}, {row.weights}, {row.variant}"
                yield f"{'':16}{case}: {row.wrong.splitlines()[0]}"
    rows = [row for report in reports for row in report.rows]
    wrong = sum(bool(row.wrong) for row in rows)
    missing = sum(bool(report.not_run) for report in reports)
    yield (
        f"lab: {len(rows) - wrong} right, {wrong} wrong;"
        f" {missing} of {len(reports)} environments not run"
    )


def page(reports: Sequence[Report]) -> str:
    return "\n".join([_HEAD, *(line for report in reports for line in _section(report))])


def _section(report: Report) -> Iterator[str]:
    yield f"## {report.environment}\n"
    if report.not_run:
        yield f"Not run: {report.not_run}\n"
        return
    binaries = any(row.compiled_bytes for row in report.rows)
    heads = ["model", "weights", "variant", "nodes", "error", "tokens"]
    if binaries:
        heads += ["binary", "compiled in"]
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in report.rows:
        cells = _cells(row)
        if binaries:
            cells += [f"{row.compiled_bytes / 1e6:.2f} MB", f"{row.compile_seconds:.1f} s"]
        yield f"| {' | '.join(cells)} |"
    yield ""


def _cells(row: Row) -> list[str]:
    names = [row.model, row.weights, f"`{row.variant}`"]
    if row.wrong and not row.nodes:
        return [*names, "", f"**{row.wrong.splitlines()[0]}**", ""]
    error = f"{row.error:.1e} ({row.allowed:.1e})"
    if row.wrong:
        error = f"**{error}**"
    return [*names, str(row.nodes), error, f"{row.agreed} of {row.tokens}"]
