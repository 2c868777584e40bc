"""Rewrite rules of the cleanup pass: onnxscript's own, guarded, and two of ours.

Every rule runs through :class:`GuardedRule`, which asks whether the matched nodes may be touched,
keeps the name of the node that goes on, and notes what was done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleClassBase, RewriteRuleSet
from onnxscript.rewriter.rules import common

__all__ = ["GuardedRule", "apply_rules", "batch_norm_rules", "simplify_rules"]

Allowed = Callable[[ir.Node], bool]
Record = Callable[[str, ir.Node, ir.Node | None], None]
Precondition = Callable[[ir.Node], bool]


class GuardedRule:
    """A rewrite rule of onnxscript with a precondition, a veto and a record.

    Args:
        rule: The rule.
        what: What it does, in words for the report.
        holds: Precondition on the last node of the match, where the rule's own check is too lax.
    """

    def __init__(
        self, rule: RewriteRule, what: str, holds: Precondition = lambda node: True
    ) -> None:
        self.rule = rule
        self.what = what
        self.holds = holds
        self.allowed: Allowed = lambda node: True
        self.record: Record = lambda what, old, new: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rule, name)

    def try_rewrite(
        self,
        model: ir.Model,
        graph_or_function: ir.Graph | ir.Function,
        node: ir.Node,
        **options: Any,
    ) -> Any:
        """As :meth:`RewriteRule.try_rewrite`."""
        if not self.holds(node):
            return None
        delta = self.rule.try_rewrite(model, graph_or_function, node, **options)
        if delta is None or not all(self.allowed(n) for n in delta.match.nodes):
            return None
        new = delta.new_nodes[-1] if delta.new_nodes else None
        if new is not None:
            heirs = [n for n in delta.match.nodes if n.op_type == new.op_type] or [node]
            new.name = heirs[-1].name
        self.record(self.what, node, new)
        return delta


def apply_rules(
    model: ir.Model, rules: Sequence[GuardedRule], allowed: Allowed, record: Record
) -> int:
    """Apply rules to the main graph and all subgraphs once; returns how often one fired."""
    for rule in rules:
        rule.allowed, rule.record = allowed, record
    # The set calls nothing but what a guarded rule offers or hands on.
    return int(RewriteRuleSet(cast(list[RewriteRule], rules)).apply_to_model(model))


def batch_norm_rules() -> list[GuardedRule]:
    """BatchNormalization folded into the Conv, ConvTranspose or Gemm before it."""
    return [
        GuardedRule(rule, "folded into the node before it", _is_inference_batch_norm)
        for rule in (
            common.fuse_batchnorm_into_conv_rule,
            common.fuse_batchnorm_into_conv_transpose_rule,
            common.fuse_batchnorm_into_gemm_rule,
        )
    ]


def simplify_rules() -> list[GuardedRule]:
    """Rules that leave fewer nodes, or nodes that runtimes have integer kernels for.

    Left out on purpose: ``slice_split_rule`` (needs opset 18) and
    ``normalize_pad_format_conv_rule`` (its padding ignores dilations).
    """
    no_op = "does nothing"
    return [
        *(GuardedRule(r, no_op) for r in common.mul_by_1_rule.commute()),
        *(GuardedRule(r, no_op) for r in common.add_0_rule.commute()),
        GuardedRule(common.sub_0_rule, no_op),
        GuardedRule(common.div_by_1_rule, no_op),
        GuardedRule(common.dropout_zero_rule, no_op),
        GuardedRule(common.dropout_inference_rule, no_op),
        GuardedRule(common.no_op_cast_rule, no_op),
        GuardedRule(common.no_op_expand_rule, no_op),
        GuardedRule(common.no_op_transpose_rule, no_op),
        GuardedRule(common.transpose_transpose_rule, "joined with the Transpose before it"),
        GuardedRule(common.unsqueeze_unsqueeze_rule, "joined with the Unsqueeze before it"),
        GuardedRule(common.reshape_reshape_rule, "joined with the Reshape before it"),
        GuardedRule(common.materialize_reshape_shape_rule, "its computed shape is a constant"),
        GuardedRule(common.collapse_slice_rule, no_op),
        GuardedRule(common.collapse_slice2_rule, no_op),
        GuardedRule(common.successive_relu_rule, "joined with the Relu before it"),
        GuardedRule(common.successive_clip_rule, "joined with the Clip before it"),
        GuardedRule(common.successive_clip_relu_rule, "joined with the Clip before it"),
        GuardedRule(common.successive_relu_clip_rule, "joined with the Relu before it"),
        GuardedRule(common.fuse_pad_into_conv_rule, "joined with the Pad before it"),
        GuardedRule(common.remove_optional_bias_from_conv_rule, "its bias is zero"),
        GuardedRule(common.remove_optional_bias_from_conv_transpose_rule, "its bias is zero"),
        GuardedRule(common.remove_optional_bias_from_gemm_rule, "its bias is zero"),
        GuardedRule(common.matmul_add_to_gemm_rule, "joined with its bias to a Gemm", _adds_a_bias),
        GuardedRule(_rule(MergeSlices), "joined with the Slice before it"),
        GuardedRule(_rule(MeanOverSpace), "became GlobalAveragePool, which has an integer kernel"),
    ]


def _rule(kind: type[RewriteRuleClassBase]) -> RewriteRule:
    rule: RewriteRule = kind.rule()  # type: ignore[no-untyped-call]
    return rule


def _is_inference_batch_norm(node: ir.Node) -> bool:
    """The library's rule takes training mode, absent biases and taken names for granted."""
    if node.op_type != "BatchNormalization" or node.attributes.get_int("training_mode", 0) != 0:
        return False
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    if before is None or len(before.inputs) < 2 or node.graph is None:
        return False
    if len(before.inputs) > 2:
        return before.inputs[2] is not None and _is_vector(before.inputs[2])
    weight = before.inputs[1]
    taken = node.graph.initializers if isinstance(node.graph, ir.Graph) else {}
    return weight is not None and f"{weight.name}_bias" not in taken


def _is_vector(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) == 1


def _adds_a_bias(node: ir.Node) -> bool:
    """Gemm broadcasts only its bias, Add broadcasts both ways: take constant vectors alone."""
    if node.op_type != "Add" or len(node.inputs) != 2:
        return False
    product, bias = node.inputs
    if product is None or bias is None or product.shape is None or bias.const_value is None:
        return False
    width = product.shape[-1] if len(product.shape) == 2 else None
    # Gemm is defined for more types than MatMul's kernels are written for; floats are safe.
    is_float = bias.const_value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    return is_float and _is_vector(bias) and bias.const_value.shape[0] in (1, width)


class MeanOverSpace(RewriteRuleClassBase):
    """``ReduceMean`` over both spatial axes of ``[N, C, H, W]`` becomes ``GlobalAveragePool``.

    ::

        ReduceMean<keepdims=1>(x, [2, 3])  ->  GlobalAveragePool(x)
        ReduceMean<keepdims=0>(x, [2, 3])  ->  Reshape(GlobalAveragePool(x), [0, -1])
    """

    def pattern(self, op: Any, x: ir.Value) -> Any:
        """A ReduceMean with any attributes and axes."""
        return op.ReduceMean(x, _allow_other_inputs=True, _outputs=["mean"])

    def check(  # type: ignore[override]
        self, context: Any, x: ir.Value, mean: ir.Value, **_: Any
    ) -> MatchResult:
        """Float, rank 4, both spatial axes and no others."""
        result = MatchResult()
        if x.shape is None or len(x.shape) != 4:
            return result.fail("the input's rank is not 4")
        if x.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
            return result.fail("the input is not float32 or float16")
        axes = _axes(mean.producer())
        if axes is None or sorted(a % 4 for a in axes) != [2, 3]:
            return result.fail("the mean is not over both spatial axes")
        return result

    def rewrite(self, op: Any, x: ir.Value, mean: ir.Value, **_: Any) -> ir.Value:
        """The pool, and a Reshape where the axes go."""
        node = mean.producer()
        pooled: ir.Value = op.GlobalAveragePool(x)
        if node is None or node.attributes.get_int("keepdims", 1) != 0:
            return pooled
        shape = ir.tensor(np.array([0, -1], np.int64), name=f"{mean.name}_shape")
        flat: ir.Value = op.Reshape(pooled, op.initializer(shape))
        return flat


def _axes(node: ir.Node | None) -> list[int] | None:
    """Constant axes of a reduction: an attribute before opset 18, an input since."""
    if node is None:
        return None
    if "axes" in node.attributes:
        return list(node.attributes.get_ints("axes", ()))
    value = node.inputs[1] if len(node.inputs) > 1 else None
    if value is None or value.const_value is None:
        return None
    return [int(axis) for axis in value.const_value.numpy()]


class MergeSlices(RewriteRuleClassBase):
    """Two constant Slices over different axes, as in ``x[:, :, ::2, ::2]``, become one.

    ::

        Slice(Slice(x, axes=[2]), axes=[3])  ->  Slice(x, axes=[2, 3])
    """

    def pattern(self, op: Any, x: ir.Value) -> Any:
        """A Slice of a Slice, with any other inputs."""
        inner = op.Slice(x, _allow_other_inputs=True, _outputs=["inner"])
        return op.Slice(inner, _allow_other_inputs=True, _outputs=["outer"])

    def check(  # type: ignore[override]
        self, context: Any, x: ir.Value, inner: ir.Value, outer: ir.Value, **_: Any
    ) -> MatchResult:
        """Constant bounds, and no axis in both."""
        result = MatchResult()
        first, second = _bounds(inner.producer()), _bounds(outer.producer())
        if first is None or second is None:
            return result.fail("bounds or axes are not constant")
        if not set(first[2]).isdisjoint(second[2]):
            return result.fail("an axis is sliced twice")
        return result

    def rewrite(self, op: Any, x: ir.Value, inner: ir.Value, outer: ir.Value, **_: Any) -> ir.Value:
        """One Slice with the bounds of both."""
        first, second = _bounds(inner.producer()), _bounds(outer.producer())
        assert first is not None
        assert second is not None
        inputs = [
            op.initializer(ir.tensor(np.array(a + b, np.int64), name=f"{outer.name}_{what}"))
            for what, a, b in zip(("starts", "ends", "axes", "steps"), first, second, strict=True)
        ]
        merged: ir.Value = op.Slice(x, *inputs)
        return merged


def _bounds(node: ir.Node | None) -> tuple[list[int], ...] | None:
    """Starts, ends, axes and steps of a Slice whose bounds are constant inputs; axes from 0."""
    if node is None or len(node.inputs) < 3 or node.inputs[0] is None:
        return None
    found: list[list[int]] = []
    for value in node.inputs[1:]:
        if value is None or value.const_value is None:
            return None
        found.append([int(v) for v in value.const_value.numpy()])
    if len(found) < 3:
        found.append(list(range(len(found[0]))))
    if len(found) < 4:
        found.append([1] * len(found[0]))
    rank = None if node.inputs[0].shape is None else len(node.inputs[0].shape)
    if rank is None and any(axis < 0 for axis in found[2]):
        return None
    found[2] = [axis + (rank or 0) if axis < 0 else axis for axis in found[2]]
    return tuple(found)
