"""Orthogonal matrices that spread every channel over all others, for any width.

Takes a width and a seed; gives x times a matrix Q whose numbers all have the same size, or nearly
so: a Hadamard matrix with the signs of its rows drawn. Q is kept as a product of two small factors,
and never whole. Knows no model.

Orders of two are Sylvester's, others are multiplied with one of Paley's (1933); where there is none
of a width, with a Hartley matrix of its odd part, whose numbers reach 1.42 times their mean size.
"""

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Turn"]

Matrix = NDArray[np.float64]
_SYLVESTER = np.array([[1.0, 1.0], [1.0, -1.0]])


class Turn:
    """Q [width, width], orthogonal."""

    def __init__(self, width: int, seed: int) -> None:
        self.width = width
        self._left, self._right = _factors(width)
        drawn = np.random.default_rng(seed).integers(0, 2, width)
        self._signs = np.where(drawn, 1.0, -1.0).astype(np.float64) / math.sqrt(width)

    def __call__(self, x: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """x [..., n * width] -> the same, each run of `width` numbers times Q, in float64."""
        runs = x.reshape(-1, self.width).astype(np.float64) * self._signs
        mixed = runs.reshape(-1, len(self._left), len(self._right)) @ self._right
        turned: NDArray[np.float32] = (self._left.T @ mixed).astype(np.float32)
        return turned.reshape(x.shape)


@cache
def _factors(width: int) -> tuple[Matrix, Matrix]:
    """Two matrices of about equal order whose Kronecker product has orthogonal rows of length
    sqrt(width).
    """
    left, right = _base(width), np.ones((1, 1))
    for _ in range((width // len(left)).bit_length() - 1):
        if len(left) < len(right):
            left = np.kron(left, _SYLVESTER)
        else:
            right = np.kron(right, _SYLVESTER)
    return left, right


def _base(width: int) -> Matrix:
    """Of the least order that leaves a power of two."""
    odd = width // (width & -width)
    if odd == 1:
        return np.ones((1, 1))
    order = 4 * odd
    while width % order == 0:
        found = _paley(order)
        if found is not None:
            return found
        order *= 2
    angles = 2 * np.pi / odd * (np.outer(np.arange(odd), np.arange(odd)) % odd)
    hartley: Matrix = np.cos(angles) + np.sin(angles)
    return hartley


def _paley(order: int) -> Matrix | None:
    """A Hadamard matrix of this order, a multiple of four, where one of two constructions over a
    field of prime order gives it.
    """
    if _prime(order - 1):
        whole = _bordered(order - 1)
        whole[1:, 0] = -1
        made: Matrix = whole + np.eye(order)
        return made
    half = order // 2
    if half % 4 == 2 and _prime(half - 1):
        mixing = np.array([[1.0, -1.0], [-1.0, -1.0]])
        made = np.kron(_bordered(half - 1), _SYLVESTER) + np.kron(np.eye(half), mixing)
        return made
    return None


def _bordered(prime: int) -> Matrix:
    """The quadratic characters of differences, in a border of ones: [prime + 1, prime + 1]."""
    character = np.full(prime, -1.0)
    character[np.square(np.arange(prime)) % prime] = 1
    character[0] = 0
    whole = np.zeros((prime + 1, prime + 1))
    whole[0, 1:] = whole[1:, 0] = 1
    numbers = np.arange(prime)
    whole[1:, 1:] = character[(numbers[:, None] - numbers) % prime]
    return whole


def _prime(number: int) -> bool:
    return number > 1 and all(number % d for d in range(2, math.isqrt(number) + 1))
