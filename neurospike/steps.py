"""What may be done to pictures before they are encoded: names, options and limits, for the config.

Each class here is one step of `neurospike.data.preprocessing`, which does the work; this file
imports no torch, so that a configuration can be checked without it.
"""

from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

Number = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Size = Annotated[int, Field(ge=1)]
HeightWidth = Size | tuple[Size, Size]


class Step(BaseModel):
    """One step: no unknown options, no text or truth values for numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Normalize(Step):
    """Subtract a mean and divide by a deviation; the defaults are MNIST's."""

    kind: Literal["normalize"] = "normalize"
    mean: Number = 0.1307
    std: Positive = 0.3081


class Resize(Step):
    """Scale to `size` pixels a side, or `[height, width]`."""

    kind: Literal["resize"] = "resize"
    size: HeightWidth


class Crop(Step):
    """Cut `size` out: in the middle, and while training anywhere. `padding` goes round first."""

    kind: Literal["crop"] = "crop"
    size: HeightWidth
    padding: Annotated[int, Field(ge=0)] = 0


class Affine(Step):
    """While training, turn, shift, scale and shear each picture at random."""

    kind: Literal["affine"] = "affine"
    degrees: Annotated[float, Field(ge=0, le=180)] = 10.0
    translate: Annotated[float, Field(ge=0, le=1)] = 0.08
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.1
    shear: Annotated[float, Field(ge=0, lt=90)] = 5.0


class Elastic(Step):
    """While training, bend each picture by a smooth random field of `alpha` pixels."""

    kind: Literal["elastic"] = "elastic"
    alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.5
    sigma: Positive = 4.0


class Noise(Step):
    """While training, add Gaussian noise of deviation `std` and clamp to 0 to 1."""

    kind: Literal["noise"] = "noise"
    std: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1


class Invert(Step):
    """Swap black and white."""

    kind: Literal["invert"] = "invert"


class Deskew(Step):
    """Shear each picture upright, by its own second moments."""

    kind: Literal["deskew"] = "deskew"


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
    if isinstance(value, str):
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"got {value!r}, which is not YAML; try '[deskew]'") from None
        value = [value] if isinstance(value, (str, dict)) else value
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"got {value!r}, wanted a list of steps: {', '.join(NAMES)}")
    return [_parse(step, number) for number, step in enumerate(value, start=1)]


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
        first = error.errors(include_url=False)[0]
        option = str(first["loc"][1]) if len(first["loc"]) > 1 else ""
        where = f"step {number}, {'.'.join(filter(None, (kind, option)))}"
        message = first["msg"][0].lower() + first["msg"][1:]
        raise ValueError(f"{where}: got {step.get(option)!r}, {message}") from None
