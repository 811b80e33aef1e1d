"""``gatework bench gna``: what neighbourhood attention can gain under tiles, and which strides gain it."""

from gatework.bench.gna.cases import PUBLISHED, Case, Printed
from gatework.bench.gna.flattened import simulate_flattened
from gatework.bench.gna.front import gna
from gatework.bench.gna.kernels import TILE_PAIRS, TilePair
from gatework.bench.gna.result import GnaBench
from gatework.bench.gna.search import StrideSearch, search_strides, search_tiles
from gatework.bench.gna.simulator import Simulation, Visits, end_to_end, simulate

__all__ = [
    "PUBLISHED",
    "TILE_PAIRS",
    "Case",
    "GnaBench",
    "Printed",
    "Simulation",
    "StrideSearch",
    "TilePair",
    "Visits",
    "end_to_end",
    "gna",
    "search_strides",
    "search_tiles",
    "simulate",
    "simulate_flattened",
]
