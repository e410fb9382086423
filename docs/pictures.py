"""Draw the pictures of the documentation from the library itself: `python -m docs.pictures`.

The same versions on the same machine write the same bytes. The names may be given: `python -m
docs.pictures resets codings`.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import neurospike as ns
from neurospike.data import load
from neurospike.visualization.canvas import BLUE, DIVERGING, GREY, RED, bare, legend, tidy

HERE = Path(__file__).parent
IMAGES = HERE / "images"
RESETS = ("subtract", "zero", "none")
DPI = 90


def figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def reset_traces(reset: str, delay: bool) -> tuple[Tensor, Tensor]:
    """Spikes and membrane `[T, 1, 1]` of a neuron under a steady current that then stops."""
    current = torch.zeros(30, 1, 1)
    current[2:20] = 0.45
    spikes, _, trace = ns.lif(current, beta=0.85, reset=reset, reset_delay=delay, return_trace=True)
    return spikes, trace


def resets() -> Figure:
    """The membrane under every reset, delayed and immediate."""
    drawn = figure(9.5, 5.6)
    panels = drawn.subplots(2, 3, sharex=True, sharey=True)
    for row, delay in zip(panels, (True, False)):
        for axes, reset in zip(row, RESETS):
            spikes, trace = reset_traces(reset, delay)
            name = f"{reset}, {'delayed' if delay else 'immediate'}"
            ns.SpikeVisualizer().plot_membrane_potential(trace, spikes=spikes, title=name, ax=axes)
            axes.get_legend().remove()
            axes.axvspan(2, 20, color="#f0f0f0", zorder=0)
    return drawn


def one_spike() -> Figure:
    """The same spike with the reset one step later, and at once, number by number."""
    current = torch.tensor([0.8, 0.7, 0.0, 0.0, 0.0]).view(-1, 1, 1)
    drawn = figure(9.5, 3.2)
    for axes, delay in zip(drawn.subplots(1, 2, sharey=True), (True, False)):
        spikes, _, trace = ns.lif(current, beta=0.9, reset_delay=delay, return_trace=True)
        values = trace.flatten().tolist()
        axes.step(range(len(values)), values, where="post", color=BLUE, linewidth=1.5)
        axes.plot(range(len(values)), values, "o", color=BLUE, label="membrane handed on")
        for t, value in enumerate(values):
            axes.annotate(f"{value:.3f}", (t, value), (4, 6), textcoords="offset points", size=8)
        fired = spikes.flatten().nonzero().flatten().tolist()
        axes.plot(fired, [1.55] * len(fired), "v", color=RED, label="spike")
        axes.axhline(1.0, color=GREY, linestyle=":", label="threshold")
        axes.set(ylim=(-0.1, 1.7), xlim=(-0.2, len(values) - 0.4), xticks=range(len(values)))
        name = "delayed: the reset is due at the next step" if delay else "immediate"
        tidy(axes, name, "time step", "membrane" if delay else "")
    legend(axes, loc="upper right", bbox_to_anchor=(1, 0.85))
    return drawn


def surrogates() -> Figure:
    """Every built-in surrogate."""
    drawn = figure(9, 4)
    ns.SpikeVisualizer().plot_surrogates(ax=drawn.subplots())
    return drawn


def coding(kind: str) -> Figure:
    """One coding: of every brightness over time, and of a digit, summed."""
    from examples.codings import digit, encode

    image, ramp = digit(), torch.linspace(0, 1, 21)
    if kind in ("rows", "pixels"):
        drawn, _ = ns.SpikeVisualizer(dpi=DPI).plot_input_encoding(image, encode(image, kind))
        return drawn
    code = encode(ramp, kind)
    drawn = figure(9, 3)
    picture, over_time, total = drawn.subplots(1, 3, width_ratios=[1, 2.6, 1.15])
    if kind == "constant":
        ns.SpikeVisualizer().plot_firing_rates(code, ax=over_time)
        drawn.axes[-1].set_ylabel("current", fontsize=9)  # of the colour bar
    else:
        ns.SpikeVisualizer().plot_spike_train(code, ax=over_time)
        over_time.lines[0].set_markersize(6)
        over_time.lines[0].set_markeredgewidth(2.5)
    levels = range(0, 21, 5)
    over_time.set_yticks(levels, [f"{ramp[level]:.2f}" for level in levels])
    over_time.set_title("what a pixel of each brightness does", fontsize=9)
    over_time.set_ylabel("brightness", fontsize=9)
    picture.imshow(image, cmap="gray", interpolation="nearest")
    bare(picture, "a digit")
    summed = total.imshow(
        encode(image, kind).sum(0).view(28, 28), cmap="gray", interpolation="nearest"
    )
    bare(total, "its code, summed over time")
    drawn.colorbar(summed, ax=total, shrink=0.7).ax.tick_params(labelsize=8)
    return drawn


# Neurons with the current of the step that they are shown, and which of their states is a membrane.
NEURONS: dict[str, tuple[Callable[[], ns.Spiking], float, str]] = {
    "synaptic": (lambda: ns.Synaptic(0.8, 0.9), 0.06, "mem"),
    "alpha": (lambda: ns.Alpha(0.9, 0.8), 0.35, "mem"),
    "plif": (lambda: ns.PLIF(0.9), 0.15, "mem"),
    "alif": (lambda: ns.ALIF(0.9, 0.97, 0.8), 0.3, "mem"),
    "se_adlif": (lambda: ns.SEAdLIF(0.9, 0.97, 0.5, 1.0, 3.0), 2.5, "mem"),
    "izhikevich": (lambda: ns.Izhikevich(), 12.0, "v"),
    "qif": (lambda: ns.QIF(), 0.25, "mem"),
    "eif": (lambda: ns.EIF(), 0.95, "mem"),
    "brf": (lambda: ns.BRF(omega=25.0, offset=2.0), 60.0, "real"),
    "one_to_one": (lambda: ns.OneToOne(0.9, -0.5), 0.25, "mem"),
}


def neuron(name: str) -> Figure:
    """What a neuron does under a current that is switched on and off again."""
    make, strength, membrane = NEURONS[name]
    layer = make()
    steps = 300 if name == "izhikevich" else 120
    current = torch.zeros(steps, 1, 1)
    current[steps // 10 : steps * 7 // 10] = strength
    with torch.no_grad():
        spikes, _, traces = layer(current, return_trace=True)
    fired = spikes.flatten().nonzero().flatten().tolist()
    assert fired, f"{name} is silent"
    drawn = figure(9, 2.2)
    axes = drawn.subplots()
    for state, trace in zip(layer.states, traces):
        if state == membrane:
            axes.plot(trace.flatten().tolist(), color=BLUE, linewidth=1.5, label=membrane)
    top = axes.get_ylim()[1]
    axes.plot(fired, [top] * len(fired), "v", color=RED, markersize=5, label="spike")
    axes.axvspan(steps // 10, steps * 7 // 10, color="#f0f0f0", zorder=0)
    tidy(
        axes, f"{type(layer).__name__}: a current of {strength:g} while grey", "time step", membrane
    )
    legend(axes, loc="upper right")
    return drawn


def tiring() -> Figure:
    """A LIF beside the neuron of the example, under one current."""
    from examples.own_neuron import watch

    drawn = figure(9, 1.8)
    axes = drawn.subplots(2, 1, sharex=True)
    for panel, (name, spikes) in zip(axes, watch().items()):
        ns.SpikeVisualizer().plot_spike_train(spikes.view(-1, 1, 1), ax=panel)
        panel.set(yticks=[], ylabel=name)
        panel.lines[0].set_markersize(14)
    axes[0].set_xlabel("")
    return drawn


def delays() -> Figure:
    """When the spikes of each class reach its detector, before and after the delays are learned."""
    from examples import delays as example

    torch.manual_seed(0)
    models = {"as they leave": None, "with the delays drawn": example.Detectors()}
    models["with the delays found"] = example.train()
    drawn = figure(9, 3.4)
    panels = drawn.subplots(2, 3, sharex=True, sharey=True)
    for column, (title, model) in enumerate(models.items()):
        arrivals = example.CLASSES.float() if model is None else example.arrivals(model)
        for row, color in enumerate((BLUE, RED)):
            axes = panels[row, column]
            times = arrivals[row].tolist()
            axes.plot(times, range(len(times)), "|", color=color, markersize=11, markeredgewidth=2)
            tidy(axes, title if row == 0 else "", "time step" if row else "", "")
            if column == 0:
                axes.set_ylabel(f"class {row}: channel", fontsize=9)
    return drawn


def learnt(model: ns.SNNModel, epochs: int) -> tuple[ns.SNNModel, Tensor, Tensor]:
    """The network after a few passes over the bundled digits, and the test digits."""
    data = load("digits", "data")
    images = data.train.images.float().div(255).unsqueeze(1)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for part in torch.randperm(len(images)).split(64):
            loss = nn.functional.cross_entropy(model(images[part]), data.train.labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval(), data.test.images.float().div(255).unsqueeze(1), data.test.labels


def trained() -> tuple[ns.SNNModel, Tensor, Tensor]:
    """A small network after a few passes over the bundled digits, and the test digits."""
    torch.manual_seed(0)
    return learnt(ns.SNNModel(784, 100, 10, num_steps=25, encoding="latency", beta=0.9), 3)


def recurrence() -> Figure:
    """A recurrent layer that reads a digit by rows: what it is given, its spikes, its weights."""
    torch.manual_seed(0)
    reader = ns.SNNModel(
        784,
        64,
        encoding="rows",
        neuron="se_adlif",
        tau=(1, 6),
        tau_adaptation=(10, 60),
        recurrent=True,
        init="kaiming",
    )
    model, images, labels = learnt(reader, 12)
    seen = model.record(images[:1])
    drawn = figure(9.5, 4.4)
    places = [["read", "weights"], ["raster", "weights"]]
    axes = drawn.subplot_mosaic(places, width_ratios=[1.5, 1], height_ratios=[1, 1.6])
    axes["read"].imshow(seen.current[:, 0].T, cmap="gray", aspect="auto", interpolation="nearest")
    axes["read"].set_xticks([])
    tidy(axes["read"], f"a {int(labels[0])}, one row per step", "", "pixel of the row")
    ns.SpikeVisualizer().plot_spike_train(seen.spikes["hidden1"], ax=axes["raster"])
    axes["raster"].set_title("spikes of the recurrent layer", fontsize=10)
    weight = model.neurons[0].weight.detach()
    limit = float(weight.abs().max())
    shown = axes["weights"].imshow(
        weight, cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="nearest"
    )
    tidy(axes["weights"], "weights of the spikes that come back", "from neuron", "to neuron")
    drawn.colorbar(shown, ax=axes["weights"], shrink=0.7).ax.tick_params(labelsize=8)
    return drawn


def network() -> dict[str, Figure]:
    """What the plots make of a trained network."""
    model, images, labels = trained()
    seen = model.record(images[:64])
    current = model.linears[0](seen.current)
    spikes, _, trace = model.neurons[0](current.detach(), return_trace=True)
    visualizer = ns.SpikeVisualizer(dpi=DPI)
    with torch.no_grad():
        scores = model(images)
    plots = {
        "raster": visualizer.plot_spike_train(seen.spikes["hidden1"]),
        "membranes": visualizer.plot_membrane_potential(trace, spikes=spikes, neurons=[3, 40, 77]),
        "rates": visualizer.plot_firing_rates(seen.spikes),
        "confusion": visualizer.plot_confusion_matrix(labels, scores),
        "fields": visualizer.plot_weights(model.linears[0], max_fields=36),
    }
    return {name: drawn for name, (drawn, _) in plots.items()}


def depth() -> Figure:
    """Spike rate and gradient of each of twenty blocks, as measured and stored."""
    from benchmarks import depth as measured

    return measured.draw(measured.stored())


PICTURES: dict[str, Callable[[], Figure | dict[str, Figure]]] = {
    "resets": resets,
    "one_spike": one_spike,
    "surrogates": surrogates,
    "codings": lambda: {
        f"coding_{kind}": coding(kind)
        for kind in ("constant", "rate", "latency", "delta", "phase", "burst", "rows", "pixels")
    },
    "neurons": lambda: {f"neuron_{name}": neuron(name) for name in NEURONS},
    "tiring": tiring,
    "delays": delays,
    "network": network,
    "recurrence": recurrence,
    "depth": depth,
}


def main(names: list[str]) -> int:
    """Draw these, or all; the exit code."""
    if unknown := sorted(set(names) - set(PICTURES)):
        raise SystemExit(f"got {', '.join(unknown)}; wanted some of {', '.join(PICTURES)}")
    IMAGES.mkdir(exist_ok=True)
    for name in names or PICTURES:
        drawn = PICTURES[name]()
        for stem, one in (drawn if isinstance(drawn, dict) else {name: drawn}).items():
            path = IMAGES / f"{stem}.png"
            one.savefig(path, metadata={"Software": None})
            print(f"{path.relative_to(HERE.parent)}, {path.stat().st_size / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
