"""A shape goes in; its random checkpoint, and what each side runs of it, come out in one folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from peer_checkpoint import write_checkpoint
from peer_process import Peer, Peers
from peer_shapes import SHAPES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from edgewright.export import export_checkpoint

Report = Callable[[str], None]


class Models:
    """What is made is kept, and found again the next time; packages only if told so."""

    def __init__(
        self,
        folder: Path,
        size: str,
        name: str,
        python: Path,
        report: Report,
        keep_packages: bool = False,
    ) -> None:
        self.folder, self._python, self._report = folder, python, report
        self._keep_packages = keep_packages
        self._shape, self._name = SHAPES[size][name], name

    def checkpoint(self) -> Path:
        path = self.folder / "checkpoint"
        if not path.exists():
            self._report(f"{self._name}: writing a checkpoint ...")
            write_checkpoint(self._shape, path)
        return path

    def gguf(self) -> Path:
        path = self.folder / "f16.gguf"
        return self._made(path, "gguf", self.checkpoint(), "converting it to GGUF")

    def quantised_gguf(self, kind: str) -> Path:
        path = self.folder / f"{kind}.gguf"
        return self._made(path, "quantise", self.gguf(), f"llama.cpp's {kind} of it", type=kind)

    def _made(self, path: Path, what: str, source: Path, said: str, **more: str) -> Path:
        if not path.exists():
            self._report(f"{self._name}: {said} ...")
            partial = path.with_suffix(".part")
            order = {"kind": what, "model": str(source), "out": str(partial), **more}
            with Peers() as peers:
                peers.start(what, Peer(self._python, order))
            partial.rename(path)
        return path

    def package(self, cache_dtype: str, bits: float | None) -> Path:
        """Made anew each time, unless told otherwise: it is what is being worked on. Random
        weights need no text."""
        path = self.folder / ("package" if bits is None else f"package-{bits:g}")
        if self._keep_packages and path.exists():
            return path
        said = "" if bits is None else f" at {bits:g} bits"
        self._report(f"{self._name}: exporting it{said} ...")
        shutil.rmtree(path, ignore_errors=True)
        if bits is None:
            export_checkpoint(self.checkpoint(), path, cache_dtype=cache_dtype)
        else:
            export_checkpoint(
                self.checkpoint(), path, cache_dtype=cache_dtype, bits=bits, method="rtn"
            )
        return path

    def genai(self) -> Path:
        """By onnxruntime-genai's own builder, run here, where torch and transformers are: int4 in
        blocks of 32, int8 activations, and the last position's logits alone."""
        path = self.folder / "genai"
        if path.exists():
            return path
        self._report(f"{self._name}: onnxruntime-genai's int4 of it ...")
        with Peers() as peers:
            found = peers.start("genai", Peer(self._python, {"kind": "genai-folder"}))
            builder = Path(found.description) / "models" / "builder.py"
        partial, cache = path.with_suffix(".part"), self.folder / "genai-cache"
        shutil.rmtree(partial, ignore_errors=True)
        command = [sys.executable, str(builder), "-i", str(self._with_tokenizer())]
        command += ["-o", str(partial), "-c", str(cache), "-p", "int4", "-e", "cpu"]
        command += ["--extra_options", "accuracy_level=4", "block_size=32", "prune_lm_head=true"]
        ended = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
        if ended.returncode:
            raise SystemExit(f"onnxruntime-genai's builder failed:\n{ended.stderr[-2000:]}")
        partial.rename(path)
        shutil.rmtree(cache, ignore_errors=True)
        return path

    def _with_tokenizer(self) -> Path:
        """The builder asks for one; nobody uses it, and ours stays without."""
        path, source = self.folder / "checkpoint-with-tokenizer", self.checkpoint()
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        for file in source.iterdir():
            (path / file.name).symlink_to(file.absolute())
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocab = {letter: number for number, letter in enumerate(letters)}
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.save(str(path / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
        (path / "tokenizer_config.json").write_text(json.dumps(settings))
        return path
