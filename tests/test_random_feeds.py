from __future__ import annotations

import numpy as np
import pytest

from edgecompress.errors import DataError
from edgecompress.model import Signature, TensorSpec
from edgecompress.random_feeds import random_feeds


def spec(dtype: str, *shape: int | str | None, known: bool = True) -> Signature:
    return Signature((TensorSpec("x", dtype, shape if known else None),), ())


@pytest.mark.parametrize(
    ("signature", "shape", "dtype"),
    [
        (spec("float32", "batch", 3), (4, 3), np.float32),
        (spec("float16", None, 3), (1, 3), np.float16),
        (spec("int64", "unnamed", "tokens"), (1, 7), np.int64),
        (spec("bool"), (), np.bool_),
    ],
)
def test_random_feeds_fit(signature: Signature, shape: tuple[int, ...], dtype: type) -> None:
    x = random_feeds(signature, {"batch": 4, "tokens": 7})["x"]
    assert (x.shape, x.dtype) == (shape, np.dtype(dtype))
    np.testing.assert_array_equal(x, random_feeds(signature, {"batch": 4, "tokens": 7})["x"])


@pytest.mark.parametrize(
    ("signature", "said"),
    [
        (spec("float32", 1, "length"), "dimension 'length' has no number"),
        (spec("float32", known=False), "its shape is unknown"),
        (spec("bfloat16", 1), "cannot make up values of type bfloat16"),
        (spec("object", 1), "cannot make up values of type object"),
    ],
)
def test_random_feeds_say_what_is_missing(signature: Signature, said: str) -> None:
    with pytest.raises(DataError, match=said):
        random_feeds(signature)
