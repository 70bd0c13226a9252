"""A model with its tokenizer and chat format: what every measurement is made through."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from rolelens import forward
from rolelens.chat import ChatFormat
from rolelens.display import Card, Shown
from rolelens.errors import InputError
from rolelens.forward import Batch, Hook, HookedModel, Hooks, Pick, Tokens
from rolelens.vectors import RoleVectors, Source


class Lens(Shown):
    """A TransformerLens model, its tokenizer and its chat format.

    Attributes:
        model: the TransformerLens model itself.
        chat: how prompts are rendered.
        positions: post-instruction positions, counted from the end: the template's tokens after
            the instruction.
        source: what vectors measured with this lens are recorded with.
    """

    def __init__(
        self, model: HookedModel, *, name: str | None = None, origin: str | None = None
    ) -> None:
        if getattr(model, "tokenizer", None) is None:
            raise InputError("the model has no tokenizer; set model.tokenizer first.")
        self.model = model
        self.name = name or str(model.cfg.model_name)
        self.chat = ChatFormat(model.tokenizer, self.name)
        forward.probe(model)
        self.positions = tuple(range(-self.chat.n_post, 0))
        self.source = Source(
            model=self.name,
            origin=origin or self.name,
            weights=forward.fingerprint(model),
            model_class=type(model).__name__,
            centred=forward.is_centred(model),
            dtype=str(self.dtype).removeprefix("torch."),
            template=self.chat.sha,
            version=version("rolelens"),
        )

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self.model.tokenizer

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return int(self.model.cfg.n_layers)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.model.cfg.d_model)

    @property
    def n_ctx(self) -> int:
        """Context length, in tokens."""
        return int(self.model.cfg.n_ctx)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        dtype: torch.dtype = self.model.unembed.W_U.dtype
        return dtype

    @property
    def content(self) -> str:
        """Hash of a sample of the weights as they are now, for what must not mix two models."""
        return forward.content(self.model)

    def adopt(self, vectors: RoleVectors) -> RoleVectors:
        """Take vectors of another model of the same shape as if they were of this one.

        Vectors of an instruct model can so be tried on its base model. Nothing says that a
        direction means the same in both: that is what is then measured.

        Raises:
            InputError: the widths or numbers of layers differ, or the centring of the weights.
        """
        theirs = vectors.source
        if vectors.d_model != self.d_model or max(vectors.layers) >= self.n_layers:
            raise InputError(
                f"the vectors are {vectors.d_model} wide and reach layer {max(vectors.layers)}, "
                f"and {self.name} is {self.d_model} wide with {self.n_layers} layers; take vectors "
                "of a model of the same shape."
            )
        if theirs is not None and theirs.centred != self.source.centred:
            raise InputError(
                f"the writing weights of {theirs.model} and {self.name} are not both centred; load "
                "both alike."
            )
        where = f"{vectors.contrast}, in {theirs.model if theirs else 'another model'}"
        return dataclasses.replace(vectors, source=self.source, contrast=where)

    def tokenize(
        self,
        prompts: Sequence[str],
        answers: Sequence[str] | None = None,
        *,
        system: str | Sequence[str] | None = None,
        raw: bool = False,
    ) -> Tokens:
        """Render prompts in the chat format and tokenize them.

        Args:
            prompts: what the user says.
            answers: an answer to each, appended where the model's own would begin.
            system: a system prompt for all of them, or one for each.
            raw: take the prompts as texts that stand alone, without the chat format.

        Raises:
            InputError: no prompts, something that is not a text, or a prompt that does not fit
                into the context; raw prompts with answers or a system prompt.
        """
        if isinstance(prompts, str):
            raise InputError(f"prompts is the text {prompts[:40]!r}; pass a list of texts.")
        if len(prompts) == 0:
            raise InputError("there are no prompts; pass at least one.")
        for prompt in prompts:
            if not isinstance(prompt, str) or not prompt.strip():
                raise InputError(f"{prompt!r} is not a prompt; every prompt has to be a text.")
        if raw:
            if answers is not None or system is not None:
                raise InputError(
                    "raw prompts have no answers and no system prompt; leave them out."
                )
            ids = [self.chat.raw_ids(prompt) for prompt in prompts]
            lengths = [len(sequence) for sequence in ids]
        elif answers is None:
            pairs = zip(prompts, _each(system, len(prompts)), strict=True)
            ids = [self.chat.ids(prompt, own) for prompt, own in pairs]
            lengths = [len(sequence) for sequence in ids]
        else:
            triples = zip(prompts, answers, _each(system, len(prompts)), strict=True)
            both = [self.chat.ids_with_answer(p, a, own) for p, a, own in triples]
            ids, lengths = [whole for whole, _ in both], [start for _, start in both]
        for prompt, sequence in zip(prompts, ids, strict=True):
            if len(sequence) > self.n_ctx:
                raise InputError(
                    f"the prompt {prompt[:40]!r}... has {len(sequence)} tokens and {self.name} "
                    f"reads at most {self.n_ctx}; shorten it."
                )
        return Tokens(tuple(ids), tuple(lengths), 0 if raw else self.chat.n_post, self.source)

    @contextmanager
    def steered(self, hooks: Sequence[Hook]) -> Iterator["Lens"]:
        """Steer every call made inside this context, raw calls of ``lens.model`` included."""
        if callable(hooks):
            raise InputError("row-wise hooks need rows; pass them as hooks= of a call instead.")
        with self.model.hooks(fwd_hooks=list(hooks)):
            yield self

    def generate(
        self,
        prompts: Sequence[str],
        *,
        hooks: Hooks = (),
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        system: str | Sequence[str] | None = None,
        begun: str = "",
        raw: bool = False,
        cache: bool = True,
    ) -> list[str]:
        """Answer each prompt.

        Args:
            prompts: what the user says.
            hooks: steering, from ``rl.add``, ``rl.ablate`` or ``rl.add_rows``.
            max_new_tokens: length of an answer at most, in tokens.
            temperature: 0 is greedy.
            top_p: nucleus, for temperatures above 0.
            seed: of the sampling; an answer depends on its place in the list, not on the others.
            system: a system prompt for all of them, or one for each.
            begun: how every answer begins; steered as generated, and not part of what is returned.
            raw: continue the prompts as texts that stand alone, without the chat format.
            cache: keep keys and values between tokens; the text is the same without, and slower.

        Returns:
            The answers, without the prompts.
        """
        begins = [begun] * len(prompts) if begun else None
        tokens = self.tokenize(prompts, begins, system=system, raw=raw)
        pairs = zip(tokens.ids, tokens.prompt_lengths, strict=True)
        if len({len(ids) - length for ids, length in pairs}) > 1:
            raise InputError(
                f"begun is {begun!r}, which is not the same tokens after every prompt; begin it "
                "with a new line, or answer the prompts one by one."
            )
        answers = [""] * len(prompts)
        mixed = cache and self._mixes(tokens, hooks, max_new_tokens)
        budget = forward.GENERATED_BUDGET
        for batch in forward.batches(tokens, budget, same_prompt_length=not mixed):
            pick = _picker(temperature, top_p, seed, batch.rows)
            steps = self._decode(batch, hooks, max_new_tokens, pick, cache)
            done = torch.stack(list(steps), dim=1).tolist()
            for i, ids in zip(batch.rows.tolist(), done, strict=True):
                answers[i] = self._text(ids)
        return answers

    def stream(
        self,
        prompt: str,
        *,
        hooks: Hooks = (),
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        system: str | None = None,
    ) -> Iterator[str]:
        """Answer one prompt piece by piece; arguments as for :meth:`generate`."""
        batch = forward.batches(self.tokenize([prompt], system=system))[0]
        pick = _picker(temperature, top_p, seed, batch.rows)
        ids: list[int] = []
        shown = ""
        for step in self._decode(batch, hooks, max_new_tokens, pick, cache=True):
            ids.append(int(step[0]))
            text = self._text(ids)
            # A character of several tokens is not whole before its last token.
            if not text.endswith("\ufffd"):
                yield text[len(shown) :]
                shown = text

    def card(self) -> Card:
        """Model, size, positions, dtype."""
        facts = {
            "model": self.name,
            "layers": str(self.n_layers),
            "d_model": str(self.d_model),
            "post-instruction positions": f"{self.positions[0]} to -1",
            "dtype": self.source.dtype,
        }
        return Card("Lens", facts, "rl.role_vectors(lens, rl.load_roles(), rl.load_base())")

    def _mixes(self, tokens: Tokens, hooks: Hooks, max_new_tokens: int) -> bool:
        """Whether prompts of several lengths can be answered together."""
        lengths = [len(ids) for ids in tokens.ids]
        room = max(lengths) + max_new_tokens <= self.n_ctx
        return len(set(lengths)) > 1 and room and forward.mixes(self.model, hooks)

    def _decode(
        self,
        batch: Batch,
        hooks: Hooks,
        max_new_tokens: int,
        pick: Pick,
        cache: bool,
    ) -> Iterator[Int[Tensor, " row"]]:
        """Decode until every row has ended, or there is no more room."""
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {max_new_tokens}; it has to be 1 or more.")
        stop = torch.tensor(sorted(self._stop_ids()))
        room = min(max_new_tokens, self.n_ctx - batch.ids.shape[1])
        if room < 1:
            raise InputError(
                f"a prompt of {batch.ids.shape[1]} tokens fills the context of {self.name}, which "
                "leaves no room for an answer; shorten it."
            )
        return forward.decode(
            self.model, batch, pick, max_new_tokens=room, stop=stop, hooks=hooks, cache=cache
        )

    def _stop_ids(self) -> set[int]:
        """Tokens that end an answer: the tokenizer's, the model's and the template's own."""
        flat = forward.end_ids(self.model)
        if self.tokenizer.eos_token_id is not None:
            flat.add(int(self.tokenizer.eos_token_id))
        end_of_turn = self.chat.ids("a")[-self.chat.n_post]
        if end_of_turn in self.tokenizer.all_special_ids:
            flat.add(end_of_turn)
        return flat

    def _text(self, ids: list[int]) -> str:
        stop = self._stop_ids()
        end = next((n for n, i in enumerate(ids) if i in stop), len(ids))
        return str(self.tokenizer.decode(ids[:end], skip_special_tokens=True)).strip()


def _each(system: str | Sequence[str] | None, n: int) -> list[str | None]:
    """The system prompt of each of n prompts."""
    if system is None or isinstance(system, str):
        return [system] * n
    if len(system) != n:
        raise InputError(f"{n} prompts and {len(system)} system prompts do not pair up.")
    return list(system)


def _picker(temperature: float, top_p: float, seed: int, rows: Int[Tensor, " row"]) -> Pick:
    """Greedy, or sampling with one random stream a row."""
    if temperature < 0 or not 0 < top_p <= 1:
        raise InputError(
            f"temperature is {temperature} and top_p is {top_p}; temperature has to be 0 (greedy) "
            "or above, and top_p above 0 and at most 1."
        )
    temperature = float(temperature)
    if temperature == 0:
        return lambda logits, going: logits.argmax(dim=-1)
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    streams = [torch.Generator().manual_seed(seed * 1_000_003 + row) for row in rows.tolist()]
    warpers = [TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)]

    def sample(logits: Tensor, going: Tensor) -> Tensor:
        for warper in warpers:
            logits = warper(None, logits)
        shares = logits.softmax(dim=-1).cpu()
        drawn = [
            torch.multinomial(share, 1, generator=streams[row])
            for share, row in zip(shares, going.tolist(), strict=True)
        ]
        return torch.cat(drawn).to(logits.device)

    return sample
