"""The configuration: its defaults, what it takes, and how it says what it does not."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from neurospike import SNNModel, data
from neurospike import backends as table_of_backends
from neurospike.config import Config, fields, load_config, nearest_key
from neurospike.config.schema import RECORDED
from neurospike.config.words import SYNONYMS
from neurospike.errors import ConfigError
from neurospike.models.network import ENCODINGS
from neurospike.neurons import surrogate

ROOT = Path(__file__).parents[1]
ORIGINAL = """
model: {input_size: 784, hidden_size: 256, output_size: 10, num_steps: 100, beta: 0.95}
training: {epochs: 100, batch_size: 32, learning_rate: 0.001, beta1: 0.9, beta2: 0.999}
data_path: "data/"
"""


@pytest.fixture
def config_file(tmp_path, monkeypatch):
    """Write `text` as `config.yaml` of an empty working folder and load it."""
    monkeypatch.chdir(tmp_path)

    def load(text, overrides=None):
        Path("config.yaml").write_text(text, encoding="utf-8")
        return load_config("config.yaml", overrides)

    return load


def refused(call, *args):
    """The message of the ConfigError raised, checked to be short enough to read."""
    with pytest.raises(ConfigError) as caught:
        call(*args)
    message = str(caught.value)
    assert message.count("\n") <= 1
    return message


def test_files_and_modules_that_are_named_exist():
    text = (ROOT / "config.yaml").read_text(encoding="utf-8")
    text += "\n".join(about for _, about, _, _ in fields())
    files, modules = (
        set(re.findall(pattern, text))
        for pattern in (r"neurospike(?:/\w+)+\.py", r"neurospike(?:\.\w+)+")
    )
    assert files and modules
    for name in files | {f"{name.replace('.', '/')}.py" for name in modules}:
        assert (ROOT / name).is_file(), name


def test_file_of_the_repository_is_the_defaults_and_names_every_key():
    path = ROOT / "config.yaml"
    assert load_config(path) == Config()
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    defaults = Config().model_dump()
    assert set(written) == set(defaults)
    for section in ("model", "encoding", "training"):
        assert set(written[section]) == set(defaults[section])


def test_original_config_loads_unchanged(config_file):
    config = config_file(ORIGINAL)
    assert config.model.num_steps == 100
    assert config.training.epochs == 100
    assert config.training.batch_size == 32
    assert config.model.hidden_size == 256
    assert config.data_path == "data/"


def test_working_folder_config_is_used_only_without_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config() == Config()
    Path("config.yaml").write_text("seed: 7", encoding="utf-8")
    Path("other.yaml").write_text("", encoding="utf-8")
    assert load_config().seed == 7
    assert load_config("other.yaml") == Config()


@pytest.mark.parametrize("text", ["", "# nothing\n", "model:\ntraining: {}\n"])
def test_what_is_left_out_keeps_its_default(config_file, text):
    assert config_file(text) == Config()


def test_numbers_written_as_text_are_numbers(config_file):
    config = config_file("training: {learning_rate: 1e-2, epochs: '3'}")  # YAML reads 1e-2 as text
    assert config.training.learning_rate == 0.01
    assert config.training.epochs == 3


@pytest.mark.parametrize(
    ("text", "sizes"),
    [("256", 256), ("256,128", [256, 128]), ("[256, 128]", [256, 128]), ("[64]", [64])],
)
def test_hidden_sizes_from_the_command_line(config_file, text, sizes):
    assert config_file("", {"model.hidden_size": text}).model.hidden_size == sizes


def test_overrides_win_over_the_file(config_file):
    overrides = {"training.epochs": "5", "seed": "3", "threads": "null", "model.learn_beta": "true"}
    config = config_file("training: {epochs: 2, batch_size: 8}\nseed: 1\nthreads: 1", overrides)
    assert config.training.epochs == 5
    assert config.training.batch_size == 8
    assert config.seed == 3
    assert config.threads is None
    assert config.model.learn_beta is True


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training: {epochs: true}", "training.epochs: got True, allowed: a whole number >= 1"),
        ("training: {epochs: 0}", "training.epochs: got 0, allowed: a whole number >= 1"),
        ("training: {epochs: 1.5}", "training.epochs: got 1.5"),
        ("training: {learning_rate: .inf}", "training.learning_rate: got inf"),
        ("training: {learning_rate: .nan}", "training.learning_rate: got nan"),
        ("training: {learning_rate: false}", "training.learning_rate: got False"),
        ("training: {beta2: 1}", "training.beta2: got 1, allowed: a number >= 0 and < 1"),
        ("model: {num_steps: 0}", "model.num_steps: got 0"),
        ("model: {hidden_size: -1}", "model.hidden_size: got -1, allowed: a whole number >= 1, or"),
        ("model: {hidden_size: []}", "model.hidden_size: got []"),
        ("model: {hidden_size: [8, true]}", "model.hidden_size: got [8, True]"),
        ("model: {hidden_size: 8, beta: 1.01}", "model.beta: got 1.01"),
        ("model: {learn_beta: 1}", "model.learn_beta: got 1, allowed: true or false"),
        ("model: {surrogate: arctan}", "allowed: atan, fast_sigmoid"),
        ("model: 3", "model: got 3, allowed: a mapping"),
        ("seed: -1", "seed: got -1"),
        ("threads: 0", "threads: got 0"),
        ("threads: 9999", "got 9999, allowed: a whole number >= 1 and <= 1024 or null"),
        ("device: gpu", "device: got 'gpu', allowed: auto, cpu, cuda or cuda:N"),
        ("data_path: ''", "data_path: got ''"),
        ("run_dir: 3", "run_dir: got 3, allowed: a non-empty text or null"),
        ("dataset: cifar", "allowed: auto, mnist"),
        ("seed:", "seed: got null, allowed: a whole number"),
        ("preprocessing:", "preprocessing: got null, wanted a list of steps"),
        ("encoding: {tau: .inf}", "encoding.tau: got inf, allowed: a number > 0 or null"),
        ("encoding: {kind: latency, tau: 3}", "encoding: tau is for curve: logarithmic"),
        ("encoding: {kind: latency, curve: logarithmic, threshold: 0}", "threshold above 0"),
        ("model: {threshold: 1e39}", "a number > 0, 1.2e-38 to 3.4e+38, as float32 holds"),
        ("model: {threshold: 1e-300}", "got '1e-300', allowed: a number > 0, 1.2e-38 to 3.4e+38"),
        ("encoding: {gain: 1e300}", "encoding.gain: got '1e300', allowed: a number >= 0, 1.2e-38"),
        ("training: {rate_low: 2}", "rate_low: got 2, allowed: a number >= 0 and <= 1"),
        (f"model: {{hidden_size: {2**63}}}", "allowed: a whole number >= 1, or a list of them and"),
        (f"training: {{warmup: {2**63}}}", f"a whole number >= 0 or null and <= {2**63 - 1}"),
        (
            "encoding: {kind: columns}",
            "allowed: constant, rate, latency, delta, phase, burst, rows",
        ),
        (
            "encoding: {permute: -1}",
            f"permute: got -1, allowed: a whole number >= 0 and <= {2**32 - 1} or null",
        ),
        ("encoding: {permute: true}", "encoding.permute: got True"),
        ("model: {neuron: adlif}", "model.neuron: got 'adlif', allowed: lif, alif, se_adlif"),
        ("model: {recurrent: 1}", "model.recurrent: got 1, allowed: true or false"),
        ("model: {tau: 5}", "tau: got 5, allowed: a list of two numbers > 0, the shorter first"),
        ("model: {tau: [5]}", "model.tau: got [5], allowed: a list of two numbers"),
        ("model: {tau_adaptation: [0, 5]}", "model.tau_adaptation: got [0, 5], allowed: a list of"),
        ("model: {tau: [9, 5]}", "model: tau takes the shorter time constant first, got [9, 5]"),
        (
            "encoding: {kind: rows}\nmodel: {num_steps: 50}",
            "reads a picture of 784 pixels in 28 steps, got model.num_steps 50: leave it out, or",
        ),
        (
            "encoding: {kind: pixels}\nmodel: {num_steps: 28}",
            "in 784 steps, got model.num_steps 28",
        ),
        (
            "encoding: {kind: rows}\nmodel: {input_size: 99}",
            "needs square pictures, got a model.in",
        ),
        ("encoding: {max_spikes: 65537}", "allowed: a whole number >= 1 and <= 65536"),
        ("model: {kind: conv, channels: [8, 8, 8, 8, 8]}", "whose side is 28: use at most 4, or"),
        ("model: {kind: conv, input_size: 1}", "whose side is 1: use at most 0, or another kind"),
        ("model: {kind: conv, input_size: 99}", "kind conv needs square pictures, got an input"),
        ("training: {epoch: 3}", "training.epoch: no such key; did you mean training.epochs?"),
        ("epochs: 3", "epochs: no such key; did you mean training.epochs?"),
        ("moddel: {beta: 1}", "moddel: no such key; did you mean model?"),
        ("12: 3", "12: no such key"),
        ("seed: -1\ndevice: gpu", "(and 1 more)"),
        ("seed: 1\nseed: 2", "line 2: not valid YAML: the key 'seed' stands twice"),
        ("seed: [1", "not valid YAML"),
        ("- a", "got a list, wanted a mapping"),
        ("just text", "got a str, wanted a mapping"),
    ],
)
def test_wrong_values_are_refused_by_name(config_file, text, expected):
    message = refused(config_file, text)
    assert message.startswith("config.yaml")
    assert expected in message


@pytest.mark.parametrize("text", ["''", "' '"])
def test_an_empty_text_is_no_value_of_any_key(config_file, text):
    for key, *_ in fields():
        section, _, leaf = key.rpartition(".")
        line = f"{section}: {{{leaf}: {text}}}" if section else f"{leaf}: {text}"
        assert f"{key}: got {text}, " in refused(config_file, line)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"training.epochs": "0"}, "--training.epochs: got '0', allowed: a whole number >= 1"),
        ({"model.hidden_size": "256,x"}, "--model.hidden_size: got '256,x'"),
        ({"model.learn_beta": "maybe"}, "--model.learn_beta: got 'maybe'"),
        ({"training.epoch": 3}, "--training.epoch: no such key; did you mean training.epochs?"),
        ({"seed.x": 3}, "seed: got {'x': 3}"),
    ],
)
def test_wrong_overrides_are_refused_by_flag(config_file, overrides, expected):
    assert refused(config_file, "", overrides).removeprefix("config.yaml: ").startswith(expected)


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("lr", "training.learning_rate"),
        ("training.lr", "training.learning_rate"),
        ("bs", "training.batch_size"),
        ("T", "model.num_steps"),
        ("timesteps", "model.num_steps"),
        ("hidden", "model.hidden_size"),
        ("encoder", "encoding.kind"),
        ("gpu", "device"),
        ("model.beta1", "training.beta1"),
        ("model.lern_beta", "model.learn_beta"),
        ("xyzzy", None),
    ],
)
def test_the_key_that_is_meant(word, key):
    assert nearest_key(word, [name for name, *_ in fields()]) == key


def test_synonyms_are_no_keys_and_mean_some():
    names = {part for key, *_ in fields() for part in (key, key.rpartition(".")[2])}
    for name, others in SYNONYMS.items():
        assert name in names | {"degrees", "image_path", "model_path"}
        assert not names & set(others)
    every = [word for others in SYNONYMS.values() for word in others]
    assert len(every) == len(set(every))


def test_override_inside_what_is_no_section_is_refused(config_file):
    assert refused(config_file, "model: 3", {"model.beta": 0.5}).endswith("got 3, not a mapping")


def test_files_that_cannot_be_read_are_refused(tmp_path):
    assert "No such file" in refused(load_config, tmp_path / "missing.yaml")
    assert "Is a directory" in refused(load_config, tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8 text" in refused(load_config, tmp_path / "binary.yaml")
    (tmp_path / "null.yaml").write_bytes(b"seed: \x00")
    assert "not valid YAML" in refused(load_config, tmp_path / "null.yaml")


def test_a_dump_loads_as_the_same_config(config_file):
    config = config_file("model: {hidden_size: [32, 16]}\ntraining: {learning_rate: 0.02}")
    assert config_file(yaml.safe_dump(config.model_dump(mode="json"))) == config


def test_network_arguments_hold_only_the_chosen_encoders_options(config_file):
    rate = config_file("encoding: {kind: rate, gain: 0.5, curve: logarithmic}").network_arguments()
    assert rate["encoding"] == "rate"
    assert rate["encoding_options"] == {"gain": 0.5, "offset": 0.0}
    assert config_file("").network_arguments()["encoding_options"] == {}


@pytest.mark.parametrize("kind", ENCODINGS)
def test_every_encoding_takes_the_options_it_is_given(config_file, kind):
    dataset, given = "auto", torch.rand(3, 1, 2, 2)
    if kind == "none":
        dataset, given = "shd", torch.rand(25, 3, 2, 2)
    text = f"dataset: {dataset}\nencoding: {{kind: {kind}}}\nmodel: {{input_size: 4}}"
    model = SNNModel(**config_file(text).network_arguments())
    shape = {"rows": (2, 3, 2), "pixels": (4, 3, 1)}.get(kind, (25, 3, 4))
    assert model.record(given).current.shape == shape


@pytest.mark.parametrize(("kind", "steps"), [("rows", 28), ("pixels", 784)])
def test_steps_of_a_picture_that_is_read_are_its_own(config_file, kind, steps):
    config = config_file(f"encoding: {{kind: {kind}}}", {"encoding.permute": "3"})
    assert config.model.num_steps == steps
    assert config_file(yaml.safe_dump(config.model_dump(mode="json"))) == config
    for given in (steps, 25):  # 25 stands in config.yaml, as all defaults do
        text = f"encoding: {{kind: {kind}}}\nmodel: {{num_steps: {given}}}"
        assert config_file(text).model.num_steps == steps
    options = config.network_arguments()["encoding_options"]
    assert options == ({"permute": 3} if kind == "pixels" else {})
    assert config_file("encoding: {permute: null}").encoding.permute is None


def test_time_constants_from_the_command_line(config_file):
    config = config_file("", {"model.tau": "1,6", "model.tau_adaptation": "[10, 60.5]"})
    assert (config.model.tau, config.model.tau_adaptation) == ([1, 6], [10, 60.5])


def test_every_key_says_what_it_means_and_takes():
    keys = [key for key, *_ in fields()]
    assert len(keys) == len(set(keys))
    assert {"seed", "training.epochs", "model.hidden_size", "encoding.tau"} <= set(keys)
    assert all(text and allowed for _, text, allowed, _ in fields())


def test_names_are_those_of_the_parts_they_name():
    allowed = {key: text for key, _, text, _ in fields()}
    assert {*data.NAMES, *RECORDED} == set(allowed["dataset"].split(", "))
    assert set(table_of_backends()) <= set(allowed["backend"].split(", "))
    for name in allowed["model.surrogate"].split(", "):
        assert callable(getattr(surrogate, name))


def test_importing_config_does_not_import_torch():
    # The package itself does; a bare stand-in for it shows what config alone needs.
    code = (
        "import sys, types; package = types.ModuleType('neurospike');"
        f"package.__path__ = [{str(ROOT / 'neurospike')!r}]; sys.modules['neurospike'] = package;"
        "import neurospike.config, neurospike.config.cli; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
