"""The whole configuration: its sections, the keys beside them, and what must agree across them."""

from math import isqrt
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from .kinds import READING, RECORDED, Recorded, reading_steps
from .sections import (
    EncodingConfig,
    EventsConfig,
    ModelConfig,
    PicturesConfig,
    Section,
    TrainingConfig,
)
from .steps import NAMES as STEP_NAMES
from .steps import Step, parse_steps, range_after, size_after
from .values import (
    Device,
    Integer,
    Size,
    Switch,
    Text,
    TextOrNull,
    ThreadsOrNull,
    switch_word,
)

IN_UNIT = ("latency", "phase", "burst")  # encodings that take intensities in [0, 1] only

# Dumped as what each step is, not as what all steps have in common.
Steps = Annotated[list[SerializeAsAny[Step]], BeforeValidator(parse_steps)]


class Config(Section):
    """The whole configuration of a training run."""

    model: ModelConfig = ModelConfig()
    encoding: EncodingConfig = EncodingConfig()
    training: TrainingConfig = TrainingConfig()
    events: EventsConfig = EventsConfig()
    pictures: PicturesConfig = PicturesConfig()
    dataset: Literal[
        "auto", "mnist", "fashion_mnist", "kmnist", "digits", "cifar10", "folder", Recorded
    ] = Field(
        default="auto",
        description="pictures to learn; auto: mnist if it can be had, else digits; folder: those "
        "in data_path, a sub-folder per class; recordings of events: shd, nmnist, dvs_gesture",
    )
    data_path: Text = Field(
        default="data/",
        description="folder of the data sets; downloads go there; of dataset folder: the pictures",
    )
    backend: Literal["auto", "reference", "numba", "triton"] = Field(
        default="auto", description="what computes the neurons; auto: the fastest that can run"
    )
    device: Device = Field(
        default="auto",
        description="where to compute; auto: the GPU if there is one",
        json_schema_extra={"allowed": "auto, cpu, cuda or cuda:N"},
    )
    seed: Integer = Field(
        default=0,
        ge=0,
        le=2**32 - 1,
        description="of weights, shuffling and spikes: same seed, same run",
    )
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field(
        default="32-true", description="number format; mixed: products in 16 bits, weights in 32"
    )
    devices: Size = Field(default=1, description="processes a machine, each with a device (DDP)")
    num_nodes: Size = Field(default=1, description="machines")
    cuda_graph: Annotated[Literal["auto", "on", "off"], BeforeValidator(switch_word)] = Field(
        default="auto",
        description="replay a training step as one CUDA graph: auto: where it can be; on: or fail",
    )
    deterministic: Switch = Field(
        default=False, description="only algorithms of torch that give the same bits every time"
    )
    threads: ThreadsOrNull = Field(
        default=None, description="CPU threads; null: as many as torch takes"
    )
    tensorboard: Switch = Field(
        default=False,
        description="also keep curves and pictures for TensorBoard, in the run's folder",
    )
    run_dir: TextOrNull = Field(
        default=None, description="folder for the run's results; null: runs/<time>"
    )
    preprocessing: Steps = Field(
        default=[],
        description="what is done to the pictures first, in order: [deskew, {kind: affine, "
        "degrees: 10}]",
        json_schema_extra={"allowed": f"a list of {', '.join(STEP_NAMES)}"},
    )

    @model_validator(mode="after")
    def _loss_fits_readout(self) -> "Config":
        loss, readout = self.training.loss, self.model.readout
        spiking = readout in ("spikes", "first_spike")
        if loss != "cross_entropy" and spiking != ("membrane" not in loss):
            kind = "spikes or first_spike" if not spiking else "membrane or max_membrane"
            raise ValueError(f"training.loss {loss} needs model.readout {kind}, got {readout}")
        return self

    @model_validator(mode="after")
    def _pictures_fit_encoding(self) -> "Config":
        low, high = range_after(self.preprocessing)
        if self.encoding.kind in IN_UNIT and not 0 <= low <= high <= 1:
            raise ValueError(
                f"encoding.kind {self.encoding.kind} takes pictures in [0, 1], and preprocessing "
                f"{', '.join(step.kind for step in self.preprocessing)} leaves them in "  # type: ignore[attr-defined]
                f"[{low:.3g}, {high:.3g}]: leave normalize out, or use constant, rate or delta"
            )
        return self

    @model_validator(mode="after")
    def _recordings_have_their_time(self) -> "Config":
        kind, recorded = self.encoding.kind, self.dataset in RECORDED
        if recorded != (kind == "none"):
            what, use = ("recordings", "none") if recorded else ("pictures", "constant")
            raise ValueError(
                f"dataset {self.dataset} has {what}, got encoding.kind {kind}: use {use}"
                + ("" if recorded else f", or a dataset of {', '.join(RECORDED)}")
            )
        if recorded and self.model.kind in ("conv", "resnet"):
            raise ValueError(
                f"dataset {self.dataset} has recordings, and model.kind {self.model.kind} takes "
                "pictures: use mlp"
            )
        if recorded and self.preprocessing:
            raise ValueError(
                f"dataset {self.dataset} has recordings, and preprocessing is for pictures: leave "
                "it out"
            )
        return self

    @property
    def picture(self) -> tuple[int, int, int]:
        """Channels, height and width of a picture of the data set, before preprocessing."""
        if self.dataset == "cifar10":
            return 3, 32, 32
        if self.dataset == "folder":
            return 3 if self.pictures.colour else 1, self.pictures.size, self.pictures.size
        return 1, 28, 28

    def folder_options(self) -> dict[str, Any]:
        """The arguments of `data.load_folder`, but for the folder."""
        return {**self.pictures.model_dump(), "seed": self.seed}

    @model_validator(mode="after")
    def _inputs_follow_from_the_picture(self) -> "Config":
        if self.dataset not in ("cifar10", "folder"):
            return self
        channels, height, width = self.picture
        try:
            height, width = size_after(self.preprocessing, height, width)
        except ValueError as error:
            raise ValueError(f"preprocessing: {error}") from None
        if channels > 1 and self.encoding.kind in READING:
            raise ValueError(
                f"encoding.kind {self.encoding.kind} reads pictures of one channel, and those of "
                f"{self.dataset} have {channels}: use constant, or a dataset of grey ones"
            )
        wanted = {"input_size": channels * height * width, "in_channels": channels}
        if self.model.kind not in ("conv", "resnet"):
            del wanted["in_channels"]
        for key, value in wanted.items():
            given = getattr(self.model, key)
            if given not in (value, getattr(ModelConfig(), key)):
                raise ValueError(
                    f"model.{key}: got {given}, but the pictures of {self.dataset} have {value}"
                    + (" after preprocessing" if self.preprocessing else "")
                    + ": leave it out"
                )
        # Checked again, because stages must fit the side.
        model = ModelConfig.model_validate({**self.model.model_dump(), **wanted})
        object.__setattr__(self, "model", model)  # frozen for all others
        return self

    @model_validator(mode="after")
    def _steps_follow_from_the_picture(self) -> "Config":
        kind, pixels, given = self.encoding.kind, self.model.input_size, self.model.num_steps
        if kind not in READING:
            return self
        if kind == "rows" and isqrt(pixels) ** 2 != pixels:
            raise ValueError(
                f"encoding.kind rows needs square pictures, got a model.input_size of {pixels}"
            )
        steps = reading_steps(kind, pixels)
        if given not in (steps, ModelConfig().num_steps):
            raise ValueError(
                f"encoding.kind {kind} reads a picture of {pixels} pixels in {steps} steps, got "
                f"model.num_steps {given}: leave it out, or give {steps}"
            )
        model = self.model.model_copy(update={"num_steps": steps})
        object.__setattr__(self, "model", model)  # frozen for all others
        return self

    def network_arguments(self) -> dict[str, Any]:
        """The arguments of the network's class, by name."""
        return {
            **self.model.arguments(),
            "preprocessing": self.preprocessing,
            "encoding": self.encoding.kind,
            "encoding_options": self.encoding.options(),
        }
