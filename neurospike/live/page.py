"""The page: what a visitor sees and does. Each visitor has options and a picture of their own."""

import asyncio
import base64
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nicegui import events, ui
from torch import Tensor

from neurospike.backend.dispatch import backends
from neurospike.errors import NeuroSpikeError, PictureError
from neurospike.models.network import ENCODINGS
from neurospike.pictures import Ink, read_picture, thing_of

from .answering import Answerer, Choice, TestPictures, framed
from .curves import Curves
from .parts import BROWSER, Pad, Stage
from .watching import WatchedRun

MOST_BYTES = 20_000_000  # of an upload
LOOK = 2.0  # seconds between two updates from a run: drawing them takes time from the training


@dataclass
class Live:
    """What all visitors share: a trained network, or a run that is watched.

    data_path: where the test pictures are; None: where the training found them.
    """

    answerer: Answerer | None
    data_path: str | None = None
    run: WatchedRun | None = None

    @cached_property
    def pictures(self) -> TestPictures:
        """Those of the network's data set, once there is a network."""
        trained = self.answerer.trained if self.answerer else None
        if self.run is not None:
            trained = self.run.trained
        if trained is None:
            raise NeuroSpikeError("the data set is known once the first epoch is done")
        config = trained.config
        path = self.data_path or config.data_path
        return TestPictures(trained.dataset, path, config.folder_options())


def add_page(live: Live) -> None:
    """Make the page the server's only one."""

    @ui.page("/", title="NeuroSpike live", dark=None)
    async def page() -> None:
        ui.add_css(BROWSER / "style.css")
        Visitor(live)


class Visitor:
    """One open page."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.answerer = live.answerer
        self.choice = live.answerer.default if live.answerer else None
        self.picture: Tensor | None = None
        self.label: int | None = None
        self.place = -1  # of the test picture shown last
        self.asked = 0  # counts requests for an answer: only the newest is shown
        self.seen = (-1, -1)  # `WatchedRun.records` and `models` at the last update
        with ui.element("div").classes("live"):
            self._header()
            if live.run is not None:
                self.curves = Curves(live.run)
            with ui.element("div").classes("columns"):
                with ui.element("div").classes("side"):
                    self._drawing()
                    self._options()
                self.stage = _stage(live.answerer)
        if live.run is not None:
            ui.timer(LOOK, self._watch, immediate=True)

    def _header(self) -> None:
        with ui.element("header").classes("top"):
            ui.html("NeuroSpike <span>live</span>", sanitize=False).classes("logo")
            self.about = ui.label().classes("about")
            with _button("contrast", "") as theme:
                theme.on("click", js_handler="() => Quasar.Dark.set(!Quasar.Dark.isActive)")
                theme.props('aria-label="Light or dark"')
        self._describe()

    def _describe(self) -> None:
        self.about.text = self.answerer.description if self.answerer else "no network saved yet"

    def _drawing(self) -> None:
        with ui.element("section").classes("card side"):
            dataset = self.answerer.trained.dataset if self.answerer else "mnist"
            self.pad = Pad(f"Draw a {thing_of(dataset)}").on(
                "drawn", self._drawn, ["png", "lifted"]
            )
            upload = ui.upload(
                auto_upload=True,
                max_file_size=MOST_BYTES,
                on_upload=self._uploaded,
                on_rejected=lambda: self._say(
                    f"the file is larger than {MOST_BYTES // 1_000_000} MB: make it smaller"
                ),
            ).classes("hidden-upload")
            self.upload = upload
            uploader = f"getElement({upload.id}).$refs.qRef"
            self.pad.on("dropped", js_handler=f"(e) => {uploader}.addFiles(e.dataTransfer.files)")
            with ui.element("div").classes("row grow"):
                _button("backspace", "Clear", self._clear)
                _button("upload", "Upload").on("click", js_handler=f"() => {uploader}.pickFiles()")
            with ui.element("div").classes("row"):
                _button("chevron_left", "", lambda: self._test_picture(-1)).props(
                    'aria-label="Test picture before"'
                )
                self.which = ui.label("test pictures").classes("which").style("flex: 1")
                _button("chevron_right", "", lambda: self._test_picture(1)).props(
                    'aria-label="Next test picture"'
                )
            self.message = ui.label().classes("message").props('role="alert"')
            self.message.visible = False

    def _options(self) -> None:
        usable = backends()
        with ui.element("section").classes("card side options"):
            codings = self.answerer.codings if self.answerer else ENCODINGS
            self.coding = ui.select(list(codings), label="Coding", on_change=self._chosen)
            # Without min and max, which would put another number into the field without a word.
            self.steps = ui.number("Time steps", step=1, precision=0, on_change=self._chosen)
            self.backend = ui.select(
                ["auto", *(name for name, why_not in usable.items() if why_not is None)],
                value="auto",
                label="Backend",
                on_change=self._chosen,
            )
            for field in (self.coding, self.steps, self.backend):
                field.props("outlined dense options-dense")
            self.note = ui.label().classes("note")
            for name, why_not in usable.items():
                if why_not is not None:
                    ui.label(f"{name} cannot run here: {why_not}").classes("note")
        self._show_choice()

    def _show_choice(self) -> None:
        if self.choice is not None and self.answerer is not None:
            self.coding.set_options(list(self.answerer.codings))
            self.steps.set_enabled(not self.answerer.reads)  # else they are those of the picture
            self.coding.value = self.choice.coding
            self.steps.value = self.choice.num_steps
            self.backend.value = self.choice.backend

    async def _chosen(self) -> None:
        """Take over changed options, whether the visitor or `_show_choice` changed them."""
        if self.answerer is None or self.coding.value is None or self.steps.value is None:
            return
        chosen = Choice(self.coding.value, int(self.steps.value), self.backend.value)
        try:
            self.answerer.check(chosen)
        except ValueError as error:
            self._say(str(error))
            return
        self.message.visible = False
        learnt = self.answerer.default
        self.note.text = (
            ""
            if (chosen.coding, chosen.num_steps) == (learnt.coding, learnt.num_steps)
            else f"The network learnt {learnt.coding} coding in {learnt.num_steps} steps; with "
            "others it may well be wrong."
        )
        self.note.visible = bool(self.note.text)
        if chosen != self.choice:
            self.choice = chosen
            await self._answer(None)

    async def _drawn(self, event: events.GenericEventArguments) -> None:
        content = base64.b64decode(event.args["png"].partition(",")[2])
        self.which.text, self.label = "your digit", None
        await self._read("the drawing", content, event.args["lifted"], "light")

    async def _uploaded(self, event: events.UploadEventArguments) -> None:
        content = await event.file.read()
        self.upload.reset()
        self.which.text, self.label = event.file.name, None
        if await self._read(event.file.name, content, None):
            self._show_on_pad()

    async def _read(
        self, name: str, content: bytes, lifted: float | None, ink: Ink = "auto"
    ) -> bool:
        """Read a picture file and answer it; False if it cannot be read, or another was chosen."""
        read = self.answerer.trained.read if self.answerer else read_picture
        self.asked += 1  # an answer that is still computed belongs to another picture
        asked = self.asked
        try:
            picture, note = await asyncio.to_thread(read, name, ink, content=content)
        except PictureError as error:
            if asked == self.asked:
                self.picture = None
                self.stage.wipe()
                if lifted is None:
                    self.pad.wipe()
                self._say(str(error))
            return False
        if asked != self.asked:
            return False
        self.picture = picture
        if note:
            self.which.text += f"; {note}"
        await self._answer(lifted)
        return True

    async def _test_picture(self, onwards: int) -> None:
        self.place += onwards
        self.asked += 1
        asked = self.asked
        try:
            found = await asyncio.to_thread(self.live.pictures.picture, self.place)
        except NeuroSpikeError as error:
            self._say(str(error))
            return
        if asked != self.asked:
            return
        self.place, self.picture, self.label = found
        known = self.answerer.trained.classes if self.answerer else ()
        name = known[self.label] if self.label < len(known) else self.label
        self.which.text = f"test picture {self.place}: {name}"
        self._show_on_pad()
        await self._answer(None)

    def _show_on_pad(self) -> None:
        if self.picture is not None:
            self.pad.show(framed(self.picture))

    def _clear(self) -> None:
        self.asked += 1
        self.picture = self.label = None
        self.which.text = "test pictures"
        self.message.visible = False
        self.pad.wipe()
        self.stage.wipe()

    async def _answer(self, lifted: float | None, quiet: bool = False) -> None:
        """Answer the picture. lifted: when the pen was, by the browser's clock."""
        if self.picture is None:
            return
        if self.answerer is None or self.choice is None:
            self._say("no network is saved yet: the answer comes after the first epoch")
            return
        self.asked += 1
        asked = self.asked
        try:
            film = await asyncio.to_thread(self.answerer.answer, self.picture, self.choice)
        except (NeuroSpikeError, ValueError) as error:
            self._say(str(error))
            return
        if asked == self.asked:
            self.message.visible = False
            self.stage.show({**film, "label": self.label, "lifted": lifted, "quiet": quiet})

    def _say(self, text: str) -> None:
        self.message.text = text
        self.message.visible = True

    async def _probe(self) -> None:
        """Take a first picture for each new network of a run to answer."""
        await self._test_picture(1)
        if self.picture is None:
            self._say("no test pictures are at hand: draw one, each new network answers it")

    async def _watch(self) -> None:
        """Show what the run has written since the last look."""
        watched = self.live.run
        assert watched is not None
        await asyncio.to_thread(watched.look)
        seen, self.seen = self.seen, (watched.records, watched.models)
        self.curves.show_state()
        if self.seen[0] != seen[0]:
            self.curves.draw()
        if self.seen[1] != seen[1] and watched.trained is not None:
            first = self.answerer is None
            self.answerer = Answerer(watched.trained)
            self._describe()
            if first:
                await asyncio.to_thread(self.answerer.warm)
                self.choice = self.answerer.default
                self._show_choice()
            if first and self.picture is None:
                await self._probe()
            else:
                await self._answer(None, quiet=True)


def _button(icon: str, text: str, on_click: Callable[[], Any] | None = None) -> ui.element:
    with ui.element("button").classes("plain").props('type="button"') as button:
        ui.html(icon, sanitize=False, tag="i").classes("material-icons").props('aria-hidden="true"')
        if text:
            ui.html(text, sanitize=False, tag="span")
    return button if on_click is None else button.on("click", on_click)


def _stage(answerer: Answerer | None) -> Stage:
    """The stage before there is an answer."""
    if answerer is None:
        return Stage(["hidden layers"], [], "The network answers once its first epoch is done.")
    trained = answerer.trained
    hint = f"Draw a {thing_of(trained.dataset)}, upload a picture, or take a test picture."
    return Stage(answerer.layers, trained.classes, hint)
