"""The Triton backend without a GPU: its errors, its results interpreted, its machine code."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import neurospike as ns
from neurospike import train
from neurospike.backend import dispatch
from neurospike.config.devices import choose_device
from neurospike.errors import BackendError

pytest.importorskip("triton")

import triton

from benchmarks import triton_code
from benchmarks.triton_code import ARCHITECTURES, Kernel, build, inspect, parsing
from neurospike.kernels.cuda import _launch as triton_launch
from neurospike.kernels.cuda import _scan_loop as scan_loop
from neurospike.kernels.cuda import scan as scan_triton
from neurospike.neurons import program, zoo
from neurospike.neurons.record import record
from neurospike.neurons.rule import lif_of, rule_of

ROOT = Path(__file__).parents[1]


# In processes of their own

INTERPRETED = {  # files: how many of their tests there are at least
    ("test_lif", "test_neuron"): 150,
    ("test_equivalence", "test_grad_window", "test_truncation", "test_spikingjelly"): 69,
    ("test_torch", "test_modules", "test_sequential", "test_layers", "test_search"): 70,
    ("test_delay",): 40,
    ("test_running", "test_saved_tensors"): 70,
}


@pytest.mark.thorough
@pytest.mark.parametrize("files", INTERPRETED, ids="-".join)
def test_what_every_backend_passes_it_passes_in_the_interpreter(files):
    passed = passed_interpreted(files, "-k", "triton or all_backends")
    assert passed >= INTERPRETED[files]
    assert "TRITON_INTERPRET" not in os.environ


def passed_interpreted(files, *options):
    """Run test files in Triton's interpreter, all of which must pass; how many tests that were."""
    before = os.environ.get("PYTHONPATH")
    path = [str(ROOT), str(ROOT / "tests"), *([before] if before else [])]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(path)}
    return _passed_apart(files, environment, "-n0", "-p", "interpreted", *options)


ON_CUDA = {  # files: how many of their tests there are at least, and which of them
    "on_cuda": (100, ()),
    "test_torch": (30, ("-k", "triton")),
    "test_running": (60, ("-k", "triton")),
    "test_saved_tensors": (10, ("-k", "triton")),
}


@pytest.mark.skipif(
    not any(Path(d).exists() for d in ("/dev/nvidiactl", "/dev/dxg")), reason="no NVIDIA driver"
)
@pytest.mark.parametrize("file", ON_CUDA)
def test_on_cuda(file):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": os.environ["NEUROSPIKE_TEST_DEVICES"]}
    if file != "on_cuda":
        # With it cuBLAS has deterministic algorithms, as unwritten memory that is filled asks for.
        environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    # Side by side, a test at a time: most of the time one core compiles.
    together = [f"-n{max(1, min(15, (os.cpu_count() or 1) - 1))}", "--dist=load"]
    least, options = ON_CUDA[file]
    assert _passed_apart([file], environment, *together, *options) > least


def _passed_apart(files, environment, *options):
    """Run test files in another process, all of which must pass; how many tests that were."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    command += [f"tests/{name}.py" for name in files]
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-5000:]
    return int(run.stdout.rsplit(" passed", 1)[0].split()[-1])


# As machine code

BUDGET = {  # kind: loads and stores a step; a chunk's membrane is saved, and loaded, once
    "inference": (1.0, 1.0),
    "training forward": (1.0, 1.0 + 1 / scan_loop.EVERY),
    "backward": (2.0 + 1 / scan_loop.EVERY, 1.0),
}


# Every format for one architecture, and one format for the others.
CODE = [(d, 90) for d in (torch.float32, torch.bfloat16, torch.float64)]
CODE += [(torch.float32, other) for other in ARCHITECTURES if other != 90]


@pytest.mark.parametrize("kind", BUDGET)
@pytest.mark.parametrize(("dtype", "architecture"), CODE)
def test_what_the_machine_code_moves(kind, dtype, architecture):
    code = inspect(Kernel(kind, dtype), architecture)
    assert (code.loads_a_step, code.stores_a_step) == BUDGET[kind]
    wide = {torch.bfloat16: 8}.get(dtype, 16)
    assert min(code.widths) == wide
    assert max(code.widths) == 16 if kind != "inference" else wide
    assert code.spills == code.local_bytes == 0
    # Of double precision only a division may have some, and only the surrogate divides.
    assert code.fused_multiply_adds == 0 or (dtype == torch.float64 and kind == "backward")


@pytest.mark.parametrize("kind", BUDGET)
@pytest.mark.parametrize(("dtype", "architecture"), CODE)
def test_layers_load_ahead(kind, dtype, architecture):
    """Two chunks are on their way while one is computed, of few neurons and of many."""
    code = inspect(Kernel(kind, dtype, neurons=8192), architecture)
    assert code.chunks_ahead == 2
    assert (code.loads_a_step, code.stores_a_step) == BUDGET[kind]
    assert min(code.widths) == 2 * dtype.itemsize
    assert code.spills == code.local_bytes == 0
    # What a gradient in 16 bits reads was there sooner without, on an H200.
    is_ahead = kind != "backward" or dtype.itemsize > 2
    assert inspect(Kernel(kind, dtype), architecture).chunks_ahead == 2 * is_ahead


RULES = [("subtract", True), ("zero", True), ("none", True), ("subtract", False), ("zero", False)]


@pytest.mark.parametrize(("reset", "delayed"), RULES)
def test_every_rule_compiles_without_fused_multiply_add(reset, delayed):
    for kind in ("training forward", "backward"):
        code = inspect(Kernel(kind, reset=reset, delayed=delayed, trace=True), 90)
        assert code.fused_multiply_adds == code.spills == 0
        # The ptxas of Triton 3.6 keeps one number in local memory, outside of the loops.
        assert code.local_bytes <= 8


# Of each number of states, and of each kind of function that a processor computes otherwise.
ZOO = [zoo.li, zoo.synaptic(), zoo.alif, zoo.se_adlif, zoo.eif, zoo.brf, zoo.alpha]


@pytest.mark.thorough
@pytest.mark.parametrize("neuron", ZOO, ids=lambda one: one.__name__)
@pytest.mark.parametrize("kind", BUDGET)
def test_any_neuron_moves_as_little_and_spills_nothing(kind, neuron):
    """Its states are saved, and loaded, once for a chunk."""
    states = len(record(neuron).states)
    code = inspect(Kernel(kind, neuron=neuron), 90)
    saved = states / scan_loop.EVERY
    loads = {"backward": 2 + saved}.get(kind, 1.0)
    if (kind, neuron) == ("backward", zoo.li):
        loads = 0.0  # nothing is squared or chosen: its gradient depends on no value
    stores = {"training forward": 1 + saved}.get(kind, 1.0)
    assert (code.loads_a_step, code.stores_a_step) == (loads, stores)
    assert code.spills == 0


@pytest.mark.parametrize("name", list(ns.surrogate.BUILT_IN))
def test_every_surrogate_compiles(name):
    code = inspect(Kernel("backward", surrogate=name, learned=True), 90)
    assert code.fused_multiply_adds == code.spills == 0
    if name != "straight_through":
        assert code.loads_a_step == BUDGET["backward"][0]


def test_a_constant_current_is_not_loaded_in_the_loop():
    forward = inspect(Kernel("training forward", constant=True), 90)
    backward = inspect(Kernel("backward", constant=True), 90)
    assert (forward.loads_a_step, backward.stores_a_step) == (0, 0)
    assert backward.loads_a_step == BUDGET["backward"][0] - 1


def test_a_16_bit_gradient_is_rounded_to_the_nearest():
    text = build(Kernel("backward", torch.bfloat16), 90).asm["ptx"]
    assert "cvt.rn.bf16" in text


def program_with(surrogate="atan"):
    chosen = ns.surrogate.resolve(surrogate)
    return rule_of(lif_of("subtract", True, False, None), chosen.text, chosen.parameters).program


def jitted(kind, program, **flags):
    base = {name: value for name, value in vars(scan_loop).items() if name.isupper()}
    for name in ("EVERY", "TABLE", "STATES", "PARAMETERS", "NUMBERS"):
        del base[name]
    return scan_triton.compiled(kind, program, **base | flags).cache_key


@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_a_kernel_with_other_constants_is_kept_by_another_name(kind):
    """Triton 3.4 told them apart only in memory: what it kept on disk served them all."""
    used = {"BLOCK": 512, "STAGES": 3, "SPIKES": False, "TRACED": 1, "HELD_CURRENT": True}
    used |= {"SCALARS": 2, "SAVED": True} if kind == "forward" else {"CONSTANT": True, "WANTED": 3}
    variants = [{name: value} for name, value in used.items()]
    keys = [jitted(kind, program_with(), **flags) for flags in ({}, *variants)]
    assert len(set(keys)) == 1 + len(used)


def test_a_kernel_whose_surrogate_captured_another_number_is_the_same():
    """Such a number is an argument of the kernel: a surrogate may be annealed."""

    def with_scale(scale):
        def derivative(u):
            return scale / (1.0 + abs(u))

        return derivative

    programs = {program_with(with_scale(scale)) for scale in (1, 1.0, 2.0, 3.0)}
    assert len(programs) == 1


@pytest.mark.parametrize("kind", BUDGET)
def test_no_number_of_steps_compiles_anew(kind):
    compiled = {id(build(Kernel(kind), 90, steps)) for steps in (1, 7, 16, 25, 1000)}
    assert len(compiled) == 1
    assert id(build(Kernel(kind, neurons=triton_code.NEURONS + 1), 90)) not in compiled


def test_a_second_launch_compares_no_constants(monkeypatch):
    """Triton would compare each with what it was, which takes longer than all else it does."""
    build(Kernel("backward"), 90)
    compared = []
    constant = scan_triton.tl.constexpr
    monkeypatch.setattr(constant, "__ne__", lambda *both: compared.append(both) or False)
    build(Kernel("backward"), 90)
    assert not compared


def test_offsets_take_64_bits():
    """A step's offset is a product of 64-bit numbers, or 2^31 numbers would be the end."""
    text = build(Kernel("inference"), 90).asm["ttgir"]
    products = [line for line in text.splitlines() if "arith.muli" in line]
    assert products
    assert all("i64" in line or "%c" in line for line in products)


def test_a_surrogate_of_the_users_compiles():
    from neurospike.formulas import exp

    sharpness, count = 3.0, 2

    def laplace(u):
        """Documented, with captured numbers."""
        return sharpness / count * exp(-sharpness * abs(u))

    code = inspect(Kernel("backward", surrogate=laplace), 90)
    assert code.loads_a_step == BUDGET["backward"][0]


def test_a_surrogate_needs_no_file_and_may_have_types_and_integers():
    made = {}
    exec("def typed(u): return 1.0 / (1.0 + u * u)", made)

    def annotated(u: torch.Tensor) -> torch.Tensor:
        return 1 / (1 + u**2)

    for surrogate in (made["typed"], lambda u: 1.0 / (1.0 + u * u), annotated):
        code = inspect(Kernel("backward", surrogate=surrogate), 90)
        assert code.loads_a_step == BUDGET["backward"][0]


def test_the_table_of_the_machine_code(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(triton_code, "kernels", lambda: [Kernel("inference")])
    monkeypatch.setattr(triton_code, "ARCHITECTURES", (90,))
    assert triton_code.main(["--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert (tmp_path / "triton_code.txt").read_text() == shown
    assert "inference (subtract)" in shown.splitlines()[2]
    assert '"bytes_a_neuron_step": 8.0' in (tmp_path / "triton_code.json").read_text()


# Where it cannot run


def test_without_a_device_the_command_ends_with_2_and_the_way_on(capsys):
    assert train.main(["--backend", "triton"]) == 2
    error = capsys.readouterr().err
    assert "backend 'triton' cannot run here: torch finds no CUDA device" in error
    assert "--backend numba" in error
    assert len(error.splitlines()) == 1


def test_every_reason_is_told(monkeypatch):
    monkeypatch.setattr(dispatch, "_installed", lambda package: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(BackendError) as caught:
        ns.lif(torch.zeros(1, 1, 1), beta=0.9, backend="triton")
    for reason in ("pip install triton", "built without CUDA", "runs on cuda tensors, these are"):
        assert reason in str(caught.value)


@pytest.fixture
def gpus(monkeypatch):
    """Let torch find GPUs of the compute capabilities given; the list of those it was asked for."""

    def find(*capabilities):
        asked = []
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda i: asked.append(i) or capabilities[i]
        )
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
        dispatch._capability.cache_clear()
        return asked

    yield find
    dispatch._capability.cache_clear()


def test_cpu_tensors_are_refused_where_there_is_a_device(gpus):
    gpus((9, 0))
    with pytest.raises(BackendError, match="it runs on cuda tensors, these are on cpu"):
        ns.lif(torch.zeros(1, 1, 1), beta=0.9, backend="triton")


def test_auto_takes_it_for_cuda_tensors_alone(gpus):
    gpus((9, 0))
    assert dispatch.choose("auto", "cuda").name == "triton"
    assert dispatch.choose("auto", "cpu").name == "numba"
    assert ns.backends()["triton"] is None


TOLD = "cuda:0 (GPU 0) has compute capability 7.5, Triton supports 8.0 and later"


def test_a_gpu_too_old_is_named(gpus):
    gpus((7, 5))
    assert ns.backends()["triton"] == TOLD
    assert dispatch.choose("auto", "cuda").name == "reference"
    assert choose_device("auto", "triton").type == choose_device("auto", "numba").type == "cpu"
    assert choose_device("auto", "auto") == torch.device("cuda")  # whatever runs there
    gpus((8, 0))
    assert ns.backends()["triton"] is None
    assert choose_device("auto", "triton") == torch.device("cuda")


def test_of_two_gpus_the_one_that_the_tensors_are_on_decides(gpus):
    gpus((7, 5), (9, 0))
    assert ns.backends()["triton"] is None
    for backend in ("auto", "triton"):
        assert choose_device("auto", backend) == torch.device("cuda:1")
    assert choose_device("auto", "numba") == torch.device("cpu")
    assert dispatch.choose("auto", "cuda:0").name == "reference"
    assert dispatch.choose("auto", torch.device("cuda:1")).name == "triton"
    if torch.__version__ < (2, 12):
        pytest.skip("this torch wants a real GPU for a tensor that is not there")
    with FakeTensorMode():
        spikes, _ = ns.lif(torch.empty(5, 2, 3, device="cuda:1"), beta=0.9, backend="triton")
        assert spikes.shape == (5, 2, 3)
        with pytest.raises(BackendError, match=re.escape(TOLD)):
            ns.lif(torch.empty(5, 2, 3, device="cuda:0"), beta=0.9, backend="triton")


def test_a_gpu_is_asked_for_its_capability_once(gpus):
    asked = gpus((9, 0), (9, 0))
    for index in (0, 1, 0, 1):
        dispatch.choose("auto", f"cuda:{index}")
    assert asked == [0, 1]


class _Failing:
    """A kernel whose start fails."""

    def __init__(self, error):
        self.error = error

    def __getitem__(self, grid):
        return self

    def __call__(self, *arguments, **options):
        raise self.error


def test_what_cannot_be_compiled_is_named_with_its_line(monkeypatch):
    """Triton's error is a chain, a link for each caller; what is wrong is said at its end."""
    monkeypatch.setitem(
        program._WRITTEN, "abs", (1, "abs({0}) ** 3.0")
    )  # no function is let through

    def cusp(u):
        return 1.0 / (1.5 + abs(u))

    with pytest.raises(BackendError) as caught, parsing(90):
        build(Kernel("backward", surrogate=cusp), 90)
    assert "no attribute '__pow__'\"), in " in str(caught.value)
    assert "** 3.0' of 'def adjoint" in str(caught.value)


def test_code_that_triton_cannot_read_is_no_error_of_the_device():
    error = RuntimeError("error encountered during parsing")
    with pytest.raises(BackendError, match=r"cannot compile this layer: .*backend='reference'"):
        triton_launch.launch(_Failing(error), 1, 1, torch.zeros(1))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty folder for what Triton compiles, and nothing compiled in this process."""
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path / "cache")
        scan_triton.forget()
        triton_launch._own_folder.cache_clear()
        yield tmp_path / "cache"
    scan_triton.forget()
    triton_launch._own_folder.cache_clear()


def _loading(monkeypatch):
    """Let a launch load its machine code as a device does, which refuses what is cut off."""
    run = triton.JITFunction.run

    def compile_and_load(self, *arguments, **options):
        kernel = run(self, *arguments, **{**options, "warmup": True})
        code = kernel.asm["cubin"]
        sections, size, count = code[40:48], code[58:60], code[60:62]  # of the header of an ELF
        offset, size, count = (int.from_bytes(part, "little") for part in (sections, size, count))
        if not code.startswith(b"\x7fELF") or len(code) < offset + size * count:
            raise RuntimeError("Triton Error [CUDA]: device kernel image is invalid")
        return kernel

    monkeypatch.setattr(triton.JITFunction, "run", compile_and_load)


@pytest.mark.parametrize("left", [0.0, 0.5, 0.9])
def test_damaged_files_of_the_cache_are_compiled_anew(cache, monkeypatch, left):
    _loading(monkeypatch)
    build(Kernel("inference"), 90)
    whole = {file: file.read_bytes() for file in cache.rglob("*") if file.is_file()}
    kinds = {file.name.rpartition(".")[2] for file in whole}
    assert kinds >= {"json", "ttir", "ptx", "cubin"}
    for damaged in ("json", "cubin"):
        for file, content in whole.items():
            if file.name.endswith(damaged):
                file.write_bytes(content[: int(left * len(content))])
        scan_triton.forget()  # as a new process
        build(Kernel("inference"), 90)
        for file, content in whole.items():
            if file.name == f"_forward.{damaged}":
                assert file.read_bytes() == content  # and kept for the next


def test_a_folder_that_cannot_be_written_costs_compiling_alone(cache):
    cache.write_text("a file, and no folder")
    with pytest.warns(RuntimeWarning, match=r"cannot keep compiled kernels in .*TRITON_CACHE_DIR"):
        kernel = build(Kernel("inference"), 90)
    assert kernel.asm["cubin"].startswith(b"\x7fELF")
    elsewhere = Path(triton.knobs.cache.dir)
    assert list(elsewhere.rglob("_forward.cubin"))
    triton_launch._own_folder().cleanup()


def test_a_full_disk_is_no_missing_compiler(cache):
    error = OSError(errno.ENOSPC, "No space left on device")
    wanted = r"cannot keep what it compiles: .*TRITON_CACHE_DIR"
    with (
        pytest.warns(RuntimeWarning, match="No space left"),
        pytest.raises(BackendError, match=wanted),
    ):
        triton_launch.launch(_Failing(error), 1, 1, torch.zeros(1))


COMPILER_ERRORS = [
    RuntimeError("Failed to find C compiler. Please specify via CC environment variable"),
    subprocess.CalledProcessError(1, ["gcc", "launcher.c"]),
    FileNotFoundError(2, "No such file or directory", "/no/cc"),
]


@pytest.mark.parametrize("error", COMPILER_ERRORS, ids=lambda e: type(e).__name__)
def test_no_c_compiler_is_named(error):
    with pytest.raises(BackendError, match=r"needs a C compiler .*gcc python3-dev.*CC"):
        triton_launch.launch(_Failing(error), 1, 1, torch.zeros(1))


def test_other_errors_of_the_device_stay_what_they_are():
    for error in (RuntimeError("Triton Error [CUDA]: x"), torch.OutOfMemoryError("2 GiB")):
        with pytest.raises(type(error)) as caught:
            triton_launch.launch(_Failing(error), 1, 1, torch.zeros(1))
        assert caught.value is error


def test_out_of_memory_is_named_with_the_way_on(capsys, monkeypatch, tmp_path):
    def no_room(config, resumed, init_from):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore.")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "train", no_room)
    monkeypatch.setattr(train.buffers, "keep_freed_memory", lambda: None)
    assert train.main([]) == 2
    assert capsys.readouterr().err == (
        "error: CUDA out of memory. Tried to allocate 2.00 GiB. Train with a smaller --batch_size, "
        "--num_steps or --hidden_size\n"
    )
