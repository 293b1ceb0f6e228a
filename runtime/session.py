"""A package goes in; tokens, logits and text come out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TypedDict, Unpack

import numpy as np

from edgewright.artifacts import Package
from edgewright.artifacts.errors import SessionError
from edgewright.artifacts.manifest import StaticSizes, Variant
from edgewright.runtime.budget import Budget
from edgewright.runtime.chat import ChatMessage, ChatTemplates
from edgewright.runtime.context import Context, Logits, check_fits
from edgewright.runtime.engine import Engine, Kernels, choose_variant
from edgewright.runtime.generation import Row, advance, make_ending, make_rows, make_seeds
from edgewright.runtime.package_text import open_chat, open_codec
from edgewright.runtime.sampling import Sampling
from edgewright.runtime.state import State
from edgewright.runtime.static_context import StaticContext
from edgewright.runtime.static_engine import StaticEngine
from edgewright.runtime.step_context import StepContext
from edgewright.runtime.text import TextCodec
from edgewright.runtime.token_input import (
    Ids,
    TokenRow,
    TokenRows,
    check_at_least_one,
    is_batch,
    parse_row,
    parse_rows,
)

PREFILL_CHUNK = 512
# What the logits of one chunk may take while every position's are wanted.
_LOGITS_CHUNK_BYTES = 64 << 20


class GenerateOptions(TypedDict, total=False):
    """What generate and stream take besides the prompt; see Session.generate."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | Sequence[int] | None
    stop: str | Sequence[str] | None
    stop_ids: int | Sequence[int] | None
    fresh: bool
    chunk: int


class Session:
    """One conversation, or one batch of them, with a model whose weights stay mapped.

    Forks share weights and threads; each has a state of its own and may run in its own thread.
    """

    def __init__(
        self,
        package: Package,
        engine: Engine | StaticEngine,
        context_limit: int,
        budget: Budget | None,
        variant_name: str,
    ) -> None:
        self.package = package
        self.variant_name = variant_name
        self.context_limit = context_limit
        self._engine = engine
        self._budget = budget
        self._context: Context | None = None
        self._codec: TextCodec | None = None
        self._chat: ChatTemplates | None = None

    @classmethod
    def open(
        cls,
        package: str | os.PathLike[str],
        provider: str | None = None,
        budget: Budget | None = None,
        *,
        capacity: int | None = None,
        threads: int | None = None,
        verify: bool = False,
        large_pages: bool = True,
    ) -> Session:
        """Graphs and libraries are hashed always, weights with `verify`.

        `capacity` is the context in tokens, the model's own unless given (beyond that a model is
        rarely any good); `threads` defaults to one for each physical core this process may use.
        """
        opened = Package.open(package, verify=verify)
        variant = choose_variant(opened, provider)
        limit = opened.manifest.model.max_context
        if capacity is not None:
            limit = check_at_least_one("capacity", capacity, "token")
        if variant.static is not None:
            limit = _fixed_limit(variant, variant.static, limit, asked=capacity is not None)
        if threads is not None:
            threads = check_at_least_one("threads", threads)
        if budget is not None and not isinstance(budget, Budget):
            raise SessionError(f"budget is {budget!r}; a Budget(memory_bytes) is required")
        opener = Engine if variant.static is None else StaticEngine
        engine = opener.open(opened, variant, threads, large_pages)
        return cls(opened, engine, limit, budget, variant.name)

    @property
    def kernels(self) -> Kernels:
        """ "native" with the package's op library, "portable" with the graph's function bodies."""
        return self._engine.kernels

    @property
    def threads(self) -> int:
        return self._engine.threads

    @property
    def vocab_size(self) -> int:
        return self._engine.vocab_size

    @property
    def tokens(self) -> list[list[int]]:
        """What the state holds, by row; empty before the first token."""
        return [] if self._context is None else [list(row) for row in self._context.tokens]

    @property
    def lengths(self) -> list[int]:
        return [] if self._context is None else self._context.lengths

    @property
    def state_bytes(self) -> int:
        """What the state's buffers take now."""
        return 0 if self._context is None else self._context.state_bytes

    def logits(self, ids: TokenRow | str, chunk: int | None = None) -> Logits:
        """Float32 [len(ids), vocab], from a fresh state; the session's own state is left alone."""
        row = self._prompt_row(ids)
        if not row.size:
            return np.empty((0, self.vocab_size), dtype=np.float32)
        return self._new_context(1).all_logits(row, self._logits_chunk(chunk))

    def logits_in_pieces(
        self,
        ids: TokenRow,
        start: int = 0,
        chunk: int | None = None,
        *,
        after: State | None = None,
    ) -> Iterator[Logits]:
        """What `logits` gives from the position `start` on, some rows [n, vocab] at a time.

        `after`: these tokens go on from a state of one row that snapshot gave.
        """
        row = self._prompt_row(ids)
        chunk = self._logits_chunk(chunk)
        context = self._new_context(1)
        if after is not None:
            self._check_resumable(after)
            if len(after.tokens) != 1:
                raise SessionError(f"the state has {len(after.tokens)} rows; one is required")
            context.restore(after)
        context.check_room([row.size])
        if start:
            context.prefill([row[:start]], PREFILL_CHUNK)
        for offset in range(start, row.size, chunk):
            yield context.all_logits(row[offset : offset + chunk], chunk)

    def prefill(
        self,
        ids: TokenRows | str | Sequence[str],
        lengths: Sequence[int] | None = None,
        *,
        chunk: int = PREFILL_CHUNK,
    ) -> Logits:
        """Continue the state with these tokens; the logits after each row's last [batch, vocab].

        Rows may differ in length; `lengths` cuts the padding off a rectangle. A row without tokens
        stays as it is, and its logits are NaN.
        """
        rows = self._prompt_rows(ids, lengths)
        chunk = check_at_least_one("chunk", chunk, "token")
        return self._context_for(len(rows)).prefill(rows, chunk)

    def decode(self, tokens: int | TokenRow) -> Logits:
        """Continue every row with one token; the logits after it [batch, vocab]."""
        row = parse_row([tokens] if isinstance(tokens, int) else tokens, self.vocab_size)
        if not row.size:
            raise SessionError("no tokens to decode; one a row is required")
        context = self._context_for(row.size)
        context.check_room([1] * row.size)
        return context.step(row.tolist()).copy()

    def generate(
        self,
        prompt: TokenRows | str | Sequence[str],
        max_new_tokens: int = 64,
        **options: Unpack[GenerateOptions],
    ) -> list[int] | list[list[int]]:
        """The new tokens of a prompt, or of each prompt of a batch; greedy unless told otherwise.

        A prompt is token ids, or text if the package has a tokenizer. The state starts fresh, or
        goes on with `fresh=False`; afterwards it holds everything but each row's last token.

        The context bounds it too: all but the last token must fit. Options: temperature, top_k,
        top_p and min_p, any of which turns sampling on (temperature 0 is greedy);
        repetition_penalty; seed, one for all rows or one for each; stop, strings that end a row
        (the token that completes one is the last); stop_ids (None: the checkpoint's end-of-text
        ids, (): none; the id that stops a row is the last); chunk, the tokens of a prefill step.
        """
        rows, steps = self._start(prompt, max_new_tokens, options, read_text=False)
        for _ in steps:
            pass
        return [row.tokens for row in rows] if is_batch(prompt) else rows[0].tokens

    def stream(
        self,
        prompt: TokenRow | str,
        max_new_tokens: int = 64,
        **options: Unpack[GenerateOptions],
    ) -> Iterator[str]:
        """The text of one prompt's new tokens, in pieces of whole characters, as they are made.

        It ends before a stop string and shows no stop id. Options as for generate. The prompt is
        checked and read before this returns.
        """
        if is_batch(prompt):
            raise SessionError("stream takes a single prompt; use generate for a batch")
        _, steps = self._start(prompt, max_new_tokens, options, read_text=True)
        return (pieces[0] for pieces in steps if pieces[0])

    def snapshot(self) -> State:
        """A copy of the state, of the part in use only."""
        return self._require_context().snapshot()

    def resume(self, state: State) -> None:
        """Take up a state that this package made, in this session or another."""
        self._check_resumable(state)
        context = self._new_context(len(state.tokens))
        context.restore(state)
        self._context = context

    def fork(self) -> Session:
        """A session with the same state that goes its own way, on the same weights."""
        twin = Session(
            self.package, self._engine, self.context_limit, self._budget, self.variant_name
        )
        twin._codec, twin._chat = self._codec, self._chat
        if self._context is not None:
            twin._context = self._context.copy()
        return twin

    def reset(self) -> None:
        """Forget every token; memory already taken is kept for the next ones."""
        if self._context is not None:
            self._context.clear()

    @property
    def codec(self) -> TextCodec:
        """The package's tokenizer."""
        if self._codec is None:
            self._codec = open_codec(self.package)
        return self._codec

    @property
    def chat(self) -> ChatTemplates:
        """The package's chat templates."""
        if self._chat is None:
            self._chat = open_chat(self.package)
        return self._chat

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of a text, with the tokens that the checkpoint puts at its ends."""
        return self.codec.encode(text, special)

    def encode_chat(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of a conversation, laid out by the checkpoint's chat template."""
        text = self.chat.render(messages, tools, add_generation_prompt=add_generation_prompt)
        return self.codec.encode(text, special=False)  # the template writes them itself

    def decode_text(self, ids: Sequence[int]) -> str:
        """The text of these ids, without special tokens."""
        return self.codec.decode(parse_row(ids, self.vocab_size).tolist())

    def _start(
        self,
        prompt: TokenRows | str | Sequence[str],
        max_new_tokens: int,
        options: GenerateOptions,
        read_text: bool,
    ) -> tuple[list[Row], Iterator[list[str]]]:
        """Check everything, read the prompt, and stand ready to take the first token."""
        unknown = set(options) - set(GenerateOptions.__annotations__)
        if unknown:
            raise TypeError(f"unknown option {sorted(unknown)[0]!r}; see Session.generate")
        sampling = Sampling(
            options.get("temperature"),
            options.get("top_k"),
            options.get("top_p"),
            options.get("min_p"),
            options.get("repetition_penalty"),
        )
        eos_ids = self.package.manifest.generation.eos_token_ids
        ending = make_ending(max_new_tokens, options.get("stop_ids"), options.get("stop"), eos_ids)
        chunk = check_at_least_one("chunk", options.get("chunk", PREFILL_CHUNK), "token")
        ids = self._prompt_rows(prompt, None)
        seeds = make_seeds(options.get("seed"), len(ids))
        codec = self.codec if read_text or ending.stops else None
        context = self._context_for_prompt(ids, options.get("fresh", True))
        logits = context.prefill(ids, chunk)
        rows = make_rows(context, sampling, seeds, ending, codec)
        return rows, advance(context, rows, logits)

    def _context_for_prompt(self, rows: Sequence[Ids], fresh: bool) -> Context:
        """Nothing is forgotten for the sake of a prompt that is then refused."""
        for index, row in enumerate(rows):
            if not row.size:
                raise SessionError(f"prompt {index} has no tokens; at least one is required")
            if fresh:
                check_fits(index, row.size, self.context_limit)
        return self._fresh_context(len(rows)) if fresh else self._context_for(len(rows))

    def _prompt_rows(
        self, ids: TokenRows | str | Sequence[str], lengths: Sequence[int] | None
    ) -> list[Ids]:
        if isinstance(ids, str):
            ids = [ids]
        if is_batch(ids) and isinstance(ids, Sequence) and isinstance(ids[0], str):
            ids = [self.codec.encode(text) for text in ids]  # type: ignore[arg-type]
        return parse_rows(ids, lengths, self.vocab_size)  # type: ignore[arg-type]

    def _prompt_row(self, ids: TokenRow | str) -> Ids:
        return parse_row(self.codec.encode(ids) if isinstance(ids, str) else ids, self.vocab_size)

    def _check_resumable(self, state: State) -> None:
        if not isinstance(state, State):
            raise SessionError(f"a state that snapshot gave is required, not {state!r:.60}")
        if state.fingerprint != self._engine.fingerprint:
            raise SessionError(
                "the state was made by another package or variant; resume it with the one it "
                "came from"
            )
        if max(state.lengths) > self.context_limit:
            raise SessionError(
                f"the state holds {max(state.lengths)} tokens, but this session's context "
                f"{self.context_limit}; open it with a larger capacity"
            )

    def _logits_chunk(self, chunk: int | None) -> int:
        if chunk is None:
            return max(1, min(PREFILL_CHUNK, _LOGITS_CHUNK_BYTES // (4 * self.vocab_size)))
        return check_at_least_one("chunk", chunk, "token")

    def _new_context(self, batch: int) -> Context:
        if isinstance(self._engine, StaticEngine):
            return StaticContext(self._engine, batch, self.context_limit, self._budget)
        return StepContext(self._engine, batch, self.context_limit, self._budget)

    def _fresh_context(self, batch: int) -> Context:
        if self._context is not None and self._context.batch == batch:
            self._context.clear()
        else:
            self._context = self._new_context(batch)
        return self._context

    def _context_for(self, batch: int) -> Context:
        """The current context; a new one where none holds tokens yet."""
        if self._context is None or (self._context.batch != batch and not any(self.lengths)):
            self._context = self._new_context(batch)
        if self._context.batch != batch:
            raise SessionError(
                f"{batch} rows for a state of {self._context.batch}; pass as many, or reset first"
            )
        return self._context

    def _require_context(self) -> Context:
        if self._context is None:
            raise SessionError("the session has no state yet; prefill or decode first")
        return self._context


def _fixed_limit(variant: Variant, sizes: StaticSizes, limit: int, asked: bool) -> int:
    if asked and limit > sizes.capacity:
        raise SessionError(
            f"variant {variant.name} holds {sizes.capacity} tokens, fixed when it was exported; a"
            f" capacity of {limit} is too large"
        )
    return min(limit, sizes.capacity)
