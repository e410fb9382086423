"""The commands as a user meets them: flags, exit codes, lines printed, files left behind."""

import io
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import neurospike.__main__ as modes
from neurospike import evaluate, export, predict, train
from neurospike.config import Config, cli, fields, load_config
from neurospike.data import DigitData, Split, load
from neurospike.errors import ConfigError, NeuroSpikeError
from neurospike.training import SNNTrainer, load_checkpoint
from neurospike.training.checks import check_data
from neurospike.training.progress import progress_bar
from neurospike.training.records import check_folder
from neurospike.training.setup import make_optimizer

SMALL = ["--model.hidden_size=16", "--num-steps=4", "--batch_size=16", "--threads=1", "--epochs=2"]
SMALL[:0] = ["--training.warmup=0", "--training.rate_penalty=0"]  # it learns in a few steps
ROOT = Path(__file__).parents[1]


def parse(*argv):
    return cli.parse(argv, "prog", "about")


def tiny_split(count, seed):
    """Pictures of two classes, bright above or below, labelled 0 and 1."""
    drawn = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=drawn)
    images = torch.randint(60, (count, 28, 28), generator=drawn, dtype=torch.uint8)
    images[labels == 0, :14] += 150
    images[labels == 1, 14:] += 150
    return Split(images, labels)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder, and a tiny data set under every name."""

    def load(name, data_path, download=True):
        return DigitData(name, tiny_split(200, 0), tiny_split(80, 1), f"{name}: tiny pictures")

    monkeypatch.setattr(train, "load", load)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def run_lines(folder):
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


# Flags


def test_every_key_is_a_flag_and_its_default_text_is_the_default():
    for key, _, _, default in fields():
        text = str(default).lower() if isinstance(default, bool) else str(default)
        path, overrides = parse(f"--{key}", text)
        assert (path, overrides) == (None, {key: text})
        assert load_config(os.devnull, overrides) == Config()


def test_flags_take_dashes_short_names_and_equal_signs():
    path, overrides = parse("--config=a-b.yaml", "--data-path=x-y", "--learning-rate", "0.01")
    assert path == Path("a-b.yaml")
    assert overrides == {"data_path": "x-y", "training.learning_rate": "0.01"}
    assert parse("--hidden-size", "256,128")[1] == {"model.hidden_size": "256,128"}
    assert parse("--training.learning-rate=1")[1] == {"training.learning_rate": "1"}
    assert parse("--encoding.offset", "-0.1")[1] == {"encoding.offset": "-0.1"}
    assert parse("--model.learn_beta", "--seed", "1")[1] == {
        "model.learn_beta": "true",
        "seed": "1",
    }


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--epoch", "3"], "no such flag --epoch; did you mean --epochs?"),
        (["--learning-rte=3"], "no such flag --learning_rte; did you mean --learning_rate?"),
        (["--beta", "1"], "no such flag --beta; did you mean --model.beta?"),
        (["--bakend", "numba"], "no such flag --bakend; did you mean --backend?"),
        (["--xyzzy"], "no such flag --xyzzy; see --help"),
        (["train"], "unexpected 'train': every value follows its flag"),
        (["--seed"], "--seed: expected one argument"),
    ],
)
def test_wrong_flags_are_refused_with_the_nearest(argv, expected):
    with pytest.raises(ConfigError) as caught:
        parse(*argv)
    assert str(caught.value).startswith(expected)


def test_help_names_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(f"--{key} " in shown for key, *_ in fields())
    assert "<= 4294967295; default: 0)" in shown
    assert "(a number > 0; default: 1.0)" in shown
    assert "(true or false; default: true)" in shown
    assert "or null; default: null)" in shown


# Exit codes


@pytest.mark.parametrize("error", [NeuroSpikeError("the reason"), OSError(28, "No space", "f")])
def test_errors_of_the_user_end_with_2_and_one_line(capsys, error):
    def job():
        raise error

    assert cli.guarded(job) == 2
    shown = capsys.readouterr()
    assert shown.err == f"error: {error}\n"
    assert shown.out == ""


def test_bugs_keep_their_traceback():
    def job():
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        cli.guarded(job)


@contextmanager
def unread(patch, *names):
    """Let standard streams have no reader any more, as stdout has behind `| head`."""
    reader, writer = os.pipe()
    os.close(reader)
    # Closing it writes what is left, as Python does at its end, so that has to be possible.
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        for name in names:
            patch.setattr(sys, name, stream)
        yield


@pytest.mark.parametrize("flush", [True, False])
def test_a_command_whose_output_nobody_reads_ends_quietly(monkeypatch, capfd, flush):
    def job():
        sys.stdout.write("a line\n")
        if flush:
            sys.stdout.flush()
        return 0

    with unread(monkeypatch, "stdout"):
        assert cli.guarded(job) == 141
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("argv", [["--help"], ["predict", "--help"], ["live", "--help"]])
def test_help_that_nobody_reads_ends_quietly(monkeypatch, capfd, argv):
    with unread(monkeypatch, "stdout"):
        assert modes.main(argv) == 141
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("names", [["stdout"], ["stdout", "stderr"]])
def test_an_error_keeps_its_exit_code_where_nobody_reads(monkeypatch, capfd, names):
    def job():
        sys.stdout.write("a line\n")
        raise NeuroSpikeError("the reason")

    with unread(monkeypatch, *names):
        assert cli.guarded(job) == 2
    assert capfd.readouterr().err == ("" if "stderr" in names else "error: the reason\n")


def test_what_cannot_be_printed_is_an_error(monkeypatch, capfd):
    with open(os.devnull, "w", encoding="utf-8") as target:  # noqa: PTH123

        class Full(io.StringIO):
            def flush(self):
                raise OSError(28, "No space left on device")

            def fileno(self):
                return target.fileno()

        monkeypatch.setattr(sys, "stdout", Full())
        assert cli.guarded(lambda: 0) == 2
    assert capfd.readouterr().err == "error: [Errno 28] No space left on device\n"


def test_a_command_works_with_its_output_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.guarded(lambda: 0) == 0


def test_with_stderr_closed_errors_are_not_told_among_the_results(monkeypatch, capsys):
    def job():
        raise NeuroSpikeError("the reason")

    monkeypatch.setattr(sys, "stderr", None)
    assert cli.guarded(job) == 2
    assert sys.stderr is None
    assert capsys.readouterr().out == ""


def test_a_network_is_trained_without_stderr(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with progress_bar("epoch 1", 3) as show:
        assert show is None


def test_what_a_code_page_lacks_is_printed_as_an_escape(monkeypatch):
    pipe = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", newline="")  # as on Windows
    monkeypatch.setattr(sys, "stdout", pipe)

    def job():
        sys.stdout.write("\u6570.png: 3\n")
        return 0

    assert cli.guarded(job) == 0
    pipe.flush()
    assert pipe.buffer.getvalue() == b"\\u6570.png: 3\n"
    assert pipe.errors == "strict"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("new.pt2", None),
        ("new/folder/x.pt2", None),
        ("there", "--out: there is a folder; name a file"),
        ("no/", "--out: no/ is a folder; name a file"),
        ("", "is a folder; name a file"),
        ("file/x.pt2", "--out: file/x.pt2: cannot write the file: "),
    ],
)
def test_a_file_that_cannot_be_written_is_told_before_the_work(folder, path, expected):
    Path("there").mkdir()
    Path("file").touch()
    if expected is None:
        cli.check_target("--out", path)
    else:
        with pytest.raises(ConfigError) as caught:
            cli.check_target("--out", path)
        assert expected in str(caught.value)
    assert sorted(p.name for p in folder.iterdir()) == ["file", "there"]


def test_a_read_only_folder_is_told_before_the_work(folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(ConfigError, match=r"x\.pt2: cannot write the file: .* is read-only"):
        cli.check_target("--out", "x.pt2")
    with pytest.raises(NeuroSpikeError, match=r"run folder x: .* is read-only; give another"):
        check_folder(Path("x"))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "no command was named; there are train, predict, evaluate, export, live"),
        (["--epochs", "3"], "no command was named"),
        (["--mode"], "no command was named"),
        (
            ["trian"],
            "trian: no such command, there are train, predict, evaluate, export, live; did",
        ),
        (["trian"], "did you mean train?"),
        (["--mode", "fly"], "--mode fly: no such command, there are train, predict"),
        (["--mode=infer"], "--mode infer: no such command"),
        (["--mode=infer"], "did you mean inference?"),
        (["train", "--lr", "0.1"], "no such flag --lr; did you mean --learning_rate?"),
        (["--mode=train", "--training.lr", "0.1"], "did you mean --learning_rate?"),
        (["predict"], "no picture was named: give picture files"),
        (["--mode", "inference"], "no picture was named: give picture files"),
        (["inference", "no.png", "--plot", "x.xyz"], "--plot x.xyz: got the ending '.xyz'"),
        (["predict", "no.png", "--model_path", "no.pth"], "no.pth: cannot read the checkpoint"),
        (["evaluate", "--model_path", "no.pth"], "no.pth: cannot read the checkpoint"),
        (["test", "--model_path", "no.pth"], "no.pth: cannot read the checkpoint"),
        (["export", "--out", "x.abc"], "x.abc ends with neither .pt2 nor .onnx"),
        (["live", "--port", "x"], "--port: got 'x'"),
    ],
)
def test_a_command_is_a_word_or_a_mode(capsys, folder, argv, expected):
    assert modes.main(argv) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert expected in shown.err
    assert shown.out == ""


def test_help_of_all_commands_and_of_each(capsys):
    assert modes.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in modes.MODULES:
        assert f"\n  {name} " in shown
        with pytest.raises(SystemExit) as ended:
            modes.main([name, "--help"])
        assert ended.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: python -m neurospike {name} [")


@pytest.mark.parametrize("words", [["train"], ["--mode", "train"]])
def test_a_command_runs_with_its_flags(capsys, folder, words):
    assert modes.main([*words, *SMALL]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("test accuracy: ")


# A run


def test_a_run_learns_and_leaves_its_folder(folder, capsys):
    argv = [*SMALL, "--run_dir", "out", "--learning_rate", "0.01", "--training.validation=0.2"]
    assert train.main(argv) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "auto: tiny pictures"
    assert out[-1] == "test accuracy: 100.00%"
    (rate,) = [line for line in out if line.startswith("spike rate of hidden1: 0.")]
    assert rate.endswith(" per neuron and time step")
    first, *epochs, last = run_lines(folder / "out")
    assert (first["note"], first["seed"], first["device"]) == ("auto: tiny pictures", 0, "cpu")
    assert (first["threads"], first["criterion"]) == (1, "cross_entropy")
    assert [row["epoch"] for row in epochs] == [1, 2]
    assert (last["kind"], last["accuracy"]) == ("test", 1.0)
    assert 0 < last["spike_rates"]["hidden1"] < 1
    for name in ("training_curves", "confusion_matrix", "firing_rates", "weights"):
        assert (folder / "out" / f"{name}.png").stat().st_size > 10_000
    assert (folder / "out" / "input_encoding.png").exists()
    config = load_config("out/config.yaml")
    assert config.model.hidden_size == 16
    best = folder / "out" / "checkpoints" / "best_model.pth"
    assert (folder / "checkpoints" / "best_model.pth").read_bytes() == best.read_bytes()
    assert load_checkpoint(best)["order"]["generator"] is not None
    assert load_checkpoint(best)["config"] == config.model_dump(mode="json")
    assert yaml.safe_load(Path("out/config.yaml").read_text(encoding="utf-8"))["run_dir"] == "out"


@pytest.mark.parametrize("encoding", ["constant", "rate", "latency"])
def test_same_seed_same_run(folder, encoding):
    def results(name, seed):
        argv = [*SMALL, f"--run-dir={name}", f"--seed={seed}", f"--encoding.kind={encoding}"]
        assert train.main(argv) == 0
        timed = ("seconds", "samples_per_second")
        return [
            {key: value for key, value in row.items() if key not in timed}
            for row in run_lines(folder / name)[1:]
        ]

    assert results("a", 0) == results("b", 0)
    assert results("c", 1) != results("d", 0)


def test_mixed_precision_learns_too(folder, capsys):
    argv = [*SMALL, "--run_dir=out", "--learning_rate=0.01", "--precision=bf16-mixed"]
    assert train.main(argv) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "test accuracy: 100.00%"
    weights = load_checkpoint("out/checkpoints/last.pth")["model"]
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert train.main([*SMALL, "--precision=16-mixed", "--device=cpu"]) == 2
    assert capsys.readouterr().err == (
        "error: precision: got 16-mixed, which a CPU cannot do; use bf16-mixed\n"
    )


def test_truncated_gradients_from_the_configuration(folder):
    def losses(segment):
        argv = [*SMALL, f"--run_dir=s{segment}", f"--training.segment={segment}"]
        assert train.main(argv) == 0
        return [row["train_loss"] for row in run_lines(folder / f"s{segment}")[1:-1]]

    whole = losses("null")
    assert losses("4") == whole
    assert losses("1") != whole


def test_first_step_is_bit_equal_on_both_cpu_backends(folder):
    def first_loss(backend):
        one_step = ["--batch_size=200", "--training.validation=0", "--epochs=1"]
        assert train.main([*SMALL, *one_step, f"--run_dir={backend}", f"--backend={backend}"]) == 0
        record, epoch, _ = run_lines(folder / backend)
        assert record["backend"] == backend
        return epoch["train_loss"]

    assert first_loss("numba") == first_loss("reference")


def test_test_uses_the_best_model_not_the_last(folder, monkeypatch, capsys):
    fit = SNNTrainer.fit

    def forgetful(trainer, *arguments, **options):
        fit(trainer, *arguments, **options)
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.zero_()

    monkeypatch.setattr(SNNTrainer, "fit", forgetful)
    assert train.main([*SMALL, "--learning_rate=0.01"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "test accuracy: 100.00%"


def test_without_validation_and_schedule(folder):
    argv = [*SMALL, "--training.validation=0", "--training.schedule=constant", "--run_dir=out"]
    assert train.main(argv) == 0
    rows = run_lines(folder / "out")[1:-1]
    assert {row["learning_rate"] for row in rows} == {0.001}
    assert {row["validation_loss"] for row in rows} == {None}


def test_learned_parameters_get_no_weight_decay(folder):
    config = load_config(overrides={"model.learn_beta": True, "training.weight_decay": 0.1})
    model = train.build_model(config)
    matrices, others = make_optimizer(config, model).param_groups
    assert matrices["weight_decay"] == 0.1
    assert others["weight_decay"] == 0.0
    assert all(p.ndim == 2 for p in matrices["params"])
    assert len(matrices["params"]) + len(others["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--training.epochs=0"], "--training.epochs: got '0', allowed: a whole number >= 1"),
        (["--config=none.yaml"], "none.yaml: cannot read the config file"),
        (["--device=cuda:99"], "device: got 'cuda:99', but torch finds"),
        (["--backend=numpy"], "--backend: got 'numpy', allowed: auto, reference, numba, triton"),
        (["--model.input_size=100"], "model.input_size: got 100, but the pictures of auto have"),
        (["--model.output_size=1"], "model.output_size: got 1, but auto has 10 classes"),
        (["--preprocessing={kind: resize, size: 14}"], "input_size: got 784, but the pictures of"),
        (["--preprocessing={kind: crop, size: 30}"], "preprocessing: cannot crop 30 x 30 out of"),
        (["--run_dir=file/run"], "file is not a folder; give another --run_dir"),
        (["--run_dir=taken"], "the run folder taken holds a metrics.jsonl already"),
        (["--learning_rate=1e38"], "the loss became"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(folder, capsys, argv, expected):
    Path("file").touch()
    Path("taken").mkdir()
    Path("taken/metrics.jsonl").touch()
    assert train.main([*SMALL, *argv]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert expected in message
    assert len(message.splitlines()) == 1


def test_a_file_that_is_not_where_it_was_looked_for_is_told_with_where_it_may_be(folder, capsys):
    for command in (predict, evaluate, export):
        argv = {predict: ["x.png"], evaluate: [], export: ["--out=m.pt2"]}[command]
        assert command.main(argv) == 2
        said = capsys.readouterr().err
        assert "checkpoints/best_model.pth: cannot read the checkpoint: No such file" in said
        assert "; python -m neurospike.train leaves one in runs/<time>/checkpoints/" in said
    for path in ("runs/mine/checkpoints/best_model.pth", "runs/mine/config.yaml"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    for model in ("runs/mine", "runs/mine/checkpoints"):
        assert evaluate.main([f"--model_path={model}"]) == 2
        said = capsys.readouterr().err
        assert "; did you mean runs/mine/checkpoints/best_model.pth?" in said
    assert train.main(["--config=runs/mine"]) == 2
    assert "Is a directory; did you mean runs/mine/config.yaml?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "key",
    ["run_dir", "dataset", "training.patience", "model.hidden_size", "tensorboard", "resume"],
)
def test_an_empty_value_is_not_taken_for_none(folder, capsys, key):
    for argv, got in (([f"--{key}="], ""), ([f"--{key}", " "], " ")):
        assert train.main([*SMALL, *argv]) == 2
        said = f"--{key}: got {got!r}, wanted a value; leave the flag out"
        assert capsys.readouterr().err == f"error: {said} for the default\n"
    assert evaluate.main(["--data_path="]) == 2
    assert "--data_path: got '', wanted a value" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


class Begun(Exception):
    """A run went on beyond all that can be known before it."""


@pytest.fixture
def until_it_begins(folder, monkeypatch, capsys):
    """Run a command up to where processes are started or data loaded: its error, or `Begun`."""

    def begin(*_, **__):
        raise Begun

    monkeypatch.setattr(train, "make_fabric", begin)
    monkeypatch.setattr(train, "load", begin)
    (folder / "file").touch()
    (folder / "taken").mkdir()
    (folder / "taken/checkpoints").mkdir()
    before = sorted(folder.rglob("*"))

    def run(*argv):
        try:
            code = train.main([*SMALL, *argv])
        except Begun:
            return Begun
        finally:
            torch.use_deterministic_algorithms(False)
        said = capsys.readouterr()
        assert (code, said.out) == (2, ""), (argv, code, said)
        assert said.err.startswith("error: "), said.err
        assert len(said.err.splitlines()) == 1, said.err
        assert sorted(folder.rglob("*")) == before
        return said.err.removeprefix("error: ").rstrip()

    return run


ODD = ["", "nan", "-1", "0", "1.5", "1e400", "1e-300", str(2**63), "null", "x", "[1, 2]", "{a: 1}"]


@pytest.mark.parametrize("section", ["", "model", "encoding", "training"])
def test_every_key_takes_or_refuses_odd_values_before_anything_is_made(until_it_begins, section):
    for key, *_ in fields():
        if key.rpartition(".")[0] == section:
            for value in ODD:
                error = until_it_begins(f"--{key}={value}")
                assert error is Begun or key.rpartition(".")[2] in error or "takes" in error


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("--model.kind=conv --model.channels=8,8,8,8,8", "whose side is 28: use at most 4"),
        ("--model.kind=resnet --model.channels=8,8,8", "must have one number a stage"),
        ("--model.kind=conv --model.kernel_size=4", "kernel_size must be odd, got 4"),
        ("--model.kind=conv --model.kernel_size=1000001", "GB at least, and cpu has"),
        ("--model.kind=conv --preprocessing={kind:_resize,_size:_[14,_56]}", "takes square ones"),
        ("--preprocessing={kind:_resize,_size:_14}", "pictures of auto have 196 pixels after"),
        ("--preprocessing={kind:_resize,_size:_5000}", "got 5000, allowed: 1 to 4096 pixels"),
        ("--preprocessing={kind:_crop,_size:_30}", "cannot crop 30 x 30 out of 28 x 28"),
        ("--preprocessing=normalize --encoding.kind=burst", "takes pictures in [0, 1], and prep"),
        ("--model.input_size=100", "got 100, but the pictures of auto have 784 pixels"),
        ("--model.output_size=9 --dataset=kmnist", "got 9, but kmnist has 10 classes"),
        (
            "--model.readout=spikes --training.loss=cross_entropy_membrane",
            "needs model.readout mem",
        ),
        ("--training.validation=0 --training.patience=3", "need a validation share above 0"),
        ("--training.rate_low=0.5", "rate_low must not be above rate_high"),
        ("--batch_size=1 --devices=2", "got 1, wanted at least 2: 2 processes share a batch"),
        ("--devices=99999", "devices: got 99999, but this machine has"),
        ("--hidden_size=100000000000", "the network's training takes 1,2"),
        ("--num_steps=1000000000000", "a batch takes 640"),
        (f"--hidden_size={2**60}", "Train with a smaller --batch_size, --num_steps or --hidden_"),
        ("--run_dir=file", "the run folder file: file is not a folder; give another --run_dir"),
        ("--run_dir=file/below", "file is not a folder; give another --run_dir"),
        ("--run_dir=taken", "the run folder taken holds a checkpoints already"),
        ("--device=cuda:99", "device: got 'cuda:99', but torch finds"),
        ("--device=mps", "--device: got 'mps', allowed: auto, cpu, cuda or cuda:N; Apple's GPUs"),
        ("--device=gpu", "a GPU of torch's is called cuda"),
        ("--backend=triton --device=cpu", "backend 'triton' cannot run"),
        ("--config=taken", "cannot read the config file"),
        ("--resume=taken", "holds no run"),
        ("--lr=1", "no such flag --lr; did you mean --learning_rate?"),
        ("--training.lr=1", "no such flag --training.lr; did you mean --learning_rate?"),
        ("--bs=1", "did you mean --batch_size?"),
        ("--T=1", "did you mean --num_steps?"),
        ("--gpu", "did you mean --device?"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded_or_made(
    until_it_begins, argv, expected
):
    error = until_it_begins(
        *(
            word.replace("_14", " 14").replace(":_", ": ").replace(",_", ", ")
            for word in argv.split()
        )
    )
    assert error is not Begun
    assert expected in error


def test_what_can_be_goes_on(until_it_begins):
    for argv in (
        [],
        ["--preprocessing=normalize", "--encoding.kind=rate"],
        ["--preprocessing=[normalize, noise]", "--encoding.kind=delta"],
        ["--preprocessing={kind: resize, size: 14}", "--model.input_size=196", "--model.kind=conv"],
        ["--model.kind=resnet", "--model.channels=8,8,8,8,8,8,8", "--model.blocks=1,1,1,1,1,1,1"],
        ["--model.normalization=batch", "--batch_size=2"],
        ["--run_dir=new/folders"],
        ["--training.segment=100"],
    ):
        assert until_it_begins(*argv) is Begun, argv


def test_a_package_that_the_run_would_need_is_missed_before_it_begins(until_it_begins, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert until_it_begins("--tensorboard") == (
        "--tensorboard needs tensorboard: pip install tensorboard"
    )


def test_a_share_that_holds_no_picture_out(folder, capsys):
    assert train.main([*SMALL, "--training.validation=0.001"]) == 2
    assert capsys.readouterr().err == (
        "error: training.validation: got 0.001, which holds none of the 200 pictures of auto out; "
        "use 0, or more than 1/400 (about 0.0025)\n"
    )
    assert list(folder.iterdir()) == []


def test_the_share_that_is_advised_holds_a_picture_out():
    data = load("digits", "unused")
    for count in (*range(2, 30), 200, 1437):
        few = replace(data, train=data.train.select(torch.arange(count)))
        with pytest.raises(ConfigError, match=f"use 0, or more than 1/{2 * count} "):
            check_data(Config(training={"validation": 0.5 / count - 1e-6}), few)
        for share in (0.0, 0.5 / count + 1e-6):
            check_data(Config(training={"validation": share}), few)


def test_one_picture_is_not_advised_to_be_held_out():
    data = load("digits", "unused")
    data = replace(data, train=data.train.select(torch.arange(1)))
    with pytest.raises(ConfigError, match=r"digits has one picture to train on, .* too; use 0$"):
        check_data(Config(training={"validation": 0.5}), data)


def test_memory_that_runs_out_during_a_run_is_one_line(folder, capsys, monkeypatch):
    # As on a machine that does not tell how much it has.
    monkeypatch.setattr(os, "sysconf", lambda _: sys.maxsize)
    for argv in (["--hidden_size=100000000000"], ["--num_steps=1000000000000"]):
        assert train.main([*SMALL, "--batch_size=200", *argv]) == 2
        message = capsys.readouterr().err
        assert "Train with a smaller --batch_size, --num_steps or --hidden_size" in message
        assert len(message.splitlines()) == 1


def test_backend_is_checked_before_data_is_loaded(folder, capsys, monkeypatch):
    def load(*_):
        raise AssertionError("loaded data for a backend that cannot run")

    monkeypatch.setattr(train, "load", load)
    monkeypatch.setattr("neurospike.backend.dispatch._installed", lambda package: False)
    assert train.main([*SMALL, "--backend=numba"]) == 2
    assert "numba" in capsys.readouterr().err


def test_missing_matplotlib_costs_only_the_picture(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert train.main([*SMALL, "--run_dir=out"]) == 0
    out = capsys.readouterr().out
    assert "pip install matplotlib" in out
    assert out.splitlines()[-1].startswith("test accuracy: ")
    assert run_lines(folder / "out")[-1]["kind"] == "test"


# In a process of its own


def command(*argv, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "neurospike.train", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **options,
    )


def test_process_ends_with_code_2_and_no_traceback(tmp_path):
    (tmp_path / "config.yaml").write_text("modle: {}", encoding="utf-8")
    process = command(cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert out == ""
    assert err == "error: config.yaml: modle: no such key; did you mean model?\n"


def test_ctrl_c_ends_cleanly_with_the_state_saved(tmp_path):
    argv = ["--dataset=digits", "--epochs=100000", "--run_dir=out", *SMALL[:-1]]
    process = command(*argv, cwd=tmp_path)
    for line in process.stdout:
        if line.startswith("epoch"):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == (
        "interrupted; the state so far is in out/checkpoints/interrupted.pth, the last whole "
        "epoch in last.pth\n"
    )
    checkpoints = tmp_path / "out" / "checkpoints"
    assert load_checkpoint(checkpoints / "last.pth")["epoch"] >= 1
    assert load_checkpoint(checkpoints / "interrupted.pth")["step"] >= 1
    assert load_checkpoint(tmp_path / "checkpoints" / "best_model.pth")["epoch"] >= 1
