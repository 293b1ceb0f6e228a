"""EleutherAI's lm-evaluation-harness drives a package: its requests go in, their answers come out.

    pip install 'edgewright[cpu,harness]'
    python -m edgewright.runtime.harness run --model edgewright \\
        --model_args package=PATH,threads=2 --tasks arc_easy

This is the harness's own command with one more model. Importing this module does the same for
`lm_eval.simple_evaluate(model="edgewright", ...)`. Neither needs PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from edgewright.artifacts.errors import SessionError
from edgewright.runtime.context import Logits
from edgewright.runtime.session import GenerateOptions, Session
from edgewright.runtime.state import State
from edgewright.runtime.text import leading_tokens

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ImportError as error:
    raise SessionError(
        f"lm-evaluation-harness cannot be imported ({error}); install it with pip install "
        "'edgewright[harness]'"
    ) from error

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

DEFAULT_NEW_TOKENS = 256
# What the harness calls our options of sampling.
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")

Answer = tuple[float, bool]  # log-likelihood in nats, and whether greedy decoding would say it
Scored = tuple[tuple[str, str] | None, list[int], list[int]]  # texts, context ids, continuation ids


@register_model("edgewright")
class PackageLM(TemplateLM):  # type: ignore[misc, unused-ignore]
    """`package` is its path; `max_length` is the context, the package's own unless given."""

    def __init__(
        self,
        package: str,
        provider: str | None = None,
        threads: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = DEFAULT_NEW_TOKENS,
        batch_size: int | str | None = None,  # one request at a time, whatever it is
        max_batch_size: int | None = None,
        device: str | None = None,  # the command passes cuda:0 unasked; a variant is what decides
    ) -> None:
        super().__init__()
        self.session = Session.open(package, provider, threads=threads, capacity=max_length)
        self.max_length = self.session.context_limit
        self.max_gen_toks = max_gen_toks
        self.batch_size = 1
        self._prefix = list(leading_tokens(self.session.codec))

    @property
    def eot_token_id(self) -> int:
        ids = self.session.package.manifest.generation.eos_token_ids
        if not ids:
            raise SessionError("the package names no token that ends a text; tasks need one")
        return int(ids[0])

    @property
    def prefix_token_id(self) -> int:
        """What a text without a context follows: the tokenizer's own first token if it has one."""
        return self._prefix[0] if self._prefix else self.eot_token_id

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: object
    ) -> list[int]:
        """With what the tokenizer puts before a text, once; never with what it puts after."""
        ids = self.session.encode(string, special=False)
        if add_special_tokens is False or ids[: len(self._prefix)] == self._prefix:
            return ids
        return self._prefix + ids

    def _loglikelihood_tokens(
        self, requests: list[Scored], disable_tqdm: bool = False, **_: object
    ) -> list[Answer]:
        """Requests with the same context, as a question's answers have it, read it once."""
        cut = [self._cut(context, continuation) for _, context, continuation in requests]
        order = sorted(range(len(cut)), key=lambda number: cut[number][0])
        answers: list[Answer] = [(0.0, True)] * len(cut)
        with tqdm(total=len(cut), desc="log-likelihoods", disable=disable_tqdm) as bar:
            for context, numbers in groupby(order, key=lambda number: cut[number][0]):
                group = list(numbers)
                continuations = [cut[number][1] for number in group]
                scored = self._scores(context, continuations)
                for number, answer in zip(group, scored, strict=True):
                    answers[number] = answer
                    if (texts := requests[number][0]) is not None:
                        self.cache_hook.add_partial("loglikelihood", texts, answer)
                    bar.update()
        return answers

    def _cut(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[list[int], ...]:
        """To the last tokens that fit; the last one of all is only predicted."""
        if not context:
            raise SessionError("a continuation without any context cannot be scored")
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            raise SessionError(
                f"a continuation of {len(continuation)} tokens does not fit in a context of "
                f"{self.max_length}"
            )
        return list(context[-room:]), list(continuation)

    def _scores(
        self, context: list[int], continuations: Sequence[Sequence[int]]
    ) -> Iterator[Answer]:
        """The context is read once; what follows it, from its state."""
        self.session.reset()
        first = self.session.prefill([context])
        longer = any(len(each) > 1 for each in continuations)
        state = self.session.snapshot() if longer else None
        for continuation in continuations:
            score, greedy, at = 0.0, True, 0
            for piece in self._pieces(first, continuation, state):
                targets = continuation[at : at + len(piece)]
                gained, same = _score(piece, targets)
                score, greedy, at = score + gained, greedy and same, at + len(piece)
            yield score, greedy

    def _pieces(
        self, first: Logits, continuation: Sequence[int], state: State | None
    ) -> Iterator[Logits]:
        """The context's last logits tell the first token, the continuation's own the others."""
        if continuation:
            yield first
        if len(continuation) > 1:
            yield from self.session.logits_in_pieces(list(continuation[:-1]), after=state)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Of whole texts, in windows of the context as the harness cuts them for every model."""
        found = []
        for (text,) in tqdm([each.args for each in requests], disable=disable_tqdm):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            scored = [(None, *make_disjoint_window(window)) for window in windows]
            total = sum(score for score, _ in self._loglikelihood_tokens(scored, disable_tqdm=True))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            found.append(total)
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        made = []
        for context, asked in tqdm([each.args for each in requests], disable=disable_tqdm):
            options = normalize_gen_kwargs(asked, self.max_gen_toks)
            count = min(int(options["max_gen_toks"]), self.max_length - 1)
            ids = self.tok_encode(context)[-(self.max_length - count) :] or [self.prefix_token_id]
            text = "".join(self.session.stream(ids, count, **_sampling(options)))
            self.cache_hook.add_partial("generate_until", (context, asked), text)
            made.append(text)
        return made

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return self.session.chat.render(chat_history, add_generation_prompt=add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The harness only tells results apart by it; the manifest's hash does as well."""
        tokenizer = self.session.package.manifest.tokenizer
        if not chat_template or tokenizer is None or not tokenizer.chat_templates:
            return ""
        files = self.session.package.manifest.files
        return files[tokenizer.chat_templates["default"]].sha256

    @property
    def tokenizer_name(self) -> str:
        tokenizer = self.session.package.manifest.tokenizer
        assert tokenizer is not None  # the codec is open
        return self.session.package.manifest.files[tokenizer.definition].sha256

    def get_model_info(self) -> dict[str, object]:
        """Into the results that the harness writes."""
        model = self.session.package.manifest.model
        return {
            "model_num_parameters": model.parameters,
            "bits_per_weight": model.bits_per_weight,
            "variant": self.session.variant_name,
            "kernels": self.session.kernels,
        }


def _score(logits: Logits, targets: Sequence[int]) -> Answer:
    """logits [n, vocab], one target a row."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    chosen = wide[np.arange(len(wide)), list(targets)]
    score = float((chosen - np.log(np.exp(wide).sum(-1))).sum())
    if math.isnan(score):
        raise SessionError("the package gave logits that are not numbers")
    return score, bool((wide.argmax(-1) == list(targets)).all())


def _sampling(options: dict[str, Any]) -> GenerateOptions:
    """Greedy unless the task says do_sample, as the harness has it for every model."""
    found: GenerateOptions = {"stop": [text for text in options["until"] if text]}
    if options.get("do_sample"):
        for name in _SAMPLING:
            if options.get(name) is not None:
                found[name] = options[name]  # type: ignore[literal-required]
    return found


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
