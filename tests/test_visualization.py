"""The plots: what stands in the axes against what was handed in; no test looks at pixels."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import neurospike as ns
from neurospike.errors import MissingDependencyError
from neurospike.visualization.animation import _Film


@pytest.fixture
def visualizer():
    return ns.SpikeVisualizer(dpi=50)


def spikes(*shape, share=0.2):
    return (torch.rand(shape) < share).float()


def points(line):
    """The marks of a line as a set of (x, y)."""
    return set(zip(line.get_xdata(), line.get_ydata()))


def shares(panel):
    """What the rate panel's stairs show for each step, and between which places."""
    values, edges, _ = panel.patches[0].get_data()
    return values, edges


def inside(figure):
    """Draw, and say whether all that is drawn, words too, is within the figure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as of a layout that failed
        figure.canvas.draw()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    return min(drawn.x0, drawn.y0, width - drawn.x1, height - drawn.y1) > -0.05


def wanted_points(train):
    """The spikes of `[T, N]` as a set of (step, neuron), by a plain loop."""
    return {
        (t, n) for t in range(train.shape[0]) for n in range(train.shape[1]) if train[t, n] != 0
    }


# Rasters


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x,
        lambda x: x.numpy(),
        lambda x: x.bool(),
        lambda x: x.bfloat16(),
        lambda x: x.numpy().astype(np.float16),
        lambda x: x.clone().requires_grad_(),
        lambda x: x.int().tolist(),
    ],
)
def test_raster_marks_every_spike_of_every_kind_of_data(visualizer, convert):
    train = spikes(30, 7)
    figure, (raster, rate) = visualizer.plot_spike_train(convert(train))
    assert isinstance(figure, Figure)
    assert points(raster.lines[0]) == wanted_points(train)
    values, edges = shares(rate)
    assert values == pytest.approx(train.mean(1).numpy())
    assert edges.tolist() == [step - 0.5 for step in range(31)]  # the whole of the last step too
    assert rate.lines[0].get_ydata()[0] == pytest.approx(train.mean().item())


def test_raster_of_each_shape(visualizer):
    train = spikes(12, 3, 4, 5)
    for sample in (0, 2, -1):
        _, (raster, _) = visualizer.plot_spike_train(train, sample=sample)
        assert points(raster.lines[0]) == wanted_points(train[:, sample].flatten(1))
    _, (raster, _) = visualizer.plot_spike_train(train[:, 0, 0, 0])
    assert points(raster.lines[0]) == wanted_points(train[:, 0, 0, :1])


def test_negative_spikes_have_marks_of_their_own(visualizer):
    train = spikes(20, 6) - spikes(20, 6)
    _, (raster, rate) = visualizer.plot_spike_train(train)
    up, down = raster.lines
    assert points(up) == wanted_points(train > 0)
    assert points(down) == wanted_points(train < 0)
    assert up.get_marker() != down.get_marker()
    assert shares(rate)[0] == pytest.approx((train != 0).float().mean(1).numpy())
    _, axes = visualizer.plot_firing_rates(train)
    assert axes.images[0].get_array().data == pytest.approx((train != 0).float().T.numpy())


def test_silent_neurons_are_drawn_as_an_empty_raster(visualizer):
    _, (raster, rate) = visualizer.plot_spike_train(torch.zeros(5, 3))
    assert points(raster.lines[0]) == set()
    assert raster.get_xlim() == (-0.5, 4.5)
    assert raster.get_ylim() == (-0.5, 2.5)
    assert set(shares(rate)[0]) == {0}


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (7, 1)])
def test_a_single_neuron_or_step_has_no_fractions_on_its_axis(visualizer, shape):
    train = torch.ones(shape)
    drawn = [visualizer.plot_spike_train(train), visualizer.plot_firing_rates(train)]
    drawn.append(visualizer.plot_membrane_potential(train))
    for figure, axes in drawn:
        figure.canvas.draw()
        panel = np.ravel(axes)[0]
        directions = (panel.xaxis,) if figure is drawn[2][0] else (panel.xaxis, panel.yaxis)
        for axis, count in zip(directions, shape):
            inside = [place for place in axis.get_ticklocs() if -0.5 < place < count - 0.5]
            assert inside
            assert all(place == round(place) for place in inside), inside


@pytest.mark.parametrize("other", [0.37, float("nan"), float("inf"), 2, -3])
def test_numbers_that_are_no_spikes_are_refused(visualizer, other):
    train = spikes(9, 4)
    train[3, 2] = other
    with pytest.raises(ValueError, match=f"spikes must be 0 or 1 .*, got {other:g} among them; "):
        visualizer.plot_spike_train(train)
    with pytest.raises(ValueError, match=r"spikes must be 0 or 1 .* plot_membrane_potential"):
        visualizer.plot_membrane_potential(train, spikes=train)
    _, (raster, _) = visualizer.plot_spike_train(train != 0)  # as the error says
    assert points(raster.lines[0]) == wanted_points(train)


def test_ten_thousand_neurons_are_thinned(visualizer, tmp_path):
    train = spikes(1000, 10_000, share=0.05)
    figure, (raster, rate) = visualizer.plot_spike_train(train)
    figure.savefig(tmp_path / "raster.png")
    drawn = points(raster.lines[0])
    assert len(drawn) < 1.2 * visualizer.max_marks
    shown = sorted({int(neuron) for _, neuron in drawn})
    assert set(np.diff(shown)) == {shown[1]}  # evenly spaced from neuron 0
    assert drawn == wanted_points_of(train, shown)
    assert f"{len(shown)} of 10,000 drawn" in raster.get_ylabel()
    assert shares(rate)[0] == pytest.approx(train.mean(1).numpy(), rel=1e-5)


@pytest.mark.parametrize(
    "plot",
    [
        lambda v, train: v.plot_membrane_potential(train),
        lambda v, train: v.plot_firing_rates(train),
        lambda v, train: v.plot_input_encoding(torch.rand(100, 100), train),
        lambda v, train: v.plot_input_encoding(torch.rand(100, 100), train / 2),
    ],
    ids=["membranes", "rates", "spikes in", "currents in"],
)
def test_no_plot_over_time_draws_more_of_ten_thousand_neurons_than_can_be_seen(visualizer, plot):
    """`pytest benchmarks -k plots` says how long they take."""
    figure, _ = plot(visualizer, spikes(1000, 10_000, share=0.05))
    for axes in figure.axes:
        assert len(axes.lines) <= 4
        assert sum(len(line.get_xdata()) for line in axes.lines) < 1.2 * visualizer.max_marks
        for image in axes.images:
            assert max(image.get_array().shape) <= visualizer.max_cells


def wanted_points_of(train, shown):
    some = train[:, shown].numpy()
    return {(int(t), shown[k]) for t, k in np.argwhere(some)}


def test_long_titles_take_several_lines(visualizer):
    title = "spikes of " + "a layer with a long name " * 6
    figure, (raster, _) = visualizer.plot_spike_train(spikes(20, 5), title=title)
    assert inside(figure)
    assert " ".join(raster.get_title().split()) == title.strip()
    name = "network.encoder.stages.3.blocks.1.second_convolution." * 2
    figure, axes = visualizer.plot_firing_rates({name: spikes(20, 5), name[1:]: spikes(20, 5)})
    assert inside(figure)
    assert all("mean rate 0." in panel.get_title() for panel in axes)


def test_a_rate_that_is_not_zero_is_not_called_so(visualizer):
    train = torch.zeros(100, 100)
    train[3, 4] = 1
    _, (_, rate) = visualizer.plot_spike_train(train)
    assert rate.get_ylabel() == "rate\n(mean 0.0001)"
    assert visualizer.plot_firing_rates(train)[1].get_title() == "mean rate 0.0001"


# Membranes


def test_membranes_with_threshold_and_spikes_where_the_layer_fired(visualizer):
    fired, _, trace = ns.LIF(0.9)(torch.rand(40, 2, 9) * 0.5, return_trace=True)
    _, panels = visualizer.plot_membrane_potential(trace, sample=1, neurons=[0, 5])
    for panel, neuron in zip(panels, (0, 5)):
        curve, level, marks = panel.lines
        assert curve.get_ydata().tolist() == trace[:, 1, neuron].tolist()
        assert set(level.get_ydata()) == {1.0}
        assert marks.get_xdata().tolist() == torch.where(fired[:, 1, neuron] > 0)[0].tolist()
        assert marks.get_ydata().tolist() == trace[fired[:, 1, neuron] > 0, 1, neuron].tolist()


def test_spikes_handed_in_are_marked_and_thresholds_may_differ(visualizer):
    fired, _, trace = ns.LIF(0.9, reset_delay=False)(torch.rand(30, 1, 2), return_trace=True)
    _, panels = visualizer.plot_membrane_potential(
        trace, spikes=fired, threshold=torch.tensor([1.0, 2.0])
    )
    for neuron, panel in enumerate(panels):
        assert set(panel.lines[1].get_ydata()) == {1.0 + neuron}
        wanted = torch.where(fired[:, 0, neuron] > 0)[0].tolist()
        assert panel.lines[2].get_xdata().tolist() == wanted


def test_many_membranes_are_four_and_a_readout_has_no_threshold(visualizer):
    trace, _ = ns.LI(0.9)(torch.rand(10, 1, 100))
    _, panels = visualizer.plot_membrane_potential(trace, threshold=None)
    names = [panel.get_legend().get_texts()[0].get_text() for panel in panels]
    assert names == ["neuron 0", "neuron 33", "neuron 66", "neuron 99"]
    assert [len(panel.lines) for panel in panels] == [2, 2, 2, 2]
    assert all(len(panel.lines[1].get_xdata()) == 0 for panel in panels)


def test_a_single_step_is_a_dot_where_there_is_no_line(visualizer, tmp_path):
    _, axes = visualizer.plot_membrane_potential(torch.full((1, 1), 0.5))
    assert axes.lines[0].get_marker() == "o"
    model = ns.SNNModel(16, 5, 3, num_steps=1)
    film = _Film(visualizer, model.record(torch.rand(1, 1, 4, 4)), None, None, None)
    assert {curve.get_marker() for curve in film.curves} == {"o"}
    assert visualizer.plot_membrane_potential(torch.rand(2, 1))[1].lines[0].get_marker() == "None"


# Heat maps


def test_firing_rates_are_the_means_over_the_batch(visualizer):
    activity = {"conv": spikes(6, 5, 2, 3, 3), "hidden": spikes(6, 5, 4)}
    _, axes = visualizer.plot_firing_rates(activity)
    for panel, train in zip(axes, activity.values()):
        shown = panel.images[0].get_array().data
        assert shown == pytest.approx(train.mean(1).flatten(1).T.numpy())
    titles = [f"{name}, mean rate {train.mean():.3f}" for name, train in activity.items()]
    assert [panel.get_title() for panel in axes] == titles
    _, axes = visualizer.plot_firing_rates(activity["hidden"], title="mine")
    assert axes.get_title() == f"mine, mean rate {activity['hidden'].mean():.3f}"


def test_many_neurons_and_steps_are_averaged_and_none_is_lost():
    small = ns.SpikeVisualizer(max_cells=10)
    train = spikes(25, 33)
    _, axes = small.plot_firing_rates(train)
    shown = axes.images[0].get_array().data
    assert shown.shape == (9, 9)  # bins of 4 neurons and 3 steps, the last ones smaller
    for row in range(9):
        for column in range(9):
            part = train[3 * column : 3 * column + 3, 4 * row : 4 * row + 4]
            assert shown[row, column] == pytest.approx(part.mean().item())
    assert axes.get_ylabel() == "neuron (mean of 4)"
    assert axes.get_xlabel() == "time step (mean of 3)"


def test_currents_have_a_scale_of_their_own_and_are_no_spikes(visualizer):
    current = torch.randn(6, 5, 4)
    figure, axes = visualizer.plot_firing_rates(current)
    mean = current.mean(1)
    assert axes.images[0].get_clim() == pytest.approx((mean.min().item(), mean.max().item()))
    assert axes.get_title() == f"mean {mean.mean():.3f}"
    assert figure.axes[1].get_ylabel() == "mean of neuron and step"
    figure, axes = visualizer.plot_firing_rates(spikes(6, 5, 4))
    assert axes.images[0].get_clim()[0] == 0
    assert figure.axes[1].get_ylabel() == "spikes per neuron and step"


@pytest.mark.parametrize(("level", "scale"), [(0, (0, 1)), (1, (0, 1)), (255, (0, 255))])
def test_a_picture_of_one_grey_is_as_dark_as_it_is(visualizer, level, scale):
    image = torch.full((4, 4), float(level))
    _, axes = visualizer.plot_input_encoding(image, torch.zeros(3, 16))
    assert axes[0].images[0].get_clim() == scale
    assert axes[2].images[0].get_clim() == (0, 1)  # black, for nothing came of it


def test_input_encoding_shows_picture_code_and_sum(visualizer):
    image = torch.rand(3, 1, 5, 4)
    encoded = ns.encoding.rate(image.flatten(1), 8)
    _, (picture, over_time, total) = visualizer.plot_input_encoding(image, encoded, sample=1)
    assert picture.images[0].get_array().data == pytest.approx(image[1, 0].numpy())
    assert points(over_time.lines[0]) == wanted_points(encoded[:, 1])
    assert total.images[0].get_array().data.tolist() == encoded[:, 1].sum(0).view(5, 4).tolist()


def test_input_currents_are_a_heat_map(visualizer):
    image = torch.rand(5, 4)
    encoded = ns.encoding.constant(image.view(1, -1), 8)
    _, axes = visualizer.plot_input_encoding(image, encoded)
    assert axes[1].images[0].get_array().data == pytest.approx(encoded[:, 0].T.numpy())


# Training


HISTORY = {
    "train_loss": [1.0, 0.5, 0.2],
    "validation_loss": [1.1, None, 0.4],
    "train_accuracy": [0.5, 0.7, 0.9],
}


@pytest.mark.parametrize("as_records", [True, False])
def test_history_by_epoch(visualizer, as_records):
    history = HISTORY
    if as_records:
        history = [
            {"epoch": k + 1, **{name: values[k] for name, values in HISTORY.items()}}
            for k in range(3)
        ]
    _, (loss, accuracy) = visualizer.plot_training_history(
        history, test={"accuracy": 0.8, "loss": 0.3}, loss="mse"
    )
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("mse", "accuracy (%)")
    training, validation, test = loss.lines
    assert points(training) == {(1, 1.0), (2, 0.5), (3, 0.2)}
    assert points(validation) == {(1, 1.1), (3, 0.4)}
    assert set(test.get_ydata()) == {0.3}
    training, test = accuracy.lines
    assert training.get_ydata() == pytest.approx([50, 70, 90])
    assert set(test.get_ydata()) == {80.0}
    labels = [text.get_text() for text in accuracy.get_legend().get_texts()]
    assert labels == ["training", "test 80.00%"]


@pytest.mark.parametrize(
    ("history", "test", "wanted"),
    [
        ({"train_loss": [1.0, 0.4]}, None, ["Loss"]),
        ({"train_loss": [1.0], "validation_accuracy": [None]}, None, ["Loss"]),
        ({"validation_accuracy": [0.5]}, None, ["Accuracy"]),
        ({"train_loss": [1.0]}, {"accuracy": 0.5}, ["Loss", "Accuracy"]),
    ],
)
def test_history_has_no_empty_panel(visualizer, history, test, wanted):
    figure, axes = visualizer.plot_training_history(history, test=test)
    assert [panel.get_title() for panel in np.ravel(axes)] == wanted
    assert figure.axes == np.ravel(axes).tolist()
    assert all(panel.has_data() for panel in figure.axes)


def test_history_of_losses_alone_draws_into_one_axes_or_two_of_the_callers(visualizer):
    losses = {"train_loss": [1.0, 0.4]}
    one, pair = Figure().subplots(), Figure().subplots(1, 2)
    assert visualizer.plot_training_history(losses, ax=one)[1] is one
    assert one.get_ylabel() == "loss"
    _, drawn = visualizer.plot_training_history(losses, ax=pair)
    assert drawn.tolist() == pair.tolist()
    with pytest.raises(ValueError, match="ax must be a sequence of 2 Axes"):
        visualizer.plot_training_history(HISTORY, ax=one)


def test_history_without_epochs_is_empty_axes(visualizer):
    _, axes = visualizer.plot_training_history([])
    assert [len(panel.lines) for panel in axes] == [0, 0]


def test_confusion_matrix_counts_what_a_loop_counts(visualizer):
    labels, scores = torch.randint(4, (200,)), torch.randn(200, 5)
    wanted = np.zeros((5, 5), dtype=int)
    for label, answer in zip(labels.tolist(), scores.argmax(1).tolist()):
        wanted[label, answer] += 1
    for arguments in ((labels, scores), (labels.numpy(), scores.argmax(1)), (wanted,)):
        _, axes = visualizer.plot_confusion_matrix(*arguments)
        written = {text.get_position(): int(text.get_text()) for text in axes.texts}
        assert written == {(c, r): wanted[r, c] for r, c in np.argwhere(wanted)}
        shares = wanted / np.maximum(wanted.sum(1, keepdims=True), 1)
        assert axes.images[0].get_array().data ** 2 == pytest.approx(shares)
        assert axes.get_title() == f"accuracy {wanted.trace() / 200:.2%}"


def test_whole_numbers_in_any_format_are_counts(visualizer):
    for counts in (np.eye(3), np.eye(3, dtype=bool), torch.eye(3, dtype=torch.float16)):
        _, axes = visualizer.plot_confusion_matrix(counts)
        assert [text.get_text() for text in axes.texts] == ["1"] * 3


def test_class_names_are_on_the_axes(visualizer):
    _, axes = visualizer.plot_confusion_matrix(np.eye(2, dtype=int), classes=["cat", "dog"])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["cat", "dog"]


def test_long_class_names_have_room(visualizer, tmp_path):
    names = ["a class whose name is a whole sentence, as folders have it", "b", "c"]
    figure, _ = visualizer.plot_confusion_matrix(np.eye(3, dtype=int), classes=names)
    assert inside(figure)
    film = _Film(visualizer, recorded_of(3), None, None, names)
    film.show(0)
    assert inside(film.figure)


def test_of_many_classes_no_words_run_into_each_other(visualizer):
    labels = torch.arange(1000)
    figure, axes = visualizer.plot_confusion_matrix(labels, labels)
    assert inside(figure)
    assert not axes.texts and max(figure.get_size_inches()) < 15
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == [str(25 * k) for k in range(40)]
    assert [tick.get_text() for tick in figure.axes[1].get_yticklabels()][-2:] == ["50%", "100%"]
    film = _Film(visualizer, recorded_of(100), None, None, None)
    assert 5 < len(film.figure.axes[-1].get_yticklabels()) <= 16


def recorded_of(classes):
    return ns.SNNModel(16, 5, classes, num_steps=2).record(torch.rand(1, 1, 4, 4))


@pytest.mark.parametrize("shape", [(1, 700), (700, 1), (4, 100)])
def test_receptive_fields_that_are_no_squares_can_be_seen(visualizer, shape):
    figure, axes = visualizer.plot_weights(torch.nn.Linear(shape[0] * shape[1], 5), shape=shape)
    assert inside(figure)
    assert 2 < figure.get_size_inches()[1] < 12
    box = axes.get_window_extent()
    assert min(box.width, box.height) > 30  # of 300 dots, the figure's width


def test_receptive_fields_of_a_linear_layer(visualizer):
    layer = torch.nn.Linear(15, 10)
    _, axes = visualizer.plot_weights(layer, shape=(3, 5), max_fields=4)
    shown = axes.images[0].get_array()
    fields = layer.weight.detach()[[0, 3, 6, 9]].view(4, 3, 5).numpy()
    assert shown[:3, :5].data == pytest.approx(fields[0])
    assert shown[:3, 6:].data == pytest.approx(fields[1])
    assert shown[4:, :5].data == pytest.approx(fields[2])
    assert shown[4:, 6:].data == pytest.approx(fields[3])
    assert np.ma.getmaskarray(np.ma.masked_invalid(shown))[3].all()  # the gap
    low, high = axes.images[0].get_clim()
    assert low == -high
    assert axes.get_title().endswith("(4 of 10)")


@pytest.mark.parametrize(("count", "most"), [(256, 36), (10, 9), (64, 64), (5, 64), (7, 1)])
def test_as_many_receptive_fields_are_drawn_as_may_be(visualizer, count, most):
    weights = torch.arange(1.0, count + 1)[:, None].expand(count, 4)
    _, axes = visualizer.plot_weights(weights, max_fields=most)
    shown = axes.images[0].get_array().data
    drawn = np.unique(shown[~np.isnan(shown)]) - 1
    assert len(drawn) == min(count, most)
    assert drawn[0] == 0
    assert np.ptp(np.diff(drawn)) <= 1 if len(drawn) > 2 else True


def test_receptive_fields_of_every_kernel(visualizer):
    kernels = torch.randn(2, 2, 3, 3)
    _, axes = visualizer.plot_weights(kernels)
    shown = axes.images[0].get_array().data
    assert shown[:3, 4:7].tolist() == kernels[0, 1].tolist()
    assert shown[4:7, :3].tolist() == kernels[1, 0].tolist()


def test_surrogates_are_their_derivatives(visualizer):
    _, axes = visualizer.plot_surrogates()
    labels = [line.get_label() for line in axes.lines]
    assert labels[0] == "atan(2)"
    assert len(labels) == len(ns.surrogate.BUILT_IN)
    for line, maker in zip(axes.lines, ns.surrogate.BUILT_IN.values()):
        u = torch.tensor(line.get_xdata())
        assert torch.allclose(torch.as_tensor(line.get_ydata()), maker()(u))
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == len(labels)


def test_surrogates_of_the_users(visualizer):
    def flat(u):
        return 0.5

    _, axes = visualizer.plot_surrogates([flat, ns.surrogate.atan(5.0)], reach=1)
    assert set(axes.lines[0].get_ydata()) == {0.5}
    assert [line.get_label() for line in axes.lines] == ["flat", "atan(5)"]


def test_surrogates_have_ticks_up_to_their_peak(visualizer):
    _, axes = visualizer.plot_surrogates([ns.surrogate.atan(400.0)])
    peak = axes.lines[0].get_ydata().max()
    assert peak / 3 < axes.get_yticks().max() <= peak


def test_marks_of_many_epochs_do_not_run_into_each_other(visualizer):
    _, axes = visualizer.plot_training_history({"train_loss": [1.0] * 500})
    assert axes.lines[0].get_markevery() == 10
    assert len(axes.lines[0].get_xdata()) == 500


# Animation


@pytest.fixture(params=["membrane", "spikes"])
def model(request):
    return ns.SNNModel(16, [9, 6], 3, num_steps=5, readout=request.param)


def test_animation_has_a_frame_a_step_and_is_a_gif(visualizer, model, tmp_path):
    path = visualizer.animate(model, torch.rand(1, 4, 4), tmp_path / "a.gif", hold=0, label=2)
    with Image.open(path) as film:
        assert film.format == "GIF"
        assert film.n_frames == 5


def test_a_film_of_a_deep_network_has_room_for_every_layer(visualizer):
    model = ns.ResidualSNN(num_steps=2, channels=[2, 2], blocks=[3, 3])
    film = _Film(visualizer, model.record(torch.rand(1, 1, 28, 28)), None, None, None)
    film.show(1)
    assert inside(film.figure)
    boxes = sorted(
        (panel.get_tightbbox() for panel in film.figure.axes if panel.get_title() in film.layers),
        key=lambda box: box.y0,
    )
    assert len(boxes) == len(film.layers) > 5
    assert all(below.y1 <= above.y0 for below, above in zip(boxes, boxes[1:]))


def test_frames_show_what_had_happened_by_then(visualizer, model):
    picture = torch.rand(1, 1, 4, 4)
    recorded = model.record(picture)
    film = _Film(visualizer, recorded, picture[0, 0].numpy(), 1, None)
    for step in (4, 0, 2):
        film.show(step)
        shown = film.input.get_array().data
        assert shown == pytest.approx(recorded.current[step, 0].view(4, 4).numpy())
        for (marks, _), train in zip(film.marks, recorded.spikes.values()):
            assert points(marks) == wanted_points(train[: step + 1, 0])
        for neuron, curve in enumerate(film.curves):
            assert curve.get_ydata().tolist() == recorded.output[: step + 1, 0, neuron].tolist()
        widths = [bar.get_width() for bar in film.bars]
        assert widths == pytest.approx(recorded.votes[step, 0].tolist())
        leader = recorded.votes[step, 0].argmax()
        title = film.figure.get_suptitle()
        assert title == f"step {step + 1} of 5: answer {leader}, true class 1"


def test_recording_is_what_the_network_answers(model):
    pictures = torch.rand(6, 1, 4, 4)
    recorded = model.record(pictures)
    scores, activity = model(pictures, return_activity=True)
    assert torch.equal(recorded.scores, scores)
    assert activity.keys() == recorded.spikes.keys()
    assert all(torch.equal(activity[name], recorded.spikes[name]) for name in activity)
    assert torch.allclose(recorded.votes[-1], scores)
    assert torch.equal(recorded.votes[0], recorded.output[0])
    assert recorded.current.shape == (5, 6, 16)
    assert not recorded.scores.requires_grad


def test_mp4_without_ffmpeg_says_what_to_do(visualizer, model, tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.animation.writers.is_available", lambda name: False)
    with pytest.raises(
        MissingDependencyError, match=r"program ffmpeg: install it, or write a .gif"
    ):
        visualizer.animate(model, torch.rand(4, 4), tmp_path / "a.mp4")
    with pytest.raises(MissingDependencyError, match="package pillow: install it"):
        visualizer.animate(model, torch.rand(4, 4), tmp_path / "a.gif")


# Axes of the caller's


def test_every_plot_draws_into_given_axes_and_no_others(visualizer):
    train = spikes(9, 4)
    matrix, image = np.eye(3, dtype=int), torch.rand(2, 2)
    calls = {
        "plot_spike_train": (2, [train]),
        "plot_membrane_potential": (1, [train]),
        "plot_firing_rates": (1, [train]),
        "plot_input_encoding": (3, [image, train]),
        "plot_training_history": (2, [HISTORY]),
        "plot_confusion_matrix": (1, [matrix]),
        "plot_weights": (1, [torch.rand(4, 9)]),
        "plot_surrogates": (1, []),
    }
    plots = {name for name in dir(visualizer) if name.startswith("plot_")}
    assert plots == set(calls)
    for name, (count, arguments) in calls.items():
        mine = Figure()
        given = mine.subplots(1, count + 1, squeeze=False)[0]
        ax = given[0] if count == 1 else list(given[:count])
        figure, axes = getattr(visualizer, name)(*arguments, ax=ax, title="my title")
        assert figure is mine
        assert np.ravel(axes).tolist() == given[:count].tolist()
        assert all(one.has_data() for one in given[:count])
        assert not given[count].has_data()
        titles = [one.get_title() for one in given] + [figure.get_suptitle()]
        assert any("my title" in title for title in titles)
        with pytest.raises(ValueError, match=r"ax must be .* leave it out for new"):
            getattr(visualizer, name)(*arguments, ax=[*given, given[0]])
        with pytest.raises(ValueError, match="ax must be"):
            getattr(visualizer, name)(*arguments, ax=3)


def test_a_single_axes_takes_the_raster_alone(visualizer):
    axes = Figure().subplots()
    _, drawn = visualizer.plot_spike_train(spikes(9, 4), ax=axes)
    assert drawn is axes


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: v.plot_spike_train("spikes"), "spikes must be a tensor or array of real"),
        (lambda v: v.plot_spike_train(torch.zeros(2, dtype=torch.complex64)), "real numbers"),
        (lambda v: v.plot_spike_train([[1], [1, 2]]), "real numbers"),
        (lambda v: v.plot_spike_train(torch.tensor(1.0)), r"must be \[T\], \[T, N\]"),
        (lambda v: v.plot_spike_train(torch.zeros(0, 3)), "at least one step and one neuron"),
        (lambda v: v.plot_spike_train(torch.zeros(3, 2, 0)), "at least one step and one neuron"),
        (lambda v: v.plot_spike_train(torch.zeros(3, 2, 4), sample=2), "there is no sample 2"),
        (lambda v: v.plot_membrane_potential(torch.zeros(3, 2), neurons=[2]), "must be below 2"),
        (lambda v: v.plot_membrane_potential(torch.zeros(3, 2), neurons=[]), "indices of neurons"),
        (
            lambda v: v.plot_membrane_potential(torch.zeros(3, 2), threshold=torch.ones(3)),
            r"one number or one per neuron \(2\), got 3",
        ),
        (
            lambda v: v.plot_membrane_potential(torch.zeros(3, 2), spikes=torch.zeros(2, 2)),
            r"steps and neurons \(3, 2\), got \(2, 2\)",
        ),
        (lambda v: v.plot_firing_rates({}), "no layer to draw"),
        (lambda v: v.plot_firing_rates({"a": torch.zeros(3, 0)}), "activity a must be"),
        (
            lambda v: v.plot_input_encoding(torch.zeros(2, 2), torch.zeros(3, 5)),
            r"with the 5 values the code has per step, got \(2, 2\)",
        ),
        (lambda v: v.plot_training_history({"a": [1], "b": [1, 2]}), "one value per epoch"),
        (lambda v: v.plot_confusion_matrix(torch.zeros(3)), "must be a matrix"),
        (lambda v: v.plot_confusion_matrix([0, 1], [0, 1, 1]), r"predictions \[N\] or \[N, C\]"),
        (lambda v: v.plot_confusion_matrix([0, -1], [0, 1]), "negative"),
        (
            lambda v: v.plot_confusion_matrix([[0.9, 0.1], [0.5, 0.5]]),
            "counts must be whole numbers; of shares draw the counts, got 0.9",
        ),
        (
            lambda v: v.plot_confusion_matrix(torch.tensor([0.0, 1.5]), [0, 1]),
            "labels must be whole numbers, each the number of a class, got 1.5",
        ),
        (
            lambda v: v.plot_confusion_matrix([0, 1], torch.tensor([0.0, torch.nan])),
            "predictions must be whole numbers, .* got nan",
        ),
        (
            lambda v: v.plot_confusion_matrix([0, 1], torch.tensor([[0.0, torch.nan], [1, 0]])),
            r"predictions \[N, C\] have NaN in 1 of 2 rows, .* leave these samples out",
        ),
        (
            lambda v: v.plot_confusion_matrix(np.eye(3), classes=["a"]),
            "there are 3 classes, got 1 names",
        ),
        (lambda v: v.plot_weights(torch.zeros(3)), r"\[N, H\*W\] or \[O, I, h, w\]"),
        (lambda v: v.plot_weights(torch.zeros(3, 6)), "not 2 x 2: give their shape"),
        (lambda v: v.plot_surrogates(reach=0), "reach must be above 0"),
        (lambda v: v.plot_surrogates(["arctan"]), "unknown surrogate 'arctan'"),
        (
            lambda v: v.animate(None, torch.zeros(2, 2), "a.gif", frames_per_second=0),
            "frames_per_second must be above 0",
        ),
        (lambda v: v.animate(None, torch.zeros(2), "a.gif"), r"image must be \[H, W\]"),
        (lambda v: ns.SpikeVisualizer(dpi=0), "dpi must be a whole number of at least 1, got 0"),
    ],
)
def test_errors_say_what_was_wanted(visualizer, call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(visualizer)


def test_a_path_of_another_kind_is_refused(visualizer, model):
    with pytest.raises(ValueError, match=r"must end in .gif or .mp4, got 'a.webm'"):
        visualizer.animate(model, torch.rand(4, 4), "a.webm")


def test_without_matplotlib_the_first_plot_says_what_to_install(visualizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match="pip install matplotlib"):
        visualizer.plot_surrogates()


def test_importing_the_package_and_making_a_visualiser_loads_no_matplotlib():
    code = (
        "import sys, neurospike as ns; ns.SpikeVisualizer();"
        "assert 'matplotlib' not in sys.modules and 'PIL' not in sys.modules;"
        "ns.SpikeVisualizer().plot_spike_train([0, 1]);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
