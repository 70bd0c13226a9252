"""lm-evaluation-harness: rolelens as one of its models, and its tasks here.

``python -m rolelens.interop.lm_eval --model rolelens --model_args model=NAME,steering=FILE`` is its
command line with the model ``rolelens`` registered.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rolelens import forward
from rolelens.errors import InputError
from rolelens.forward import Batch, Tokens
from rolelens.hooks import Steering
from rolelens.interop.stock import stock_tokenizer
from rolelens.lens import Lens
from rolelens.loading import load
from rolelens.tasks import Problem, Problems, Question, Questions, Task

NEW_TOKENS = 256
"""Length of an answer at most where a task does not say."""


class Requests:
    """What lm-evaluation-harness asks of a model, of one under a steering.

    :func:`harness_class` joins it with the harness' own base class, which makes tokens of texts.

    Attributes:
        lens: the model.
        steering: what is done to it.
    """

    def __init__(
        self,
        model: Lens | str = "smollm2",
        steering: Steering | str | None = None,
        dtype: str | None = None,
        device: str | None = None,
        **ignored: Any,
    ) -> None:
        """Load what ``--model_args`` names.

        Args:
            model: a lens, or what ``rl.load`` takes.
            steering: a steering, or a file of ``Steering.save``; none by default.
            dtype: as for ``rl.load``.
            device: as for ``rl.load``.
            ignored: batch sizes, which rolelens chooses by itself.

        Raises:
            InputError: the model or the file cannot be loaded, or do not belong together; an
                unknown argument.
        """
        super().__init__()
        unknown = set(ignored) - {"batch_size", "max_batch_size"}
        if unknown:
            raise InputError(
                f"--model_args names {', '.join(sorted(unknown))}; rolelens takes model, steering, "
                "dtype and device."
            )
        self.lens = load(model, dtype=dtype, device=device) if isinstance(model, str) else model
        loaded = Steering.load(steering) if isinstance(steering, str) else steering
        self.steering = loaded or Steering()
        self.steering.check(self.lens.source, self.lens.n_layers)
        self.tokenizer = stock_tokenizer(self.lens)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before an empty context."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def tokenizer_name(self) -> str:
        """What requests are cached under."""
        return f"{self.lens.name}-{self.lens.chat.sha}".replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Token ids of a text that stands alone, or of a piece of one."""
        begin = self.tokenizer.bos_token
        if add_special_tokens is None:
            # A text that begins with the token gets no second one.
            add_special_tokens = not (begin and string.startswith(begin))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template that prompts are put in."""
        return self.lens.chat.template if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as the model reads it, up to where its answer begins."""
        if add_generation_prompt:
            return self.lens.chat.render(chat_history)
        rendered: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            continue_final_message=True,
            chat_template=self.lens.chat.template,
        )
        return rendered

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Log-probability (nats) of each continuation, and whether it is what greedy gives."""
        rows, lengths = [], []
        for _, context, continuation in requests:
            kept = max(self.lens.n_ctx - len(continuation), 1)
            rows.append((*context[-kept:], *continuation))
            lengths.append(len(rows[-1]) - len(continuation))
        tokens = Tokens(tuple(rows), tuple(lengths), 0, self.lens.source)
        shares = forward.answer_logprobs(self.lens.model, tokens, hooks=self.steering)
        greedy = self._greedy(tokens)
        return [(float(one.double().sum()), same) for one, same in zip(shares, greedy, strict=True)]

    def _greedy(self, tokens: Tokens) -> list[bool]:
        """Whether each answer is the one that greedy decoding gives.

        Few are, and most differ in the first token: one pass a prompt finds those.
        """
        pairs = [
            (ids[:length], ids[length:])
            for ids, length in zip(tokens.ids, tokens.prompt_lengths, strict=True)
        ]
        prompts = list(dict.fromkeys(prompt for prompt, _ in pairs))
        written: dict[tuple[int, ...], list[int]] = {prompt: [] for prompt in prompts}
        steps = 1
        while True:
            open_ = list(
                dict.fromkeys(
                    prompt
                    for prompt, answer in pairs
                    if len(answer) > len(written[prompt])
                    and list(answer[: len(written[prompt])]) == written[prompt]
                )
            )
            if not open_:
                return [list(answer) == written[p][: len(answer)] for p, answer in pairs]
            for prompt, ids in zip(open_, self._decoded(open_, steps), strict=True):
                written[prompt] = ids
            longest = max(len(answer) for prompt, answer in pairs if prompt in open_)
            steps = min(max(4 * steps, 4), longest) if steps < longest else steps + 1

    def _decoded(self, prompts: list[tuple[int, ...]], steps: int) -> list[list[int]]:
        """What greedy decoding writes after each prompt, ends of text and all."""
        tokens = Tokens(tuple(prompts), tuple(map(len, prompts)), 0, self.lens.source)
        out: list[list[int]] = [[] for _ in prompts]

        def written(batch: Batch) -> list[list[int]]:
            chosen = forward.decode(
                self.lens.model,
                batch,
                lambda logits, going: logits.argmax(dim=-1),
                max_new_tokens=steps,
                stop=torch.tensor([], dtype=torch.long),
                hooks=self.steering,
                cache=True,
            )
            ids: list[list[int]] = torch.stack(list(chosen), dim=1).tolist()
            return ids

        budget = forward.generated_budget(self.lens.model, max(map(len, prompts)), steps)
        for batch, rows in forward.batched(
            self.lens.model, tokens, written, budget=budget, same_prompt_length=True
        ):
            for row, ids in zip(batch.rows.tolist(), rows, strict=True):
                out[row] = ids
        return out

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability (nats) of whole texts, in windows one shorter than the context.

        The last token of a window is read as well, so that it takes a place.
        """
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        out = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.lens.n_ctx - 1,
                context_len=1,
            )
            parts = [(None, *make_disjoint_window(window)) for window in windows]
            out.append(sum(share for share, _ in self._loglikelihood_tokens(parts)))
        return out

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts that follow contexts, up to a text that a task stops at."""
        from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

        out: list[str] = [""] * len(requests)
        alike: dict[str, list[int]] = {}
        for n, request in enumerate(requests):
            alike.setdefault(repr(request.args[1]), []).append(n)
        for rows in alike.values():
            settings = normalize_gen_kwargs(dict(requests[rows[0]].args[1]), NEW_TOKENS)
            until = handle_stop_sequences(settings.pop("until", None), eos=None)
            room = int(settings["max_gen_toks"])
            ids = [
                tuple(self.tok_encode(requests[n].args[0]))[-(self.lens.n_ctx - room) :]
                for n in rows
            ]
            tokens = Tokens(tuple(ids), tuple(map(len, ids)), 0, self.lens.source)
            texts = self.lens.generate(
                tokens,
                hooks=self.steering,
                max_new_tokens=room,
                temperature=float(settings.get("temperature") or 0.0)
                if settings.get("do_sample")
                else 0.0,
                top_p=float(settings.get("top_p") or 1.0),
            )
            for n, text in zip(rows, texts, strict=True):
                ends = [text.index(stop) for stop in until if stop and stop in text]
                out[n] = text[: min(ends)] if ends else text
        return out


@functools.cache
def harness_class() -> Any:
    """The model ``rolelens`` of lm-evaluation-harness, which is registered by the first call.

    Raises:
        InputError: the harness is not installed.
    """
    try:
        from lm_eval.api.model import TemplateLM
        from lm_eval.api.registry import register_model
    except ImportError as error:
        raise InputError(
            f"lm-evaluation-harness cannot be imported ({error}); run "
            "'pip install lm_eval==0.4.13'."
        ) from error
    return register_model("rolelens")(type("SteeredLM", (Requests, TemplateLM), {}))


def harness_model(model: Lens | str, steering: Steering | str | None = None) -> Any:
    """A model under a steering, as ``lm_eval.simple_evaluate(model=...)`` takes it.

    Raises:
        InputError: as for :class:`Requests`; the harness is not installed.
    """
    return harness_class()(model, steering)


def lm_eval_task(
    name: str, *, manager: Any = None, limit: int | None = None, shots: int = 0
) -> Task[Any]:
    """A task of lm-evaluation-harness, as one of rolelens.

    Items are put as the harness writes them. A question's text is ``doc_to_text``, its options are
    ``doc_to_choice``: score it with ``method="cloze"``. A problem's text is ``doc_to_text``, its
    answer is ``doc_to_target``: check it with a ``verifier`` where it is no number.

    Args:
        name: of the task.
        manager: a ``lm_eval.tasks.TaskManager``, for tasks of one's own.
        limit: how many items at most.
        shots: examples before each.

    Raises:
        InputError: there is no such task, it is a group, or it asks for anything but choices and
            generated texts.
    """
    from lm_eval.tasks import TaskManager

    try:
        found: Mapping[str, Any] = (manager or TaskManager()).load(name)["tasks"]
    except KeyError as error:
        raise InputError(f"lm-evaluation-harness has no task {name!r} ({error}).") from error
    task: Any = found.get(name)
    kind = getattr(task, "OUTPUT_TYPE", None)
    if kind not in ("multiple_choice", "generate_until"):
        raise InputError(
            f"the task {name!r} is {'of ' + kind if kind else 'a group'}, and what is read here is "
            "one of multiple_choice or generate_until; name another."
        )
    docs = task.test_docs() if task.has_test_docs() else task.validation_docs()
    items: list[Any] = []
    for n, doc in enumerate(docs):
        if limit is not None and n >= limit:
            break
        text = task.fewshot_context(doc, num_fewshot=shots) if shots else task.doc_to_text(doc)
        if kind == "multiple_choice":
            options = tuple(map(str, task.doc_to_choice(doc)))
            target = task.doc_to_target(doc)
            right = options.index(target) if isinstance(target, str) else int(target)
            items.append(Question(f"{name}-{n}", str(text), options, right, domain=name))
        else:
            items.append(
                Problem(f"{name}-{n}", str(text), str(task.doc_to_target(doc)), domain=name)
            )
    if kind == "multiple_choice":
        return Questions(name, tuple(items))
    return Problems(name, tuple(items), template="{question}")


def main() -> None:
    """The harness' own command line."""
    harness_class()
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
