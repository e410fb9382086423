"""The preprocessing steps of the configuration: their names, options and limits.

Each class here is one step of `neurospike.data.preprocessing`, which does the work; this file
imports no torch, so that a configuration can be checked without it. What a step makes of a
picture's size and range is computed here too, so that a network which the pictures do not fit is
refused before any are loaded.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from .words import FLOAT32, GREATEST, LEAST, allowed, beyond_format, nearest_key

LARGEST_SIDE = 4096  # pixels; far more than any step or network here has a use for


def float32(value: float) -> float:
    """Return a number; ValueError for one that is not 0 but would be, or infinite, as float32."""
    if value and not LEAST <= abs(value) <= GREATEST:
        raise ValueError(FLOAT32)
    return value


Number = Annotated[float, Field(allow_inf_nan=False), AfterValidator(float32)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), AfterValidator(float32)]
Size = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
HeightWidth = Annotated[
    Size | tuple[Size, Size],
    Field(json_schema_extra={"allowed": f"1 to {LARGEST_SIDE} pixels, or [height, width]"}),
]
Range = tuple[float, float]


class Step(BaseModel):
    """One step; refuses unknown options, and text or truth values for numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    fills: ClassVar[bool] = False  # True: brings pixels of 0 in from outside

    def size_after(self, height: int, width: int) -> tuple[int, int]:
        """Return what a picture's height and width become. Raises ValueError if it cannot be."""
        return height, width

    def range_after(self, low: float, high: float) -> Range:
        """Return between what its pixels lie afterwards, in training or in evaluation."""
        return (min(low, 0.0), max(high, 0.0)) if self.fills else (low, high)


class Normalize(Step):
    """Subtract a mean and divide by a deviation; the defaults are MNIST's."""

    kind: Literal["normalize"] = "normalize"
    mean: Number = 0.1307
    std: Positive = 0.3081

    def range_after(self, low: float, high: float) -> Range:
        """As `Step` says."""
        return (low - self.mean) / self.std, (high - self.mean) / self.std


class Resize(Step):
    """Scale to `size` pixels a side, or `[height, width]`."""

    kind: Literal["resize"] = "resize"
    size: HeightWidth

    def size_after(self, height: int, width: int) -> tuple[int, int]:
        """As `Step` says."""
        return _sides(self.size)


class Crop(Step):
    """Cut `size` out: in the middle, and while training anywhere. `padding` goes round first."""

    kind: Literal["crop"] = "crop"
    size: HeightWidth
    padding: Annotated[int, Field(ge=0, le=LARGEST_SIDE)] = 0
    fills: ClassVar[bool] = True

    def size_after(self, height: int, width: int) -> tuple[int, int]:
        """As `Step` says."""
        sides = _sides(self.size)
        whole = height + 2 * self.padding, width + 2 * self.padding
        if sides[0] > whole[0] or sides[1] > whole[1]:
            raise ValueError(
                f"cannot crop {sides[0]} x {sides[1]} out of {whole[0]} x {whole[1]} pixels: "
                "choose a smaller size or more padding"
            )
        return sides


class Affine(Step):
    """While training, turn, shift, scale and shear each picture at random."""

    kind: Literal["affine"] = "affine"
    fills: ClassVar[bool] = True
    degrees: Annotated[float, Field(ge=0, le=180)] = 10.0
    translate: Annotated[float, Field(ge=0, le=1)] = 0.08
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.1
    shear: Annotated[float, Field(ge=0, lt=90)] = 5.0


class Elastic(Step):
    """While training, bend each picture by a smooth random field of `alpha` pixels."""

    kind: Literal["elastic"] = "elastic"
    fills: ClassVar[bool] = True
    alpha: Annotated[float, Field(ge=0, le=1000)] = 1.5
    sigma: Annotated[float, Field(ge=0.1, le=20)] = 4.0


class Noise(Step):
    """While training, add Gaussian noise of deviation `std` and clamp to 0 to 1."""

    kind: Literal["noise"] = "noise"
    std: Annotated[float, Field(ge=0, le=1000)] = 0.1

    def range_after(self, low: float, high: float) -> Range:
        """As `Step` says."""
        return min(low, 0.0), max(high, 1.0)


class Invert(Step):
    """Swap black and white."""

    kind: Literal["invert"] = "invert"

    def range_after(self, low: float, high: float) -> Range:
        """As `Step` says."""
        return 1 - high, 1 - low


class Deskew(Step):
    """Shear each picture upright, by its own second moments."""

    kind: Literal["deskew"] = "deskew"
    fills: ClassVar[bool] = True


AnyStep = Annotated[
    Normalize | Resize | Crop | Affine | Elastic | Noise | Invert | Deskew,
    Field(discriminator="kind"),
]
NAMES = ("normalize", "resize", "crop", "affine", "elastic", "noise", "invert", "deskew")
_ADAPTER: TypeAdapter[Any] = TypeAdapter(AnyStep)


def parse_steps(value: Any) -> list[Step]:
    """Read a list of steps: names, or mappings with a `kind`; or YAML text of such a list.

    Raises ValueError with the step and the option that is wrong.
    """
    if isinstance(value, str) and value.strip():
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"got {value!r}, which is not YAML; try '[deskew]'") from None
        value = [value] if isinstance(value, (str, dict)) else value
    if not isinstance(value, (list, tuple)):
        got = "null" if value is None else repr(value)
        raise ValueError(f"got {got}, wanted a list of steps: {', '.join(NAMES)}")
    return [_parse(step, number) for number, step in enumerate(value, start=1)]


def size_after(steps: Sequence[Step], height: int, width: int) -> tuple[int, int]:
    """Return what steps make of a picture's sides; ValueError for a crop that does not fit."""
    for step in steps:
        height, width = step.size_after(height, width)
    return height, width


def range_after(steps: Sequence[Step]) -> Range:
    """Return between what numbers the pixels of a picture in [0, 1] lie after these steps."""
    low, high = 0.0, 1.0
    for step in steps:
        low, high = step.range_after(low, high)
    return low, high


def _sides(size: HeightWidth) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _parse(step: Any, number: int) -> Step:
    if isinstance(step, Step):
        return step
    kind = step.get("kind") if isinstance(step, dict) else step
    if kind not in NAMES:
        raise ValueError(f"step {number}: got {step!r}, wanted a kind of {', '.join(NAMES)}")
    step = step if isinstance(step, dict) else {"kind": step}
    # A list is all that YAML and JSON have for a pair.
    step = {key: tuple(entry) if isinstance(entry, list) else entry for key, entry in step.items()}
    try:
        return _ADAPTER.validate_python(step)
    except ValidationError as error:
        raise ValueError(f"step {number}, {_explain(error, kind, step)}") from None


def _explain(error: ValidationError, kind: str, step: dict[str, Any]) -> str:
    """Say what is wrong with a step's option, in the words of the other keys."""
    schema = _ADAPTER.json_schema()["$defs"][kind.capitalize()]
    options = {name: part for name, part in schema["properties"].items() if name != "kind"}
    first = error.errors(include_url=False)[0]
    option = str(first["loc"][1])
    if option not in options:
        near = nearest_key(option, list(options))
        known = f"its options are {', '.join(options)}" if options else "it has no options"
        return f"{kind}.{option}: no such option; " + (f"did you mean {near}?" if near else known)
    if first["type"] == "missing":
        return f"{kind}.{option} is missing, wanted: {allowed(options[option])}"
    wanted = allowed(options[option]) + beyond_format(first)
    return f"{kind}.{option}: got {step[option]!r}, allowed: {wanted}"
