"""The page's own parts: what NiceGUI tells the browser, and hears from it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nicegui.element import Element

BROWSER = Path(__file__).parent / "browser"


class Pad(Element, component="browser/pad.js"):
    """A pad to draw on; emits `drawn` with a PNG and the moment at which the pen was lifted."""

    def __init__(self, hint: str) -> None:
        """hint: what stands on it while it is empty."""
        super().__init__()
        self._props["hint"] = hint

    def wipe(self) -> None:
        """Wipe it."""
        self.run_method("clear")

    def show(self, picture: dict[str, Any]) -> None:
        """Show a picture that was not drawn, as `answering` packs it."""
        self.run_method("show", picture)


class Stage(Element, component="browser/stage.js", dependencies=["browser/drawing.js"]):
    """Shows an answer, step by step."""

    def __init__(self, layers: list[str], classes: Sequence[str], hint: str) -> None:
        super().__init__()
        self._props["names"] = layers
        self._props["classes"] = list(classes)
        self._props["hint"] = hint

    def show(self, film: dict[str, Any]) -> None:
        """Play an answer of `Answerer.answer`."""
        self.run_method("show", film)

    def wipe(self) -> None:
        """Show none."""
        self.run_method("clear")
