"""A model with its tokenizer and chat format: what every measurement is made through."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rolelens import forward
from rolelens.chat import ChatFormat, Prompt, conversation
from rolelens.display import Card, Shown
from rolelens.errors import InputError
from rolelens.forward import Batch, Hook, HookedModel, Hooks, Pick, Tokens
from rolelens.vectors import Directions, Source

Prompts: TypeAlias = Sequence[Prompt] | Tokens
"""Texts, conversations, or what :meth:`Lens.encode` made of them."""


class Lens(Shown):
    """A TransformerLens model, its tokenizer and its chat format.

    Attributes:
        model: the TransformerLens model itself.
        chat: how prompts are rendered.
        positions: post-instruction positions, counted from the end: the template's tokens after
            the instruction; the last position alone where it puts none there.
        source: what vectors measured with this lens are recorded with.
        loaded: the arguments of :func:`rolelens.load` that load the model again; None of a model
            that was given in memory.
    """

    loaded: Mapping[str, Any] | None = None

    def __init__(
        self,
        model: HookedModel,
        *,
        name: str | None = None,
        origin: str | None = None,
        template: str | None = None,
    ) -> None:
        """Take a model.

        Args:
            model: a TransformerLens model with its tokenizer.
            name: what it is called.
            origin: where its weights come from.
            template: a Jinja chat template in place of the tokenizer's; ``"text"``: prompts are put
                as they are, as to a base model.

        Raises:
            InputError: there is no tokenizer, the template fails, the model is in training mode and
                drops some of its activations at random, or its weights are offloaded.
        """
        if getattr(model, "tokenizer", None) is None:
            raise InputError("the model has no tokenizer; set model.tokenizer first.")
        self.model = model
        self.name = name or str(model.cfg.model_name)
        if getattr(getattr(model, "original_model", None), "training", False):
            raise InputError(
                f"{self.name} is in training mode, in which dropout changes activations at random; "
                "call model.eval() first."
            )
        if forward.is_offloaded(model):
            raise InputError(
                f"weights of {self.name} are offloaded and only put in place while their block "
                "runs, so that nothing else can read them; load it on devices that hold it, or "
                "quantised."
            )
        self.chat = ChatFormat(model.tokenizer, self.name, template)
        forward.probe(model)
        self.positions = positions_of(self.chat.n_post)
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
    def token_budget(self) -> int | None:
        """Tokens of one batch, padding included; None, the default: as many as memory holds.

        Scores do not depend on it but in the last digits. That is 2048 on a CPU, which keeps a few
        cores busy, and 16384 on a GPU, or fewer where half of the free memory holds fewer. A batch
        that does not fit is cut in half all the same. Answers are generated from four times as
        many tokens of prompts, as a step has one token a prompt.
        """
        return forward.chosen_token_budget(self.model)

    @token_budget.setter
    def token_budget(self, tokens: int | None) -> None:
        forward.choose_token_budget(self.model, tokens)

    @property
    def content(self) -> str:
        """Hash of a sample of the weights as they are now, for what must not mix two models."""
        return forward.content(self.model)

    def adopt(self, vectors: Directions) -> Directions:
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

    def encode(
        self,
        prompts: Prompts,
        answers: Sequence[str] | None = None,
        *,
        system: str | Sequence[str] | None = None,
        raw: bool = False,
        template_args: Mapping[str, Any] | None = None,
    ) -> Tokens:
        """Render prompts in the chat format and tokenize them: the one way into the model.

        Args:
            prompts: texts that the user says, or conversations, each a list of messages
                ``{"role": "system" | "user" | "assistant", "content": text}``. One that ends with
                the assistant's turn is a prompt with this turn as its answer. What was encoded
                before is taken as it is.
            answers: an answer to each, appended where the model's own would begin.
            system: a system prompt for all of them, or one for each.
            raw: take the prompts as texts that stand alone, without the chat format. A text that
                begins with a beginning-of-sequence token gets no second one.
            template_args: what the chat template is told besides, such as
                ``{"enable_thinking": False}``.

        Raises:
            InputError: no prompts, something that is neither a text nor a conversation, a text
                that is in the chat format already, or a prompt that does not fit into the context;
                a message that the template leaves out; raw prompts with answers or a system prompt.
        """
        if isinstance(prompts, Tokens):
            if answers is not None or system is not None or raw or template_args:
                raise InputError(
                    "these prompts are encoded already; pass answers, system, raw and template_args"
                    " to lens.encode."
                )
            if prompts.source is not None and prompts.source.differs(self.source):
                raise InputError(
                    f"these tokens were encoded for {prompts.source.model}, and this is "
                    f"{self.name}; encode the prompts with this lens."
                )
            return prompts
        if isinstance(prompts, str):
            raise InputError(f"prompts is the text {prompts[:40]!r}; pass a list of texts.")
        if not isinstance(prompts, Sequence):
            raise InputError(
                f"prompts is a {type(prompts).__name__}; pass a list of texts or conversations."
            )
        if len(prompts) == 0:
            raise InputError("there are no prompts; pass at least one.")
        pairs = [conversation(prompt, n) for n, prompt in enumerate(prompts)]
        if raw:
            if answers is not None or system is not None or template_args:
                raise InputError(
                    "raw prompts have no answers, no system prompt and no template; leave them out."
                )
            ids = [self.chat.raw_ids(_raw(prompt, n)) for n, (prompt, _) in enumerate(pairs)]
            lengths, n_post = [len(sequence) for sequence in ids], 0
        else:
            rows = list(self._rows(pairs, answers, _each(system, len(pairs)), template_args))
            ids, lengths = [sequence for sequence, _ in rows], [length for _, length in rows]
            n_post = self._n_post(ids, lengths, template_args)
        for n, sequence in enumerate(ids):
            if len(sequence) == 0:
                raise InputError(f"prompt {n} ({prompts[n]!r}) has no tokens; pass another text.")
            if len(sequence) > self.n_ctx:
                raise InputError(
                    f"prompt {n} ({str(prompts[n])[:40]!r}...) has {len(sequence)} tokens and "
                    f"{self.name} reads at most {self.n_ctx}; shorten it."
                )
        return Tokens(tuple(ids), tuple(lengths), n_post, self.source)

    def _rows(
        self,
        pairs: Sequence[tuple[Prompt, str | None]],
        answers: Sequence[str] | None,
        systems: Sequence[str | None],
        template_args: Mapping[str, Any] | None,
    ) -> Iterator[tuple[tuple[int, ...], int]]:
        """Token ids of each prompt with its answer, and how many are the prompt's."""
        if isinstance(answers, str):
            raise InputError(f"answers is the text {answers[:40]!r}; pass a list, one a prompt.")
        if answers is not None and len(answers) != len(pairs):
            raise InputError(f"{len(pairs)} prompts and {len(answers)} answers do not pair up.")
        for n, ((prompt, begun), system) in enumerate(zip(pairs, systems, strict=True)):
            turns = [{"content": prompt}] if isinstance(prompt, str) else prompt
            for text in (*(str(turn["content"]) for turn in turns), system or ""):
                self.chat.check_unrendered(f"prompt {n}", text)
            if system is not None and turns[0].get("role") == "system":
                raise InputError(
                    f"prompt {n} begins with a system message, and system is given, too; leave one "
                    "of them out."
                )
            if answers is not None and begun is not None:
                raise InputError(
                    f"prompt {n} ends with an answer of the assistant, and another answer is given;"
                    " leave one of them out."
                )
            answer = begun if answers is None else answers[n]
            if answer is None:
                sequence = self.chat.ids(prompt, system, template_args)
                yield sequence, len(sequence)
                continue
            if not isinstance(answer, str) or answer == "":
                raise InputError(f"answer {n} is {answer!r}, which has no tokens; pass a text.")
            yield self.chat.ids_with_answer(prompt, answer, system, template_args)

    def _n_post(
        self,
        ids: Sequence[tuple[int, ...]],
        lengths: Sequence[int],
        template_args: Mapping[str, Any] | None,
    ) -> int:
        """The number of post-instruction tokens, if all prompts end with the template's."""
        post = self.chat.post(template_args)
        for n, (sequence, length) in enumerate(zip(ids, lengths, strict=True)):
            if post and sequence[max(length - len(post), 0) : length] != post:
                raise InputError(
                    f"prompt {n} does not end with the {len(post)} tokens that the template puts "
                    "after an instruction, so its post-instruction positions would be others; take "
                    "white space off its end, or pass raw=True."
                )
        return len(post)

    @contextmanager
    def steered(self, hooks: Sequence[Hook]) -> Iterator["Lens"]:
        """Steer every call made inside this context, raw calls of ``lens.model`` included.

        Raises:
            InputError: it is no steering, has another one for every prompt, or names a hook that
                the model has not.
        """
        if callable(hooks):
            raise InputError("row-wise hooks need rows; pass them as hooks= of a call instead.")
        if not isinstance(hooks, Sequence):
            raise InputError(
                f"hooks is a {type(hooks).__name__}; pass steering such as rl.add(direction, 3.0)."
            )
        known = self.model.hook_dict
        for name, _ in hooks:
            if name not in known:
                raise InputError(f"the model has no hook {name!r}; it has {self.n_layers} layers.")
        with forward.install(self.model, hooks):
            yield self

    def generate(
        self,
        prompts: Prompts,
        *,
        hooks: Hooks = (),
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
        system: str | Sequence[str] | None = None,
        begun: str = "",
        raw: bool = False,
        cache: bool = True,
    ) -> list[str]:
        """Answer each prompt.

        Args:
            prompts: as for :meth:`encode`; a begun answer is continued.
            hooks: steering, from ``rl.add``, ``rl.ablate`` or ``rl.by_row``.
            max_new_tokens: length of an answer at most, in tokens.
            temperature: 0 is greedy.
            top_p: nucleus, for temperatures above 0.
            seed: of the sampling; an answer depends on its place in the list, not on the others. A
                list has a seed for each prompt, and then the place does not matter.
            system: a system prompt for all of them, or one for each.
            begun: how every answer begins; steered as generated, and not part of what is returned.
            raw: continue the prompts as texts that stand alone, without the chat format.
            cache: keep keys and values between tokens; the text is the same without, and slower.

        Returns:
            The answers, without the prompts and without what was begun.

        Raises:
            InputError: as for :meth:`encode`; steering that touches none of the tokens; no room
                for an answer.
        """
        begins = [begun] * len(prompts) if begun else None
        written = self.continued(
            self.encode(prompts, begins, system=system, raw=raw),
            hooks=hooks,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            cache=cache,
        )
        return [self._text(ids) for ids in written]

    def continued(
        self,
        tokens: Tokens,
        *,
        hooks: Hooks = (),
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
        cache: bool = True,
    ) -> list[list[int]]:
        """The ids of the tokens that follow each prompt, as :meth:`generate` writes them.

        Returns:
            Up to the token that ends the answer, which is left out.

        Raises:
            InputError: as for :meth:`generate`.
        """
        tokens = self._generated(tokens, hooks, max_new_tokens)
        pairs = zip(tokens.ids, tokens.prompt_lengths, strict=True)
        if len({len(ids) - length for ids, length in pairs}) > 1:
            raise InputError(
                "the answers begun are not of equal length in tokens after every prompt; begin them"
                " with a new line, or answer the prompts one by one."
            )
        answers: list[list[int]] = [[]] * len(tokens)
        mixed = cache and self._mixes(tokens, hooks, max_new_tokens)
        seeds = _seeds(seed, len(tokens))

        def written(batch: Batch) -> list[list[int]]:
            pick = _picker(temperature, top_p, [seeds[row] for row in batch.rows.tolist()])
            steps = list(self._decode(batch, hooks, max_new_tokens, pick, cache))
            ids: list[list[int]] = torch.stack(steps, dim=1).tolist()
            return ids

        longest = max(map(len, tokens.ids))
        budget = forward.generated_budget(self.model, longest, max_new_tokens)
        for batch, rows in forward.batched(
            self.model, tokens, written, budget=budget, same_prompt_length=not mixed
        ):
            for i, ids in zip(batch.rows.tolist(), rows, strict=True):
                answers[i] = self._ended(ids)
        return answers

    def stream(
        self,
        prompt: Prompt,
        *,
        hooks: Hooks = (),
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        system: str | None = None,
        raw: bool = False,
    ) -> Iterator[str]:
        """Answer one prompt piece by piece; arguments as for :meth:`generate`."""
        tokens = self.encode([prompt], system=system, raw=raw)
        batch = forward.batches(self._generated(tokens, hooks, max_new_tokens))[0]
        pick = _picker(temperature, top_p, _seeds(seed, 1))
        ids: list[int] = []
        shown = ""
        for step in self._decode(batch, hooks, max_new_tokens, pick, cache=True):
            ids.append(int(step[0]))
            text = self._text(ids)
            # A character of several tokens is not whole before its last token.
            if not text.endswith("\ufffd"):
                yield text[len(shown) :]
                shown = text
        # What stays half a character at the end is told as generate tells it.
        if rest := self._text(ids)[len(shown) :]:
            yield rest

    def card(self) -> Card:
        """Model, size, positions, dtype."""
        facts = {
            "model": self.name,
            "layers": str(self.n_layers),
            "d_model": str(self.d_model),
            "post-instruction positions": f"{self.positions[0]} to -1"
            if self.chat.n_post
            else "none",
            "dtype": self.source.dtype,
        }
        return Card("Lens", facts, "rl.role_vectors(lens, rl.load_roles(), rl.load_base())")

    def _mixes(self, tokens: Tokens, hooks: Hooks, max_new_tokens: int) -> bool:
        """Whether prompts of several lengths can be answered together."""
        lengths = [len(ids) for ids in tokens.ids]
        room = max(lengths) + max_new_tokens <= self.n_ctx
        return len(set(lengths)) > 1 and room and forward.mixes(self.model, hooks)

    def _generated(self, tokens: Tokens, hooks: Hooks, max_new_tokens: int) -> Tokens:
        """The tokens, if so many can follow them and the steering touches any.

        Raises:
            InputError: they cannot, or it touches none.
        """
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens is {max_new_tokens}; it has to be 1 or more.")
        forward.check_effect(self.model, hooks, tokens, unread=1 - max_new_tokens)
        return forward.gated(self.model, hooks, tokens)

    def _decode(
        self,
        batch: Batch,
        hooks: Hooks,
        max_new_tokens: int,
        pick: Pick,
        cache: bool,
    ) -> Iterator[Int[Tensor, " row"]]:
        """Decode until every row has ended, or there is no more room."""
        stop = torch.tensor(sorted(self._stop_ids))
        room = min(max_new_tokens, self.n_ctx - batch.ids.shape[1])
        if room < 1:
            raise InputError(
                f"a prompt of {batch.ids.shape[1]} tokens fills the context of {self.name}, which "
                "leaves no room for an answer; shorten it."
            )
        return forward.decode(
            self.model, batch, pick, max_new_tokens=room, stop=stop, hooks=hooks, cache=cache
        )

    @functools.cached_property
    def _stop_ids(self) -> set[int]:
        """Tokens that end an answer: the tokenizer's, the model's and the template's own."""
        stop = forward.end_ids(self.model)
        if self.tokenizer.eos_token_id is not None:
            stop.add(int(self.tokenizer.eos_token_id))
        stop |= set(self.chat.post()[:1]) & set(self.tokenizer.all_special_ids)
        return stop

    def _text(self, ids: list[int]) -> str:
        """What was answered, up to the first token that ends an answer."""
        ended = self._ended(ids)
        return str(self.tokenizer.decode(ended, skip_special_tokens=True)).strip()

    def _ended(self, ids: list[int]) -> list[int]:
        """Tokens up to the first that ends an answer."""
        return ids[: next((n for n, i in enumerate(ids) if i in self._stop_ids), len(ids))]


def positions_of(n_post: int) -> tuple[int, ...]:
    """The post-instruction positions; the last one alone where there are none."""
    return tuple(range(-max(n_post, 1), 0))


def _raw(prompt: Prompt, n: int) -> str:
    """A prompt that is a text."""
    if not isinstance(prompt, str):
        raise InputError(
            f"prompt {n} is a list of messages, and raw=True takes texts as they are; leave raw "
            "out, or pass texts."
        )
    return prompt


def _each(system: str | Sequence[str] | None, n: int) -> list[str | None]:
    """The system prompt of each of n prompts."""
    if system is None or isinstance(system, str):
        return [system] * n
    if len(system) != n:
        raise InputError(f"{n} prompts and {len(system)} system prompts do not pair up.")
    return list(system)


def _seeds(seed: int | Sequence[int], n: int) -> list[int]:
    """The seed of each of n prompts."""
    if isinstance(seed, int):
        return [seed * 1_000_003 + row for row in range(n)]
    if len(seed) != n:
        raise InputError(f"{n} prompts and {len(seed)} seeds do not pair up.")
    return list(seed)


def _picker(temperature: float, top_p: float, seeds: Sequence[int]) -> Pick:
    """Greedy, or sampling with one random stream a row."""
    if temperature < 0 or not 0 < top_p <= 1:
        raise InputError(
            f"temperature is {temperature} and top_p is {top_p}; temperature has to be 0 (greedy) "
            "or above, and top_p above 0 and at most 1."
        )
    if temperature == 0:
        return lambda logits, going: logits.argmax(dim=-1)
    return _Sampler(float(temperature), float(top_p), seeds)


class _Sampler:
    """Sampling with one random stream a row, where the logits are."""

    def __init__(self, temperature: float, top_p: float, seeds: Sequence[int]) -> None:
        self._temperature, self._top_p = temperature, top_p
        self._streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._drawn = torch.empty(len(seeds), 0)
        self._step = 0

    def __call__(
        self, logits: Float[Tensor, "going vocab"], going: Int[Tensor, " going"]
    ) -> Int[Tensor, " going"]:
        if self._step == self._drawn.shape[1]:
            self._step = 0
            drawn = [torch.rand(DRAWN, generator=stream) for stream in self._streams]
            self._drawn = torch.stack(drawn).to(logits.device)
        uniform = self._drawn[going.to(logits.device), self._step]
        self._step += 1
        return sampled(logits / self._temperature, self._top_p, uniform)


DRAWN = 64
"""Random numbers that are drawn, and moved to the device, at once."""


def sampled(
    logits: Float[Tensor, "row vocab"], top_p: float, uniform: Float[Tensor, " row"]
) -> Int[Tensor, " row"]:
    """A token a row, by the inverse of the cumulative distribution.

    Args:
        logits: of the tokens.
        top_p: the nucleus: as few of the likeliest tokens as have this probability together.
        uniform: between 0 and 1, a number each.
    """
    shares = logits.float().softmax(dim=-1)
    tokens = None
    if top_p < 1:
        # Almost always a few hundred tokens have it, which are sooner sorted than all.
        for n in (256, 4096, shares.shape[1]):
            sorted_shares, tokens = shares.topk(min(n, shares.shape[1]))
            if n >= shares.shape[1] or bool((sorted_shares.sum(dim=-1) > top_p).all()):
                break
        before = sorted_shares.cumsum(dim=-1) - sorted_shares
        shares = sorted_shares.where(before < top_p, 0.0)
    reached = shares.cumsum(dim=-1)
    wanted = uniform.to(reached)[:, None] * reached[:, -1:]
    place = torch.searchsorted(reached, wanted, right=True).clamp(max=reached.shape[1] - 1)
    return (place if tokens is None else tokens.gather(1, place))[:, 0]
