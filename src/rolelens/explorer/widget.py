"""The widget: choices come from the browser, texts and drawings go to it."""

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import anywidget
import traitlets

from rolelens import plots
from rolelens.display import shipped
from rolelens.errors import InputError
from rolelens.explorer.choices import Choice, Explored
from rolelens.hooks import Steering, add
from rolelens.patchscoping import PROMPT

PAUSE = 0.002
"""Seconds between tokens in which the kernel takes messages, such as to stop."""


class Explorer(anywidget.AnyWidget):  # type: ignore[misc]
    """Made by :func:`rolelens.explore`.

    Attributes:
        options: what can be chosen.
        alphas: ends of the slider.
        choice: what is chosen.
        strength: of the choice, in words, and whether text often breaks there.
        code: the Python that does the same.
        texts: the steered and the unsteered text.
        state: ``running``, ``done``, ``stopped`` or nothing.
        error: what is wrong, in a sentence.
        turns: the conversation.
        drawn: figures and coloured text, as HTML.
        panels: the alpha of each panel of the heatmap.
        swept: how the cells of the heatmap steer.
        command: what the browser asks for.
    """

    _esm = shipped("rolelens.js")
    _css = shipped("rolelens.css")
    options = traitlets.Dict().tag(sync=True)
    alphas = traitlets.List([-10.0, 10.0]).tag(sync=True)
    choice = traitlets.Dict().tag(sync=True)
    strength = traitlets.Dict().tag(sync=True)
    code = traitlets.Unicode().tag(sync=True)
    texts = traitlets.Dict({"steered": "", "unsteered": ""}).tag(sync=True)
    state = traitlets.Unicode().tag(sync=True)
    error = traitlets.Unicode().tag(sync=True)
    turns = traitlets.List().tag(sync=True)
    drawn = traitlets.Dict().tag(sync=True)
    panels = traitlets.Dict().tag(sync=True)
    swept = traitlets.Dict().tag(sync=True)
    command = traitlets.Dict().tag(sync=True)

    def __init__(self, explored: Explored, prompt: str, max_new_tokens: int) -> None:
        self._explored = explored
        self._length = max_new_tokens
        self._run = 0
        self._tasks: set[asyncio.Future[None]] = set()
        self._unsteered: dict[str, str] = {}
        self._chosen = explored.first(prompt)
        super().__init__(
            options=explored.options,
            choice=dataclasses.asdict(self._chosen),
            swept=explored.swept(),
        )
        self._choose()
        self.observe(lambda change: self._choose(), "choice")
        self.observe(lambda change: self._obey(change["new"]), "command")

    def __repr__(self) -> str:
        return f"Explorer({self._explored.lens.name}, {self.steering})"

    @property
    def steering(self) -> Steering:
        """What is chosen, as a steering."""
        return self._explored.steering(self._chosen)

    def _choose(self) -> None:
        """Take over what is chosen in the browser, and show what it means."""
        before = self._chosen
        try:
            self._chosen = choice = self._explored.checked(self.choice)
        except InputError as error:
            self.error = str(error)
            return
        self.error = ""
        self.strength = self._explored.strength(choice)
        self.code = self._explored.code(choice, self._length)
        place = choice.name, choice.layer, choice.position
        if not self.drawn or place != (before.name, before.layer, before.position):
            self._draw(choice, renamed=not self.drawn or choice.name != before.name)

    def _draw(self, choice: Choice, renamed: bool) -> None:
        drawn = {**self.drawn, "writes": self._explored.writes(choice), "reading": ""}
        if renamed:
            heat, self.panels = self._explored.heat(choice.name)
            drawn |= {"curve": self._explored.curve(choice.name), "heat": heat}
        self.drawn = drawn

    def _obey(self, command: dict[str, Any]) -> None:
        """Do what the browser asks for."""
        self._choose()  # a choice may arrive together with what is asked for
        match command.get("do"):
            case "compare":
                self._begin(self._compare)
            case "say":
                self._begin(lambda run: self._say(run, str(command.get("text", ""))))
            case "read":
                self._begin(self._read)
            case "stop":
                self._run += 1
                self.state = "stopped"
            case "forget":
                self._run += 1
                self.state, self.turns = "", []
                self.drawn = {**self.drawn, "chart": "", "view": ""}

    def _begin(self, work: Callable[[int], Coroutine[Any, Any, None]]) -> None:
        """Start something new; what ran before ends at its next token.

        All of it runs in the kernel's own loop, a token at a time, and never beside a cell: a
        steered pass in another thread would steer that cell's passes as well.
        """
        self._run += 1
        self.error, self.state = "", "running"
        working = self._guarded(work, self._run)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # a plain script has no loop
            asyncio.run(working)
            return
        task = loop.create_task(working)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, work: Callable[[int], Coroutine[Any, Any, None]], run: int) -> None:
        try:
            await work(run)
        except InputError as error:
            self.error = str(error)
        finally:
            if run == self._run:
                self.state = "done"

    async def _streamed(
        self, run: int, streams: dict[str, Iterator[str]], show: Callable[[str, str], None]
    ) -> dict[str, str]:
        """Run streams side by side, a token each; returns the texts of those that ended."""
        texts = dict.fromkeys(streams, "")
        ended: dict[str, str] = {}
        while streams and run == self._run:
            for name in list(streams):
                piece = next(streams[name], None)
                if piece is None:
                    ended[name] = texts[name]
                    del streams[name]
                    continue
                texts[name] += piece
                show(name, texts[name])
                await asyncio.sleep(PAUSE)
                if run != self._run:
                    break
        return ended

    async def _compare(self, run: int) -> None:
        """Answer the prompt, steered beside unsteered; the latter is kept for the next time."""
        choice, lens = self._chosen, self._explored.lens
        known = self._unsteered.get(choice.prompt)
        self.texts = {"steered": "", "unsteered": known or ""}
        hooks: dict[str, Steering] = {"steered": self._explored.steering(choice)}
        if known is None:
            hooks["unsteered"] = Steering()
        streams = {
            name: lens.stream(choice.prompt, hooks=steering, max_new_tokens=self._length)
            for name, steering in hooks.items()
        }

        def show(name: str, text: str) -> None:
            self.texts = {**self.texts, name: text}

        ended = await self._streamed(run, streams, show)
        if "unsteered" in ended:
            self._unsteered[choice.prompt] = ended["unsteered"]

    async def _say(self, run: int, said: str) -> None:
        """Answer one more turn of the conversation."""
        choice = self._chosen
        turns = [{"role": t["role"], "content": t["content"]} for t in self.turns]
        turns.append({"role": "user", "content": said})
        self.turns = turns

        def show(_: str, text: str) -> None:
            self.turns = [*turns, {"role": "assistant", "content": text}]

        steering = self._explored.steering(choice)
        stream = self._explored.lens.stream(turns, hooks=steering, max_new_tokens=self._length)
        await self._streamed(run, {"answer": stream}, show)
        stopped = run == self._run - 1 and self.state == "stopped"
        if run != self._run and not stopped:
            return
        if self.turns[-1]["role"] != "assistant" or not self.turns[-1]["content"]:
            self.turns = turns[:-1]
            raise InputError(f"the model ended its answer to {said[:40]!r} at once; say another.")
        conversation = list(self.turns)
        means, view = self._explored.read(conversation, choice)
        self.turns = [
            {**turn, "projection": mean} for turn, mean in zip(conversation, means, strict=True)
        ]
        d = self._explored.direction(choice)
        figure = plots.turns([t["role"] for t in conversation], means, f"{d.name}, layer {d.layer}")
        self.drawn = {**self.drawn, "chart": plots.svg(figure), "view": view}

    async def _read(self, run: int) -> None:
        """Read the direction as text: added at a question about nothing (2502.12055)."""
        d = self._explored.direction(self._chosen)
        stream = self._explored.lens.stream(PROMPT, hooks=add(d, 3.0), max_new_tokens=40)

        def show(_: str, text: str) -> None:
            self.drawn = {**self.drawn, "reading": f"{PROMPT} {text}"}

        await self._streamed(run, {"reading": stream}, show)
