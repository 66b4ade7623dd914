"""What a posterior's departure is called, and what helps against it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sciflow.inference.diagnostics.uniformity import Departure
from sciflow.report.drawing import Floats

__all__ = ["MOST_NAMED", "Fault", "advice", "enumerated", "faults_of_parameter", "faults_of_statistic", "told"]

MOST_NAMED = 3
# Standard errors from which on a way to be wrong is named.
_NOTABLE = 2.5


@dataclass(frozen=True)
class Fault:
    """One way to be wrong.

    Attributes:
        way: What it is, as ``"too narrow"``.
        name: Where it is, as the name of a parameter.
        much: How much, in words.
    """

    way: str
    name: str
    much: str


def faults_of_parameter(name: str, values: Floats) -> list[Fault]:
    """Name the ways in which a posterior of one parameter is wrong.

    Args:
        name: Of the parameter.
        values: ``[cases]``, where the truth stands among the draws, from 0 to 1.

    Example:
        >>> import numpy as np
        >>> faults_of_parameter("mass", np.array([0.001, 0.999] * 50))
        [Fault(way='too narrow', name='mass', much='should be 3.1 times as wide')]
    """
    departure, found = Departure.of(values), []
    if abs(departure.shift) > _NOTABLE:
        way = "down" if departure.shift > 0 else "up"
        found.append(Fault(f"biased {way}", name, f"by {abs(departure.normal_shift):.2g} standard deviations"))
        # A shift moves values to one end, too: the width is then that around the shifted mean.
        spread = (departure.normal_spread - 1) * math.sqrt(2 * len(values))
    else:
        spread = departure.spread
    if abs(spread) > _NOTABLE:
        way = "narrow" if spread > 0 else "wide"
        found.append(Fault(f"too {way}", name, f"should be {departure.normal_spread:.2g} times as wide"))
    return found or [Fault("misshapen", name, "neither bias nor width alone")]


def faults_of_statistic(name: str, values: Floats) -> list[Fault]:
    """The same of a statistic of parameters and data, of which only the truth's place can be told."""
    departure = Departure.of(values)
    much = f"mean rank {100 * values.mean():.0f} %"
    if abs(departure.shift) > _NOTABLE:
        return [Fault(f"the truth too {'high' if departure.shift > 0 else 'low'} among the draws", name, much)]
    return [Fault(f"the truth too {'far out' if departure.spread > 0 else 'central'} among the draws", name, much)]


def told(faults: Sequence[Fault]) -> str:
    """Put faults into words, those of one way together.

    Example:
        >>> told([Fault("too narrow", name, "should be 1.3 times as wide") for name in "abcde"])
        'too narrow in a, b, c and 2 more (a: should be 1.3 times as wide)'
    """
    ways = dict.fromkeys(fault.way for fault in faults)
    texts = []
    for way in ways:
        same = [fault for fault in faults if fault.way == way]
        whose = f"{same[0].name}: " if len(same) > 1 else ""
        texts.append(f"{way} in {enumerated([fault.name for fault in same])} ({whose}{same[0].much})")
    return "; ".join(texts)


def advice(faults: Sequence[Fault]) -> str:
    """What to do about them, the gravest one decides."""
    ways = " ".join(fault.way for fault in faults)
    if "narrow" in ways:
        return "train on more simulations, stop earlier, or average several fits; do not use its intervals as they are"
    if "biased" in ways:
        return "see that theta and x come from the prior and simulator that it was trained on; then train longer"
    if "wide" in ways:
        return "train longer or with a larger network; its intervals hold the truth, but are wider than need be"
    if "truth" in ways:
        return "parameters do not follow the data as they should: train longer, on more simulations, or embed x better"
    return "train longer, or use a more flexible family"


def enumerated(items: Sequence[str], most: int = MOST_NAMED) -> str:
    """The first few of them, and how many there are besides.

    Example:
        >>> enumerated(["a", "b", "c", "d", "e"])
        'a, b, c and 2 more'
    """
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
