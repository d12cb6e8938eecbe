"""What a width is on disk: names, exact bytes, packed tensors and back. Knows no model and no algorithm."""

from apportion.formats.compressed_tensors import COMPRESSED_TENSORS, GridWeight
from apportion.formats.format import Format
from apportion.formats.hqq import HQQ, HqqWeight
from apportion.formats.int_quantized import INT_QUANTIZED, IntWeight
from apportion.formats.packed import Packed, Shapes, shape_bytes
from apportion.formats.quanto import QUANTO, QuantoWeight
from apportion.formats.width import Width, grid_width, rising, width_named

FORMATS: dict[str, Format] = {item.name: item for item in (COMPRESSED_TENSORS, HQQ, QUANTO)}
"""Every format by name."""

__all__ = [
    "COMPRESSED_TENSORS",
    "FORMATS",
    "HQQ",
    "INT_QUANTIZED",
    "QUANTO",
    "Format",
    "GridWeight",
    "HqqWeight",
    "IntWeight",
    "Packed",
    "QuantoWeight",
    "Shapes",
    "Width",
    "grid_width",
    "rising",
    "shape_bytes",
    "width_named",
]
