from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgecompress.errors import DataError
from edgecompress.fixed_shapes import fixed_shapes, is_fixed
from edgecompress.model import Model
from edgecompress.profile_shapes import shape_list
from tests.models import from_text, small_cnn
from tests.running import run

ENCODER = """
<ir_version: 10, opset_import: ["" : 20]>
encoder (int64[batch, sequence] ids, float[batch, sequence] mask, float[8, 4] table)
    => (float[batch, sequence, 4] y)
{
    e = Gather(table, ids)
    axes = Constant<value_ints=[2]>()
    m = Unsqueeze(mask, axes)
    y = Mul(e, m)
}
"""


def encoder() -> Model:
    return from_text(ENCODER, table=np.arange(32, dtype=np.float32).reshape(8, 4))


def test_fixed_shapes_reach_every_value_and_change_no_number() -> None:
    model = encoder()
    fixed = fixed_shapes(model, {"ids": (2, 3), "mask": (2, 3)})
    assert is_fixed(fixed)
    assert not is_fixed(model)
    assert [spec.shape for spec in fixed.signature.outputs] == [(2, 3, 4)]
    shapes = {v.name: v.shape for node in fixed.ir.graph for v in node.outputs}
    assert all(shape is not None and shape.is_static() for shape in shapes.values())
    feeds: dict[str, Any] = {
        "ids": np.array([[1, 2, 3], [4, 5, 6]]),
        "mask": np.ones((2, 3), np.float32),
    }
    np.testing.assert_array_equal(run(fixed, feeds)["y"], run(model, feeds)["y"])


def test_a_model_without_free_dimensions_is_left_alone() -> None:
    fixed = fixed_shapes(small_cnn(), {"x": (1, 3, 16, 16)})
    assert fixed_shapes(fixed, {}) is fixed


@pytest.mark.parametrize(
    ("asked", "shapes"),
    [
        ({}, [{}]),
        (
            {"dims": {"sequence": (4, 8)}, "batch": 2},
            [{"ids": (2, 4), "mask": (2, 4)}, {"ids": (2, 8), "mask": (2, 8)}],
        ),
        ({"shapes": {"ids": ((1, 4),)}}, [{"ids": (1, 4)}]),
        (
            {"dims": {"sequence": (4, 8), "batch": (3,)}},
            [{"ids": (3, 4), "mask": (3, 4)}, {"ids": (3, 8), "mask": (3, 8)}],
        ),
        (
            {"shapes": {"ids": ((1, 4), (1, 8))}, "dims": {"sequence": (4, 8)}},
            [{"ids": (1, 4), "mask": (1, 4)}, {"ids": (1, 8), "mask": (1, 8)}],
        ),
    ],
)
def test_lists_of_shapes(asked: dict[str, Any], shapes: list[Any]) -> None:
    assert shape_list(encoder(), **asked) == shapes


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"dims": {"sequnce": (4,)}}, "did you mean 'sequence'"),
        ({"dims": {"sequence": (4, 8), "batch": (1, 2, 3)}}, "lists of 2 and 3 entries"),
    ],
)
def test_lists_that_make_no_sense(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        shape_list(encoder(), **asked)
