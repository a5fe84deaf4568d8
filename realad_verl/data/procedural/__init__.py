"""Procedural surfaces and defects, with masks and captions. See `dataset`."""

from realad_verl.data.procedural.dataset import DOMAINS, ProceduralDefects, ProceduralSample
from realad_verl.data.procedural.folder import write_folder

__all__ = ["DOMAINS", "ProceduralDefects", "ProceduralSample", "write_folder"]
