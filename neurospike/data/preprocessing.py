"""Preprocessing of pictures before they are encoded, on whole batches and on their device.

The steps are modules in a torchvision v2 pipeline. torchvision's own random transforms draw one
set of parameters for a batch, so that all its pictures turn the same way; those of shape are
therefore written here, with parameters of each picture's own and one `grid_sample` for all.

Randomness is torch's global generator of the pictures' device, and random steps run in training
mode only: one `torch.manual_seed` decides the run, and evaluation and prediction never draw.

Sources: P. Simard, D. Steinkraus, J. Platt, "Best practices for convolutional neural networks
applied to visual document analysis", ICDAR 2003 (elastic distortions).
"""

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from neurospike.errors import MissingDependencyError, needed_by
from neurospike.ops.constants import constant


class Preprocessing(nn.Module):
    """A pipeline of steps over batches of pictures.

        prepare = Preprocessing([{"kind": "affine", "degrees": 10}, "normalize"])
        images = prepare(images)                       # [B, 1, H, W] -> [B, 1, H', W']

    Pixels that a step brings in from outside are 0, so `normalize` belongs at the end.

    Args:
        steps: names of steps, mappings with a `kind` and options, or YAML text of such a list; see
            `neurospike.config.steps` for all of them. None of them: pictures pass as they are.

    Raises:
        ValueError: an unknown step, or a wrong option of one.
        MissingDependencyError: torchvision is needed and does not import.
    """

    def __init__(self, steps: Any = ()) -> None:
        super().__init__()
        self.steps = [] if steps in ((), []) else _step_options().parse_steps(steps)
        self.modules_in_order = nn.ModuleList(
            _MAKERS[step.kind](**step.model_dump(exclude={"kind"})) for step in self.steps
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return `[B, 1, H', W']` in the pictures' number format; `[B, 1, H, W]` in 0 to 1 go in.

        Raises ValueError for pictures of another shape, if there are any steps.
        """
        if self.modules_in_order and images.ndim != 4:
            raise ValueError(
                f"pictures to preprocess must be [B, C, H, W], got {tuple(images.shape)}: use "
                "images.unsqueeze(1)"
            )
        if self.modules_in_order and not len(images):
            # Samplers refuse an empty batch; what a picture would have become tells its shape.
            return self(images.new_zeros(1, *images.shape[1:]))[:0]
        for module in self.modules_in_order:
            images = module(images)
        return images

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of what comes out for pictures of `height` by `width`.

        Raises ValueError for a crop that does not fit.
        """
        if not self.steps:
            return height, width
        sides: tuple[int, int] = _step_options().size_after(self.steps, height, width)
        return sides

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        return ", ".join(repr(step) for step in self.steps)


class _Crop(nn.Module):
    def __init__(self, size: int | tuple[int, int], padding: int) -> None:
        super().__init__()
        self.step = _step_options().Crop(size=size, padding=padding)

    def forward(self, images: Tensor) -> Tensor:
        height, width = self.step.size_after(images.shape[2], images.shape[3])
        images = functional.pad(images, (self.step.padding,) * 4)
        room_down, room_right = images.shape[2] - height, images.shape[3] - width
        if not self.training:
            middle = images[..., room_down // 2 :, room_right // 2 :]
            return middle[..., :height, :width]
        count, device = len(images), images.device
        top = torch.randint(room_down + 1, (count, 1, 1, 1), device=device)
        left = torch.randint(room_right + 1, (count, 1, 1, 1), device=device)
        rows = top + torch.arange(height, device=device)[:, None]
        columns = left + torch.arange(width, device=device)
        picture = torch.arange(count, device=device).view(-1, 1, 1, 1)
        channel = torch.arange(images.shape[1], device=device).view(-1, 1, 1)
        return images[picture, channel, rows, columns]


class _Affine(nn.Module):
    def __init__(self, degrees: float, translate: float, scale: float, shear: float) -> None:
        super().__init__()
        self.degrees, self.translate, self.scale, self.shear = degrees, translate, scale, shear

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return images
        draws = torch.rand(5, len(images), dtype=images.dtype, device=images.device) * 2 - 1
        angle = draws[0] * math.radians(self.degrees)
        tangent = (draws[1] * math.radians(self.shear)).tan()
        zoom = 1 / (1 + draws[2] * self.scale)
        cos, sin = angle.cos() * zoom, angle.sin() * zoom
        # The matrix maps each pixel to where it comes from, in coordinates from -1 to 1: half a
        # side is 1, and a rotation needs the ratio of the sides.
        ratio = images.shape[2] / images.shape[3]
        shift = 2 * self.translate * draws[3:]
        rows = [cos, (cos * tangent + sin) * ratio, shift[0]]
        rows += [-sin / ratio, cos - sin * tangent, shift[1]]
        return _transformed(images, torch.stack(rows, 1).view(-1, 2, 3))


class _Elastic(nn.Module):
    def __init__(self, alpha: float, sigma: float) -> None:
        super().__init__()
        self.alpha, self.sigma = alpha, sigma

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return images
        height, width = images.shape[2:]
        noise = torch.randn(len(images), 2, height, width, dtype=images.dtype, device=images.device)
        side = 2 * math.ceil(2 * self.sigma) + 1
        # The noise is periodic, so that the blur may be wider than the picture.
        around = torch.arange(-(side // 2), max(height, width) + side // 2, device=images.device)
        rows, columns = (around[: n + 2 * (side // 2)] % n for n in (height, width))
        smooth = _v2().functional.gaussian_blur(
            noise[..., rows[:, None], columns], [side, side], [self.sigma, self.sigma]
        )
        spare = (smooth.shape[2] - height) // 2
        smooth = smooth[:, :, spare : spare + height, spare : spare + width]
        # Scaled to a standard deviation of alpha pixels, whatever the blur has left.
        moved = smooth / smooth.std((1, 2, 3), keepdim=True).clamp_min(1e-12) * self.alpha
        pixels = constant((width / 2, height / 2), images.dtype, images.device)
        grid = functional.affine_grid(
            torch.eye(2, 3, dtype=images.dtype, device=images.device).expand(len(images), 2, 3),
            list(images.shape),
            align_corners=False,
        )
        return _sampled(images, grid + moved.movedim(1, -1) / pixels)


class _Deskew(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        weight = images.sum(1).clamp_min(0)
        total = weight.sum((1, 2)).clamp_min(1e-12)
        height, width = images.shape[2:]
        y = torch.linspace(-1, 1, height, dtype=images.dtype, device=images.device)[:, None]
        x = torch.linspace(-1, 1, width, dtype=images.dtype, device=images.device)
        # In the coordinates of affine_grid, in which the outer pixels' middles lie inside +-1.
        y, x = y * (1 - 1 / height), x * (1 - 1 / width)
        mean_y = (weight * y).sum((1, 2)) / total
        mean_x = (weight * x).sum((1, 2)) / total
        apart_y = y - mean_y[:, None, None]
        covariance = (weight * apart_y * (x - mean_x[:, None, None])).sum((1, 2)) / total
        variance = (weight * apart_y**2).sum((1, 2)) / total
        # A single bright row has no slant to tell.
        slant = torch.where(variance > 1e-6, covariance / variance.clamp_min(1e-6), 0.0)
        one, zero = torch.ones_like(slant), torch.zeros_like(slant)
        rows = [one, slant, -slant * mean_y, zero, one, zero]
        return _transformed(images, torch.stack(rows, 1).view(-1, 2, 3))


class _Resize(nn.Module):
    def __init__(self, size: int | Sequence[int]) -> None:
        super().__init__()
        # To torchvision one number is the shorter side; to us both.
        sides = [size, size] if isinstance(size, int) else list(size)
        self.resize = _v2().Resize(sides, antialias=True)

    def forward(self, images: Tensor) -> Tensor:
        return _clamped(self.resize(images), images)


class _Noise(nn.Module):
    def __init__(self, std: float) -> None:
        super().__init__()
        self.add = _v2().GaussianNoise(sigma=std)

    def forward(self, images: Tensor) -> Tensor:
        return self.add(images) if self.training else images


def _transformed(images: Tensor, matrix: Tensor) -> Tensor:
    """Return pictures under affine maps `[B, 2, 3]`, from each pixel to where it comes from."""
    return _sampled(images, functional.affine_grid(matrix, list(images.shape), align_corners=False))


def _sampled(images: Tensor, grid: Tensor) -> Tensor:
    """Return pictures whose pixels are taken from the places `grid` `[B, H, W, 2]`, in -1 to 1."""
    return _clamped(functional.grid_sample(images, grid, align_corners=False), images)


def _clamped(moved: Tensor, images: Tensor) -> Tensor:
    """Return interpolated pictures clamped to the range of `images`, which rounding may leave."""
    return moved.clamp(images.amin().clamp_max(0), images.amax())


def _step_options() -> ModuleType:
    """Return the module of the steps' options and limits, which needs pydantic."""
    with needed_by("preprocessing", "pydantic", "pyyaml"):
        from neurospike.config import steps
    return steps


def _v2() -> Any:
    try:
        from torchvision.transforms import v2
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise MissingDependencyError(
            f"preprocessing needs torchvision ({error}): pip install torchvision"
        ) from error
    return v2


_MAKERS: dict[str, Any] = {
    "normalize": lambda mean, std: _v2().Normalize([mean], [std]),
    "resize": _Resize,
    "crop": _Crop,
    "affine": _Affine,
    "elastic": _Elastic,
    "noise": _Noise,
    "invert": lambda: _v2().Lambda(_v2().functional.invert),
    "deskew": _Deskew,
}
