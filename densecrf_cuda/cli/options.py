"""Options that several commands share, and the CRF they describe."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from densecrf_cuda import Bilateral, DenseCRF, Gaussian
from densecrf_cuda.potentials import Potential, parse_normalization

from .errors import UsageError
from .facts import cuda_fault

__all__ = ["Model", "check_palette", "choose_device", "parse_numbers", "use_threads"]


def _numbers(*names: str, help: str, metavar: str = "N[,N...]") -> typer.models.OptionInfo:
    return typer.Option(*names, metavar=metavar, help=help)


GaussianSxy = Annotated[
    str, _numbers(help="Bandwidth of the smoothness kernel in pixels; x,y: one for each axis.", metavar="N[,N]")
]
GaussianCompat = Annotated[str, _numbers(help="Its weight, or one number for each class; 0 leaves it out.")]
BilateralSxy = Annotated[
    str,
    _numbers("--sxy", "--bilateral-sxy", help="Bandwidth of the appearance kernel in pixels, or x,y.", metavar="N[,N]"),
]
BilateralSrgb = Annotated[
    str,
    _numbers("--srgb", "--bilateral-srgb", help="Its bandwidth in colour, on 0 to 255, or r,g,b.", metavar="N[,N,N]"),
]
BilateralCompat = Annotated[
    str, _numbers("--compat", "--bilateral-compat", help="Its weight, or one number for each class; 0 leaves it out.")
]
Normalization = Annotated[str, typer.Option(metavar="NAME", help="symmetric, none, before, after or homogeneous.")]
Iterations = Annotated[int, typer.Option(min=0, metavar="N", help="Updates of mean field.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, or auto: a GPU where there is one.")]
Threads = Annotated[int | None, typer.Option(min=1, metavar="N", help="Threads of the CPU; default: as torch chooses.")]
Confidence = Annotated[
    float, typer.Option(metavar="P", help="Probability that a label or scribble is right, in (0, 1].")
]
UnsureLabel = Annotated[
    str,
    typer.Option(
        "--unsure-label",
        "--ignore",
        metavar="LABEL",
        help="Label of pixels of which nothing is known: a number, #rrggbb, none, or auto: 255, unless a grey picture "
        "holds nothing but 0 and 255.",
    ),
]
NumClasses = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Labels are 0 to N-1; default: those that occur in the picture.")
]
Layout = Annotated[str, typer.Option(metavar="NAME", help="Axes of scores: chw, hwc, or auto: by the photo's size.")]
Key = Annotated[str | None, typer.Option(metavar="NAME", help="Array of an .npz that holds several.")]
LabelsPath = Annotated[
    Path | None,
    typer.Option(
        "--labels", metavar="PATH", help="Label picture(s): palette, grey or colour-coded; a file, folder or pattern."
    ),
]
ProbsPath = Annotated[
    Path | None, typer.Option("--probs", metavar="PATH", help="Probabilities as .npy or .npz; likewise.")
]
LogitsPath = Annotated[
    Path | None, typer.Option("--logits", metavar="PATH", help="Logits (before the softmax); likewise.")
]
Exif = Annotated[bool, typer.Option("--exif/--no-exif", help="Turn photos as their EXIF orientation says.")]
Out = Annotated[
    str,
    typer.Option(
        "--out", "-o", metavar="PATH", help=".png: labels; .npy, .npz: probabilities; without suffix: a folder."
    ),
]
OverlayPath = Annotated[
    str | None,
    typer.Option(
        "--overlay",
        metavar="PATH",
        help="Also the photo under its labels, a file or a folder; no PATH: beside the outputs, NAME_overlay.png.",
    ),
]
Opacity = Annotated[
    float, typer.Option("--opacity", min=0, max=1, metavar="A", help="Of the labels in an overlay, 0 to 1.")
]
Boundaries = Annotated[bool, typer.Option("--boundaries/--no-boundaries", help="White lines between labels in it.")]
Palette = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Of label pictures: keep, voc, grey, or a palette picture; scores start from voc."
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite/--no-overwrite", help="Replace outputs that exist, or refuse to.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no summary.")]
Debug = Annotated[bool, typer.Option("--debug", help="Tracebacks of errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def parse_numbers(option: str, text: str) -> float | tuple[float, ...]:
    """A number, or several with commas between.

    Raises:
        UsageError: anything else.

    Example:
        >>> parse_numbers("--sxy", "80"), parse_numbers("--sxy", "80,60")
        (80.0, (80.0, 60.0))
    """
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        raise UsageError(f"{option} must be a number, or numbers with commas between, got {text!r}") from None
    return numbers if len(numbers) > 1 else numbers[0]


@dataclass(frozen=True)
class Model:
    """The kernels and the inference that a command line describes; defaults are those users of pydensecrf know.

    Raises:
        UsageError: numbers out of their range.
    """

    gaussian_sxy: str = "3"
    gaussian_compat: str = "3"
    bilateral_sxy: str = "80"
    bilateral_srgb: str = "13"
    bilateral_compat: str = "10"
    normalization: str = "symmetric"
    iterations: int = 10

    def __post_init__(self) -> None:
        try:
            self.kernels()
            self.normalization_name()
        except (TypeError, ValueError) as error:
            raise UsageError(str(error)) from error

    def normalization_name(self) -> str:
        """The short name of the normalization."""
        return parse_normalization(self.normalization)

    def kernels(self) -> list[Potential]:
        """The kernels whose weight is not 0, the Gaussian first."""
        sxy = parse_numbers("--gaussian-sxy", self.gaussian_sxy)
        compat = parse_numbers("--gaussian-compat", self.gaussian_compat)
        gaussian = Gaussian(sxy, compat)
        sxy, srgb = (parse_numbers(f"--{name}", getattr(self, f"bilateral_{name}")) for name in ("sxy", "srgb"))
        compat = parse_numbers("--compat", self.bilateral_compat)
        return [kernel for kernel in (gaussian, Bilateral(sxy, srgb, compat)) if kernel.compat != 0]

    def crf(self, num_classes: int, filter: str = "lattice") -> DenseCRF:
        """The CRF for a number of classes."""
        return DenseCRF(
            num_classes, self.kernels(), iterations=self.iterations, normalization=self.normalization, filter=filter
        )


def choose_device(name: str) -> torch.device:
    """The device of a name; "auto" is a GPU where torch sees one and the library has kernels for it.

    Raises:
        UsageError: no such device, or one that cannot be used, and why.
    """
    fault = cuda_fault()
    if name == "auto":
        return torch.device("cpu" if fault else "cuda")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UsageError(f"--device must be auto, cpu, cuda or cuda:N, got {name}")
    device = torch.device(name)
    if device.type == "cuda" and fault:
        raise UsageError(f"--device {name} cannot be used: {fault}")
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise UsageError(f"--device {name} does not exist, there are {torch.cuda.device_count()} GPUs")
    return device


def use_threads(threads: int | None) -> None:
    """Let torch, and so the kernels, use this number of threads; None changes nothing."""
    if threads is not None:
        torch.set_num_threads(threads)


def check_palette(palette: str) -> None:
    """Refuse what is neither a name nor a file.

    Raises:
        UsageError: so.
    """
    if palette not in ("keep", "voc", "grey") and not Path(palette).is_file():
        raise UsageError(f"--palette must be keep, voc, grey or a palette picture, got {palette}")
