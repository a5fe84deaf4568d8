"""Options that several commands share, each declared once, and how their values are read."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from realad_verl.commands.model_option import HELP as MODEL_HELP
from realad_verl.errors import UserError, bad_value

if TYPE_CHECKING:
    from realad_verl.method.config import MethodConfig

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
MaxNewTokens = Annotated[int, typer.Option(help="Longest response, in tokens.", min=1)]
BatchSize = Annotated[int, typer.Option(help="Images a batch.", min=1)]
Method = Annotated[
    list[str] | None,
    typer.Option(
        help="A setting of the method, such as scoring.select=all; may be repeated.",
        metavar="KEY=VALUE",
        show_default=False,
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        help="Folder of `realad calibrate`; none: go without. Default: the one inside the model folder, if any.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, ...", show_default="cuda, else cpu")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run wrote to --out.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code of the model folder.")]


def model_option(shown: str | bool = True) -> Any:
    """``--model``; ``shown``: what the help shows as its default."""
    return typer.Option(help=MODEL_HELP, show_default=shown)


def read_device(device: str) -> str:
    """``--device``: the given one; of "", cuda where there is one, else cpu."""
    if device:
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def white_option(shown: str) -> Any:
    """``--white``; ``shown``: what the help shows as its default."""
    return typer.Option(help="Images of more than 8 bits: the pixel value that becomes white.", show_default=shown)


def root_option() -> Any:
    """``--root`` of a data set."""
    return typer.Option(help="Directory that holds the data set in its original layout.", show_default=False)


def read_method(
    settings: list[str] | None, calibration: str | None = "none", model: str | Path | None = None
) -> "MethodConfig":
    """The method's settings from ``--method SECTION.KEY=VALUE``, on top of those of a calibration.

    ``calibration``: its folder, "none", or None for the one inside the folder of ``model``, which stderr then says.
    Raises UserError naming what is wrong.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from realad_verl.calibration import calibrated_method, find_calibration

    for setting in settings or []:
        if "=" not in setting or "." not in setting.split("=", 1)[0]:
            allowed = "SECTION.KEY=VALUE, such as scoring.select=all or readout.layers=[-1,-2]"
            raise bad_value("--method", setting, allowed)
    try:
        nested: Any = OmegaConf.to_container(OmegaConf.from_dotlist(settings or []))
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"--method {' '.join(settings or [])}: {error}") from None
    folder = None if calibration in (None, "none") else Path(calibration)
    if calibration is None and model is not None:
        folder = find_calibration(model)
        if folder is not None:
            typer.echo(f"calibration: {folder}, which comes with the model (--calibration none: without)", err=True)
    return calibrated_method(folder, nested)


def read_pixel_size(text: str) -> int | None:
    """``--pixel-size``: None for "mask", else a number of pixels."""
    if text == "mask":
        return None
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise bad_value("pixel_size", text, "'mask', or a size >= 1 in pixels")
