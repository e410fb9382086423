"""The sections of the configuration: the meaning, the default and the limits of each key."""

from math import isqrt
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from .kinds import KINDS
from .values import (
    CountOrNull,
    Integer,
    Number,
    PositiveNumber,
    PositiveNumberOrNull,
    SeedOrNull,
    Size,
    SizeOrNull,
    Sizes,
    Switch,
    TimeConstants,
    as_sizes,
    refuse_bool,
    split_sizes,
)


def _known_kind(value: str) -> str:
    if value not in KINDS:
        raise ValueError(f"no kind of network: {value}")
    return value


class Section(BaseModel):
    """What all parts of the configuration share: no unknown keys, nothing changed later."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    """The network: arguments of the class that `kind` stands for; the others are not used."""

    kind: Annotated[str, AfterValidator(_known_kind)] = Field(
        default="mlp",
        description="fully connected, convolutional or residual network",
        json_schema_extra=lambda schema: schema.update(allowed=", ".join(KINDS)),
    )
    input_size: Size = Field(
        default=784,
        description="inputs of the network; 28x28 pictures have 784; of cifar10 and folder 784 "
        "stands for those that its pictures have",
    )
    in_channels: Size = Field(
        default=1,
        description="conv, resnet: channels of a picture, 3 of a coloured one; of cifar10 and "
        "folder 1 stands for those that its pictures have",
    )
    hidden_size: Annotated[Size | Sizes, BeforeValidator(split_sizes)] = Field(
        default=256,
        description="neurons of the hidden layer, or of each hidden layer: 256,128",
        json_schema_extra={"allowed": "a whole number >= 1, or a list of them"},
    )
    output_size: Size = Field(default=10, description="outputs, one a class")
    neuron: Literal["lif", "alif", "se_adlif"] = Field(
        default="lif",
        description="mlp: the hidden neurons: LIF with the keys below, or adaptive ones whose "
        "constants are learned per neuron",
    )
    tau: TimeConstants = Field(
        default=[5.0, 25.0],
        description="alif, se_adlif: shortest and longest time constant of the membrane in steps",
        json_schema_extra={"allowed": "a list of two numbers > 0, the shorter first"},
    )
    tau_adaptation: TimeConstants = Field(
        default=[60.0, 300.0],
        description="alif, se_adlif: those of the adaptation",
        json_schema_extra={"allowed": "a list of two numbers > 0, the shorter first"},
    )
    recurrent: Switch = Field(
        default=False,
        description="mlp: the spikes of each hidden layer come back to all of its neurons",
    )
    channels: Annotated[Sizes, BeforeValidator(as_sizes)] = Field(
        default=[16, 32],
        description="conv, resnet: channels of each stage; stages halve the picture",
        json_schema_extra={"allowed": "a list of whole numbers >= 1"},
    )
    kernel_size: Size = Field(default=5, description="conv: side of the kernels, odd")
    pooling: Literal["max", "average", "max_current"] = Field(
        default="max",
        description="conv: what halves the picture: of spikes, or of currents before the neurons",
    )
    blocks: Annotated[Sizes, BeforeValidator(as_sizes)] = Field(
        default=[2, 2],
        description="resnet: blocks of each stage",
        json_schema_extra={"allowed": "a list of whole numbers >= 1"},
    )
    shortcut: Literal["add", "and", "iand", "membrane"] = Field(
        default="add",
        description="resnet: how a block is joined with its input: spikes element by element, or "
        "currents added",
    )
    normalization: Literal["none", "batch", "threshold_batch", "layer"] = Field(
        default="none", description="of the hidden layers' currents"
    )
    dropout: Number = Field(
        default=0.0, ge=0, lt=1, description="share of neurons silenced while training"
    )
    init: Literal["torch", "kaiming", "fluctuation"] = Field(
        default="torch", description="first weights: torch's own, or suited to rectifiers, neurons"
    )
    num_steps: Size = Field(
        default=25,
        description="time steps a picture is shown for; encodings rows and pixels have their own",
    )
    beta: Number = Field(default=0.95, ge=0, le=1, description="membrane decay a time step")
    threshold: Number = Field(default=1.0, gt=0, description="membrane above which a neuron fires")
    surrogate: Literal[
        "atan",
        "fast_sigmoid",
        "sigmoid",
        "triangular",
        "straight_through",
        "boxcar",
        "gaussian",
    ] = Field(
        default="atan", description="derivative that stands in for the spike's in the backward"
    )
    reset: Literal["subtract", "zero", "none"] = Field(
        default="subtract", description="what a spike does to the membrane"
    )
    reset_delay: Switch = Field(
        default=True, description="reset one step after the spike, as snnTorch"
    )
    detach_reset: Switch = Field(
        default=False, description="no gradient through an immediate reset"
    )
    grad_window: PositiveNumberOrNull = Field(
        default=None,
        description="let gradients flow only this near to the threshold; null: everywhere",
    )
    learn_beta: Switch = Field(default=False, description="train beta")
    learn_threshold: Switch = Field(default=False, description="train the threshold")
    readout: Literal["membrane", "max_membrane", "spikes", "first_spike"] = Field(
        default="membrane",
        description="score classes by the output's mean or highest membrane, its spike counts, or "
        "how early it fires",
    )

    @model_validator(mode="after")
    def _shorter_first(self) -> "ModelConfig":
        for name in ("tau", "tau_adaptation"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(
                    f"{name} takes the shorter time constant first, got [{low:g}, {high:g}]"
                )
        return self

    @model_validator(mode="after")
    def _stages_agree(self) -> "ModelConfig":
        if self.kind == "resnet" and len(self.channels) != len(self.blocks):
            raise ValueError(
                f"channels {self.channels} and blocks {self.blocks} must have one number a stage"
            )
        if self.kind == "conv" and self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {self.kernel_size}")
        if self.kind in ("conv", "resnet") and self.in_channels * self.side**2 != self.input_size:
            colour = f" with in_channels {self.in_channels}" if self.in_channels > 1 else ""
            raise ValueError(
                f"kind {self.kind} needs square pictures, got an input_size of {self.input_size}"
                f"{colour}"
            )
        return self

    @model_validator(mode="after")
    def _picture_can_be_halved(self) -> "ModelConfig":
        side = self.side
        if self.kind == "conv" and side >> len(self.channels) < 1:
            raise ValueError(
                f"each of the {len(self.channels)} stages of channels {self.channels} halves the "
                f"picture, whose side is {side}: use at most {side.bit_length() - 1}, or another "
                "kind"
            )
        return self

    @property
    def side(self) -> int:
        """Side of a square picture of `input_size` values."""
        return isqrt(self.input_size // self.in_channels)

    def arguments(self) -> dict[str, Any]:
        """The arguments of the kind's class, by name."""
        others = {name for names in KINDS.values() for name in names} - set(KINDS[self.kind])
        return self.model_dump(exclude={"kind", *others})


class EncodingConfig(Section):
    """How a picture becomes input over time; only the options of the chosen kind are used."""

    kind: Literal[
        "constant", "rate", "latency", "delta", "phase", "burst", "rows", "pixels", "none"
    ] = Field(
        default="constant",
        description="same current every step, random spikes, one timed spike, spikes of change as "
        "the picture fades in, binary digits, or a burst; mlp: read row by row or pixel by pixel; "
        "none: recordings have time of their own",
    )
    gain: Number = Field(
        default=1.0, ge=0, description="rate: spike probability a unit of brightness"
    )
    offset: Number = Field(default=0.0, description="rate: spike probability of a black pixel")
    curve: Literal["linear", "logarithmic"] = Field(
        default="linear", description="latency: how spike time falls with brightness"
    )
    threshold: Number = Field(
        default=0.01,
        ge=0,
        lt=1,
        description="latency: brightness up to which a pixel counts as dark",
    )
    subthreshold: Literal["silent", "last"] = Field(
        default="silent", description="latency: dark pixels never fire, or fire at the last step"
    )
    tau: PositiveNumberOrNull = Field(
        default=None,
        description="latency, logarithmic: time constant in steps; null: num_steps - 1",
    )
    delta_threshold: PositiveNumber = Field(
        default=0.1, description="delta: change of brightness between two spikes"
    )
    period: Integer = Field(
        default=8, ge=1, le=16, description="phase: steps of a period, one a binary digit"
    )
    max_spikes: Integer = Field(
        default=5, ge=1, le=65536, description="burst: spikes of a white pixel"
    )
    permute: SeedOrNull = Field(
        default=None,
        description="pixels: seed of a random order, the same for all pictures; null: row by row",
    )

    @model_validator(mode="after")
    def _options_agree(self) -> "EncodingConfig":
        if self.kind == "latency" and self.curve == "linear" and self.tau is not None:
            raise ValueError("tau is for curve: logarithmic; leave it out of a linear one")
        if self.kind == "latency" and self.curve == "logarithmic" and self.threshold == 0:
            raise ValueError("curve: logarithmic needs a threshold above 0, such as 0.01")
        return self

    def options(self) -> dict[str, object]:
        """The arguments of the chosen encoder, by name."""
        keys: dict[str, dict[str, str]] = {
            "constant": {},
            "rate": {"gain": "gain", "offset": "offset"},
            "latency": {name: name for name in ("curve", "threshold", "subthreshold", "tau")},
            "delta": {"threshold": "delta_threshold"},
            "phase": {"period": "period"},
            "burst": {"max_spikes": "max_spikes"},
            "rows": {},
            "pixels": {"permute": "permute"},
            "none": {},
        }
        return {name: getattr(self, key) for name, key in keys[self.kind].items()}


class EventsConfig(Section):
    """How recordings of events become frames over time: the arguments of `data.Binning`."""

    time_bin: Number = Field(default=10.0, ge=0.001, description="milliseconds of a time step")
    bins: SizeOrNull = Field(
        default=None,
        description="time steps of each recording, however long it lasts; null: as time_bin says",
    )
    pool: Size = Field(
        default=1, description="channels, or pixels of each side, that are counted as one"
    )


class PicturesConfig(Section):
    """What the pictures of a folder of one's own become: arguments of `data.load_folder`."""

    size: Annotated[int, Field(ge=1, le=1024), BeforeValidator(refuse_bool)] = Field(
        default=28, description="folder: pixels of each side to which all pictures are scaled"
    )
    colour: Switch = Field(
        default=False, description="folder: three channels instead of one of grey"
    )
    test: Number = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="folder: share of each class's pictures held out for the test, where there are "
        "no folders train and test",
    )


class TrainingConfig(Section):
    """How the network is trained (Adam on cross-entropy)."""

    epochs: SizeOrNull = Field(
        default=None,
        description="passes over the training pictures; null: 10, or as many as make 1000 steps",
    )
    batch_size: Size = Field(default=128, description="pictures a step")
    learning_rate: Number = Field(default=1e-3, gt=0, description="step size of Adam at the start")
    beta1: Number = Field(default=0.9, ge=0, lt=1, description="Adam: decay of the gradient's mean")
    beta2: Number = Field(default=0.999, ge=0, lt=1, description="Adam: decay of its mean square")
    weight_decay: Number = Field(default=0.0, ge=0, description="L2 penalty on the weight matrices")
    validation: Number = Field(
        default=0.05,
        ge=0,
        le=0.5,
        description="share of the training pictures held out to choose the best model; "
        "0: the last model is taken",
    )
    loss: Literal[
        "cross_entropy",
        "cross_entropy_membrane",
        "cross_entropy_max_membrane",
        "cross_entropy_count",
        "cross_entropy_rate",
        "mse_count",
        "cross_entropy_first_spike",
    ] = Field(
        default="cross_entropy",
        description="of the readout's scores, or of the output's membranes (readout membrane) or "
        "spikes (readout spikes, first_spike) as neurospike.coding.losses says",
    )
    rate_penalty: Number = Field(
        default=100.0,
        ge=0,
        description="weight of the penalty on firing rates beyond the bounds, which keeps neurons "
        "from falling silent for good",
    )
    rate_low: Number = Field(default=0.01, ge=0, le=1, description="spikes a step, lower bound")
    rate_high: Number = Field(default=0.3, ge=0, le=1, description="spikes a step, upper bound")
    clip: PositiveNumberOrNull = Field(
        default=None, description="largest norm of the gradient; null: not clipped"
    )
    ema: Number = Field(
        default=0.998,
        ge=0,
        lt=1,
        description="decay per step of an exponential moving average of the weights, which is "
        "validated, tested and saved in place of the last ones; 0: none",
    )
    segment: SizeOrNull = Field(
        default=None,
        description="steps through which a gradient flows back, truncated there; null: all",
    )
    schedule: Literal["constant", "cosine", "step", "plateau"] = Field(
        default="cosine",
        description="learning rate: kept, falling to zero over the run, times gamma after every "
        "step_epochs, or times gamma on a plateau of the validation loss",
    )
    warmup: CountOrNull = Field(
        default=None,
        description="steps over which the learning rate rises first; null: a tenth of the run, at "
        "most 100",
    )
    gamma: Number = Field(default=0.1, gt=0, lt=1, description="schedule step, plateau: factor")
    step_epochs: Size = Field(default=3, description="schedule step: epochs between two drops")
    plateau_patience: Size = Field(
        default=3, description="schedule plateau: validations without a better loss before a drop"
    )
    patience: SizeOrNull = Field(
        default=None, description="stop after so many validations without a better one; null: never"
    )
    check_every: SizeOrNull = Field(
        default=None, description="also validate and save after so many steps; null: each epoch"
    )

    @model_validator(mode="after")
    def _keys_agree(self) -> "TrainingConfig":
        if self.rate_low > self.rate_high:
            raise ValueError("rate_low must not be above rate_high")
        watches = self.patience is not None or self.schedule == "plateau"
        if watches and not self.validation:
            raise ValueError("patience and schedule: plateau need a validation share above 0")
        return self

    def epochs_of(self, steps: int) -> int:
        """The epochs to train for when one has so many steps: 1000 steps in all on few pictures."""
        return max(10, -(-1000 // steps)) if self.epochs is None else self.epochs

    def warmup_of(self, steps: int) -> int:
        """The steps of warm-up of a run of so many steps, see `warmup`."""
        return min(100, steps // 10) if self.warmup is None else self.warmup
