"""Build ICC profiles for colors that a file describes by numbers: CICP codes, chromaticities, gamma.

Little CMS then converts them as it does embedded profiles. PQ and HLG are mapped to the range of an SDR
screen by the profile's tone curve, one channel at a time.
"""

import math
import struct
from collections.abc import Callable, Mapping
from typing import Final

Chromaticities = tuple[float, float, float, float, float, float, float, float]
"""x and y of white, red, green and blue, in the order of PNG's cHRM."""
Vector = tuple[float, float, float]
Matrix = tuple[Vector, Vector, Vector]
Curve = Callable[[float], float]

_D65: Final = (0.3127, 0.3290)
SRGB_PRIMARIES: Final[Chromaticities] = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
PRIMARIES: Final[Mapping[int, Chromaticities]] = {  # ITU-T H.273, table 2
    1: SRGB_PRIMARIES,
    4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (*_D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}
PQ, HLG = 16, 18
# Bradford's cone responses of XYZ, and of the profile connection space's white, D50 (ICC.1:2010, annex E).
_BRADFORD: Final[Matrix] = (
    (0.8951, 0.2664, -0.1614),
    (-0.7502, 1.7135, 0.0367),
    (0.0389, -0.0685, 1.0296),
)
_D50: Final[Vector] = (0.9642, 1.0, 0.8249)
_CURVE_POINTS: Final = 1024
_SDR_WHITE_NITS: Final = 203  # ITU-R BT.2408
_HDR_PEAK_NITS: Final = 1000


def srgb_curve(signal: float) -> float:
    """Return linear light for an sRGB signal, both 0 to 1 (IEC 61966-2-1)."""
    return signal / 12.92 if signal <= 0.04045 else ((signal + 0.055) / 1.055) ** 2.4  # noqa: PLR2004


def gamma_curve(exponent: float) -> Curve:
    """Return the curve of linear light = signal ** exponent."""
    return lambda signal: signal**exponent


def pq_curve(signal: float) -> float:
    """Return tone-mapped linear light for a PQ signal (SMPTE ST 2084)."""
    root = signal ** (32 / 2523)
    nits = 10000 * (max(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (16384 / 2610)
    return _tone_map(nits / _SDR_WHITE_NITS)


def hlg_curve(signal: float) -> float:
    """Return tone-mapped linear light for an HLG signal on a screen of 1000 nits (ITU-R BT.2100)."""
    scene = signal**2 / 3
    if signal > 0.5:  # noqa: PLR2004
        scene = (math.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12
    return _tone_map(_HDR_PEAK_NITS * scene**1.2 / _SDR_WHITE_NITS)


def _tone_map(light: float) -> float:
    """Map 0 to the HDR peak onto 0 to 1: SDR white to 0.5, above it by the logarithm, as Chromium does."""
    if light <= 1:
        return light / 2
    return min(0.5 + 0.5 * math.log(light) / math.log(_HDR_PEAK_NITS / _SDR_WHITE_NITS), 1.0)


CURVES: Final[Mapping[int, Curve]] = {  # ITU-T H.273, table 3; BT.709 and the like by BT.1886
    1: gamma_curve(2.4),
    4: gamma_curve(2.2),
    5: gamma_curve(2.8),
    6: gamma_curve(2.4),
    8: gamma_curve(1.0),
    13: srgb_curve,
    14: gamma_curve(2.4),
    15: gamma_curve(2.4),
    PQ: pq_curve,
    HLG: hlg_curve,
}
_UNSPECIFIED: Final = 2


def build_cicp_profile(primaries: int, transfer: int) -> bytes | None:
    """Build a profile for two codes of ITU-T H.273, or None where they mean sRGB or are unknown."""
    chromaticities = PRIMARIES.get(1 if primaries == _UNSPECIFIED else primaries)
    curve = CURVES.get(13 if transfer == _UNSPECIFIED else transfer)
    if chromaticities is None or curve is None:
        return None
    if chromaticities == SRGB_PRIMARIES and curve is srgb_curve:
        return None
    return build_profile(chromaticities, curve)


def build_profile(chromaticities: Chromaticities, curve: Curve) -> bytes:
    """Build an RGB display profile of three primaries and one tone curve (ICC.1:2001-04, 6.3.1.2).

    Raises:
        ZeroDivisionError: the primaries lie on one line, or a y is 0.
    """
    points = [
        round(65535 * min(max(curve(n / (_CURVE_POINTS - 1)), 0), 1)) for n in range(_CURVE_POINTS)
    ]
    tone = b"curv" + struct.pack(f">II{_CURVE_POINTS}H", 0, _CURVE_POINTS, *points)
    columns = [_xyz_tag(column) for column in _transpose(_to_d50(chromaticities))]
    tags = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True))
    tags |= {b"wtpt": _xyz_tag(_D50), b"rTRC": tone, b"gTRC": tone, b"bTRC": tone}
    table, data, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, body in tags.items():
        table += struct.pack(">4sII", name, start + len(data), len(body))
        data += body
    head = struct.pack(">I4sI4s4s4s", start + len(data), b"", 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    head = (head.ljust(36, b"\0") + b"acsp").ljust(68, b"\0") + _xyz_tag(_D50)[8:]
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def _to_d50(chromaticities: Chromaticities) -> Matrix:
    """Return the matrix from linear RGB to XYZ relative to D50 (SMPTE RP 177, then Bradford)."""
    pairs = [chromaticities[n : n + 2] for n in range(0, 8, 2)]
    white, *primaries = ((x / y, 1.0, (1 - x - y) / y) for x, y in pairs)
    columns = _transpose((primaries[0], primaries[1], primaries[2]))
    amounts = _apply(_invert(columns), white)
    to_xyz = _multiply(columns, _diagonal(amounts))
    seen, wanted = _apply(_BRADFORD, white), _apply(_BRADFORD, _D50)
    ratio = (wanted[0] / seen[0], wanted[1] / seen[1], wanted[2] / seen[2])
    adapt = _multiply(_invert(_BRADFORD), _multiply(_diagonal(ratio), _BRADFORD))
    return _multiply(adapt, to_xyz)


def _xyz_tag(values: Vector) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * value) for value in values))


def _apply(matrix: Matrix, v: Vector) -> Vector:
    a, b, c = (row[0] * v[0] + row[1] * v[1] + row[2] * v[2] for row in matrix)
    return a, b, c


def _multiply(left: Matrix, right: Matrix) -> Matrix:
    a, b, c = (_apply(left, column) for column in _transpose(right))
    return _transpose((a, b, c))


def _transpose(matrix: Matrix) -> Matrix:
    a, b, c = zip(*matrix, strict=True)
    return a, b, c


def _diagonal(v: Vector) -> Matrix:
    return (v[0], 0, 0), (0, v[1], 0), (0, 0, v[2])


def _invert(matrix: Matrix) -> Matrix:
    """Invert by cross products of the columns."""
    a, b, c = _transpose(matrix)
    rows = _cross(b, c), _cross(c, a), _cross(a, b)
    volume = a[0] * rows[0][0] + a[1] * rows[0][1] + a[2] * rows[0][2]
    inverse: list[Vector] = [(r[0] / volume, r[1] / volume, r[2] / volume) for r in rows]
    return inverse[0], inverse[1], inverse[2]


def _cross(a: Vector, b: Vector) -> Vector:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]
