"""Plain SVD and SVD-LLM's whitening, written from their papers and sharing nothing with ours.

SVD-LLM (Wang et al., ICLR 2025, arXiv 2403.07378): for each linear layer, G = sum of x x^T over the
calibration tokens in the ORIGINAL network, L = cholesky(G) in float64 (if it fails, G gets
(-lambda_min + 1e-6) I), W L = U S V^T, factors U sqrt(S) and sqrt(S) V^T L^-1 of rank
floor(share * m * n / (m + n)). Plain SVD is the same with L = I. Neither corrects biases.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from factorization.judging import session

__all__ = ["factorize", "factors", "rank_of"]

Matrix = npt.NDArray[Any]


def rank_of(share: float, rows: int, columns: int) -> int:
    """Rank at which two factors have that share of the elements."""
    return int(share * rows * columns / (rows + columns))


def factors(weight: Matrix, gram: Matrix | None, rank: int) -> tuple[Matrix, Matrix]:
    """Two factors of a layer.

    Args:
        weight: W [m, n]: outputs by inputs.
        gram: Sum of x x^T [n, n]; None for plain SVD.
        rank: Of both.

    Returns:
        [m, rank] and [rank, n], whose product is what W becomes.
    """
    lower = np.eye(weight.shape[1]) if gram is None else _cholesky(gram)
    u, s, vt = np.linalg.svd(weight.astype(np.float64) @ lower, full_matrices=False)
    root = np.sqrt(s[:rank])
    right = np.linalg.solve(lower.T, (root[:, None] * vt[:rank]).T).T
    return u[:, :rank] * root, right


def _cholesky(gram: Matrix) -> Matrix:
    try:
        return np.linalg.cholesky(gram)
    except np.linalg.LinAlgError:
        lowest = np.linalg.eigvalsh(gram)[0]
        return np.linalg.cholesky(gram + (1e-6 - lowest) * np.eye(len(gram)))


def factorize(
    source: Path, output: Path, keep: float, rows: Iterable[Mapping[str, Matrix]] | None
) -> None:
    """Write a file in which each MatMul by a constant matrix of the blocks is two.

    Args:
        source: The float file.
        output: Where the result goes.
        keep: Share of the elements of each matrix that its factors have.
        rows: Feeds without padding, for whitening; None for plain SVD.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(source)
    weights = {t.name: t for t in model.graph.initializer if len(t.dims) == 2}
    layers = [n for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in weights]
    results = {value.name for value in model.graph.output}
    layers = [node for node in layers if node.output[0] not in results]  # the head stays
    inputs = list(dict.fromkeys(node.input[0] for node in layers))
    grams = {} if rows is None else _grams(source, inputs, rows)
    for node in layers:
        name = node.input[1]
        weight = numpy_helper.to_array(weights[name]).T
        rank = rank_of(keep, *weight.shape)
        left, right = factors(weight, grams.get(node.input[0]), rank)
        made = [
            numpy_helper.from_array(np.ascontiguousarray(array.T, np.float32), f"{name}_{end}")
            for end, array in (("right", right), ("left", left))
        ]
        model.graph.initializer.extend(made)
        inner = onnx.helper.make_node("MatMul", [node.input[0], made[0].name], [f"{name}_inner"])
        model.graph.node.insert(list(model.graph.node).index(node), inner)
        node.input[:] = [f"{name}_inner", made[1].name]
    _drop_unused(model.graph)
    onnx.save(model, output)


def _grams(source: Path, inputs: list[str], rows: Iterable[Mapping[str, Matrix]]) -> dict[str, Any]:
    """Sums of x x^T, float64, of some values over all tokens."""
    import onnx

    model = onnx.load(source)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inputs)
    running = session(model.SerializeToString())
    sums: dict[str, Any] = dict.fromkeys(inputs, 0.0)
    for feed in rows:
        given = {each.name: feed[each.name] for each in running.get_inputs()}
        for name, value in zip(inputs, running.run(inputs, given), strict=True):
            tokens = value.reshape(-1, value.shape[-1])
            # float32 products of few rows, summed in float64.
            sums[name] = sums[name] + (tokens.T @ tokens).astype(np.float64)
    return sums


def _drop_unused(graph: Any) -> None:
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
