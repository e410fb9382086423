"""The types of the configuration's values, and how text of flags and of YAML is read as them."""

from typing import Annotated

from pydantic import AfterValidator, AllowInfNan, BeforeValidator, Field

from .steps import float32


def refuse_bool(value: object) -> object:
    """Raise ValueError for true and false: to Python, and so to pydantic, `epochs: yes` is 1."""
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers")
    return value


def _refuse_number(value: object) -> object:
    # Strings such as "yes" come from the command line; a 0 or 1 was probably meant for another key.
    if not isinstance(value, (bool, str)):
        raise ValueError("not true or false")
    return value


def split_sizes(value: object) -> object:
    """Read `256,128` and `[256,128]`, as the command line hands them over, as a list."""
    if isinstance(value, str) and ("," in value or value.startswith("[")):
        inner = value.removeprefix("[").removesuffix("]").strip()
        return [part.strip() for part in inner.split(",")] if inner else []
    return refuse_bool(value)


def as_sizes(value: object) -> object:
    """Read a list of sizes, of which there may be one: `16`."""
    sizes = split_sizes(value)
    return sizes if isinstance(sizes, list) else [sizes]


def switch_word(value: object) -> object:
    """Read what YAML makes of a bare `on` or `off` as that word again."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def _none_word(value: object) -> object:
    """Read YAML's words for nothing, which the command line hands over as text, as None.

    An empty text is not one of those words: it is what a shell variable that was not set leaves.
    """
    if isinstance(value, str) and value.strip().lower() in ("null", "none", "~"):
        return None
    return refuse_bool(value)


Integer = Annotated[int, BeforeValidator(refuse_bool)]
Number = Annotated[float, BeforeValidator(refuse_bool), AllowInfNan(False), AfterValidator(float32)]
Switch = Annotated[bool, BeforeValidator(_refuse_number)]
PositiveNumber = Annotated[
    float,
    Field(gt=0),
    BeforeValidator(refuse_bool),
    AllowInfNan(False),
    AfterValidator(float32),
]
Size = Annotated[int, Field(ge=1, le=2**63 - 1), BeforeValidator(refuse_bool)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1), BeforeValidator(refuse_bool)]
# The limit is here because threads that the system does not grant end the process without a word.
Threads = Annotated[int, Field(ge=1, le=1024), BeforeValidator(refuse_bool)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1), BeforeValidator(refuse_bool)]
Sizes = Annotated[list[Size], Field(min_length=1)]
# The shortest and the longest of a layer's time constants, in steps.
TimeConstants = Annotated[
    list[PositiveNumber], Field(min_length=2, max_length=2), BeforeValidator(split_sizes)
]
Text = Annotated[str, Field(pattern=r"\S")]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]

# What null means is said in each key's description.
SizeOrNull = Annotated[Size | None, BeforeValidator(_none_word)]
PositiveNumberOrNull = Annotated[PositiveNumber | None, BeforeValidator(_none_word)]
CountOrNull = Annotated[Count | None, BeforeValidator(_none_word)]
SeedOrNull = Annotated[Seed | None, BeforeValidator(_none_word)]
ThreadsOrNull = Annotated[Threads | None, BeforeValidator(_none_word)]
TextOrNull = Annotated[Text | None, BeforeValidator(_none_word)]
