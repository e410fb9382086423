"""The curves of a training run that is watched."""

from typing import Any

from nicegui import ui

from neurospike.visualization.canvas import COLORS

from .watching import WatchedRun

GREY = "#7d8a9b"  # legible on white and on dark


class Curves:
    """Status line and charts; built into the page that is open."""

    def __init__(self, run: WatchedRun) -> None:
        self.run = run
        with ui.element("section").classes("card status").props('role="status"'):
            self.state = ui.label().classes("state")
            ui.label(str(run.folder)).classes("folder")
            self.problem = ui.label().classes("message")
        self.charts: dict[str, ui.echart] = {}
        with ui.element("div").classes("curves"):
            for name in run.curves():
                with ui.element("section").classes("card"):
                    ui.html(f"<h2>{name.capitalize()}</h2>", sanitize=False)
                    self.charts[name] = ui.echart(_options(name)).classes("chart")
        self.show_state()

    def show_state(self) -> None:
        """Say how far the run is."""
        self.state.text = self.run.state
        self.problem.text = self.run.problem or ""
        self.problem.visible = self.run.problem is not None

    def draw(self) -> None:
        """Draw the curves as they are now."""
        for name, curves in self.run.curves().items():
            chart = self.charts[name]
            chart.options["series"] = [
                _series(curve, points, place)
                for place, (curve, points) in enumerate(curves.items())
            ]
            chart.options["legend"]["data"] = list(curves) if len(curves) > 1 else []
            chart.update()


def _options(name: str) -> dict[str, Any]:
    text = {"color": GREY, "fontSize": 11}
    lines = {"lineStyle": {"color": GREY, "opacity": 0.25}}
    axis = {"axisLabel": text, "axisLine": {"lineStyle": {"color": GREY}}}
    return {
        "animation": False,  # would take the processor from the training that is watched
        "color": [COLORS[4], COLORS[1], COLORS[2], COLORS[3], COLORS[5]],
        "grid": {"left": 4, "right": 12, "top": 26, "bottom": 4, "containLabel": True},
        "legend": {
            "type": "scroll",
            "top": 0,
            "left": "left",
            "textStyle": text,
            "itemWidth": 16,
            "data": [],
        },
        "tooltip": {"trigger": "axis", "confine": True},
        "xAxis": {
            "type": "value",
            "name": "",
            "min": 0,
            "minInterval": 1,
            "splitLine": {"show": False},
            **axis,
        },
        "yAxis": {"type": "value", "scale": name == "accuracy", "splitLine": lines, **axis},
        "series": [],
    }


def _series(name: str, points: list[list[float]], place: int) -> dict[str, Any]:
    # Differs in more than colour: the marks, and every other line is dashed.
    marks = ("circle", "triangle", "rect", "diamond")
    return {
        "name": name,
        "type": "line",
        "data": points,
        "symbol": marks[place % len(marks)],
        "symbolSize": 7,
        "lineStyle": {"width": 2.2, "type": "dashed" if place % 2 else "solid"},
    }
