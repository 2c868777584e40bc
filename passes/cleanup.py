"""cleanup: a smaller graph that computes the same."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes import common as irc

from edgecompress.constraints import Constraints
from edgecompress.errors import PassError
from edgecompress.graph_pass import Applied, Change, Context, Pass, Skip
from edgecompress.model import DEFAULT_DOMAINS, Model
from edgecompress.residual_norms import split_residual_norms
from edgecompress.rewrite import (
    all_graphs,
    infer_shapes,
    keep_signature,
    lift_constants,
    merge_equal_initializers,
    quiet,
    remove_identities,
    same_graph,
    strip_provenance,
)
from edgecompress.weights.spool import WeightSpool

__all__ = ["Cleanup"]

# Q/DQ with a scale per channel exists since 13; onnxscript's rules speak 18 and later best.
_OLDEST_OPSET = 13
_RAISED_OPSET = 18
_MOST_ROUNDS = 8
# Below it new constants are not worth a thought.
_LARGE_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Cleanup(Pass):
    """Fold, fuse and remove what the model does not need, without changing what it computes.

    ::

        Conv -> BatchNormalization -> Relu          ->  Conv -> Relu
        Pad -> Conv                                 ->  Conv
        MatMul -> Add                               ->  Gemm
        ReduceMean(axes=[2, 3])                     ->  GlobalAveragePool
        Shape -> Gather -> Unsqueeze -> Concat -> Reshape  ->  Reshape with a constant shape

    Constants, dead nodes, common subexpressions, identities and equal initializers go as well;
    functions are inlined, weights are no graph inputs any more, every value whose shape can be
    known has one, and what exporters wrote about the machine that they ran on is removed.

    Weights are read only where they are folded, or where two seem to be equal; folded ones wait on
    disk where they are many, so that models larger than memory can be cleaned.

    Nodes that are left out by ``nodes`` or ``ops`` are neither folded nor fused.

    Attributes:
        fold_constants: Compute at build time what depends on no input.
        fold_batch_norm: Fold BatchNormalization into the Conv, ConvTranspose or Gemm before it.
        max_constant_bytes: A folded constant may be so much larger than what it replaces.
        opset: Raise the model to this version of the operator set. Default: only where it is older
            than 13 or than the target takes, and then to 18.
    """

    name: ClassVar[str] = "cleanup"
    must_change: ClassVar[bool] = False

    fold_constants: bool = True
    fold_batch_norm: bool = True
    max_constant_bytes: int = 8192
    opset: int | None = None

    def run(self, model: Model, context: Context) -> Applied:
        """Clean a clone; the input itself comes back where there was nothing to do.

        Raises:
            PassError: The operator set cannot be raised as asked.
        """
        work = _Work(model.clone(step=self.name), self)
        with quiet(), keep_signature(work.model):
            work.normalize(context.constraints)
            for done in range(_MOST_ROUNDS):
                context.progress("cleanup", done, _MOST_ROUNDS)
                if not work.simplify():
                    break
            if context.constraints.split_residual_norms:
                work.split_residual_norms()
            work.finish()
        context.progress("cleanup", _MOST_ROUNDS, _MOST_ROUNDS)
        notes = {"nodes_before": _count(model.ir), "nodes_after": _count(work.model.ir)}
        skipped = tuple(work.left_alone())
        if same_graph(model.ir, work.model.ir):
            return Applied(model, skipped=skipped, notes=notes)
        if not work.changed:
            work.note(1, "names and shapes completed")
        return Applied(work.model, changed=tuple(work.changed), skipped=skipped, notes=notes)


@dataclass
class _Work:
    """One run: the clone that is edited, and the record of the edits."""

    model: Model
    options: Cleanup
    changed: list[Change] = field(default_factory=list)
    spool: WeightSpool = field(default_factory=WeightSpool)
    folding: list[tuple[ir.Graph, str]] = field(default_factory=list)

    def normalize(self, constraints: Constraints) -> None:
        """Everything in one form: no provenance, functions, weights as inputs or old operators."""
        stripped = strip_provenance(self.model)
        self.note(stripped, "metadata and doc strings removed from {} nodes and values")
        self.stage("inlined", irc.InlinePass())
        inputs = len(self.model.ir.graph.inputs)
        irc.RemoveInitializersFromInputsPass()(self.model.ir)
        gone = inputs - len(self.model.ir.graph.inputs)
        self.note(gone, "{} weights are no graph inputs any more")
        if gone:
            # Up to version 3 of the file format every initializer had to be an input.
            self.model.ir.ir_version = max(self.model.ir.ir_version or 0, 4)
        self.raise_opset(constraints)
        self.note(infer_shapes(self.model), "shapes of {} values inferred")

    def raise_opset(self, constraints: Constraints) -> None:
        """Convert the model to a newer operator set where it must be."""
        import onnx.helper
        from onnxscript.version_converter import ConvertVersionPass

        have = self.model.opset
        wanted = _wanted_opset(self.options.opset, have, constraints)
        if wanted == have:
            return
        inputs = [value.name for value in self.model.ir.graph.inputs]
        try:
            ConvertVersionPass(wanted, fallback=True)(self.model.ir)
        except Exception as error:
            raise _not_converted(have, wanted, str(error)) from error
        graph = self.model.ir.graph
        if self.model.opset != wanted or [v.name for v in graph.inputs] != inputs:
            raise _not_converted(have, wanted, "an operator has no conversion")
        imports = [
            onnx.helper.make_opsetid(domain, version)
            for domain, version in self.model.ir.opset_imports.items()
            if domain in DEFAULT_DOMAINS
        ]
        oldest = onnx.helper.find_min_ir_version_for(imports)
        self.model.ir.ir_version = max(self.model.ir.ir_version or 0, oldest)
        self.note(1, f"operator set raised from {have} to {wanted}")

    def simplify(self) -> bool:
        """One round of folding and fusing; whether anything happened."""
        from onnxscript.optimizer import fold_constants

        from edgecompress import fusions

        before = len(self.changed)
        self.stage("became initializers", lambda _: lift_constants(self.model))
        if self.options.fold_constants:
            # The limits of the library count elements; the widest are 8 bytes.
            elements = self.options.max_constant_bytes // 8
            fold = partial(
                fold_constants,
                onnx_shape_inference=True,
                input_size_limit=2**31,
                output_size_limit=elements,
                should_fold=self.may_fold,
            )
            self.stage("folded into constants", fold)
            self.put_aside()
        self.stage(
            "do nothing and were removed", lambda _: remove_identities(self.model, self.allowed)
        )
        self.stage("lead to no output and were removed", irc.RemoveUnusedNodesPass())
        rules = fusions.simplify_rules()
        if self.options.fold_batch_norm:
            rules = [*fusions.batch_norm_rules(), *rules]
        fusions.apply_rules(self.model.ir, rules, self.allowed, self.fused)
        irc.RemoveUnusedNodesPass()(self.model.ir)
        equal = merge_equal_initializers(self.model)
        self.note(equal, "{} initializers equal others and were removed")
        self.stage("repeat another node and were removed", irc.CommonSubexpressionEliminationPass())
        return len(self.changed) > before

    def split_residual_norms(self) -> None:
        """Residual sums in the form that the target's runtime computes fastest."""
        for node in split_residual_norms(self.model.ir.graph, self.allowed):
            what = "Add became Sum, so that the normalization behind it keeps its fast kernel"
            self.changed.append(Change(node.name or node.outputs[0].name or "", "Add", what))

    def finish(self) -> None:
        """Unique names, shapes, and no trace of the tools used."""
        irc.RemoveUnusedFunctionsPass()(self.model.ir)  # type: ignore[no-untyped-call]
        irc.RemoveUnusedOpsetsPass()(self.model.ir)
        irc.OutputFixPass()(self.model.ir)
        irc.NameFixPass()(self.model.ir)
        infer_shapes(self.model)
        strip_provenance(self.model)

    def allowed(self, node: ir.Node) -> bool:
        """Whether the user lets this node be touched."""
        return self.options.for_node(node) is not None

    def may_fold(self, node: ir.Node) -> bool | None:
        """The library's rules decide, but for nodes left out, strings and what would grow."""
        self.put_aside()
        options = self.options.for_node(node)
        constants = [v.const_value for v in node.inputs if v is not None and v.const_value]
        if options is None or any(c.dtype is ir.DataType.STRING for c in constants):
            return False
        if node.op_type == "Cast" and constants:
            to = ir.DataType(node.attributes.get_int("to", constants[0].dtype.value))
            grown = constants[0].size * (to.itemsize - constants[0].dtype.itemsize)
            if to is ir.DataType.STRING or grown > options.max_constant_bytes:
                return False
        if self.would_grow(node):
            return False
        if isinstance(node.graph, ir.Graph):
            self.folding.append((node.graph, node.outputs[0].name or ""))
        return None

    def would_grow(self, node: ir.Node) -> bool:
        """What the library asks after it has computed the constant, from shapes alone."""
        shape = node.outputs[0].shape
        if shape is None or not shape.is_static():
            return False
        size = math.prod(shape.numpy())
        gone = (v for v in node.inputs if v is not None and len(v.uses()) == 1)
        saved = sum(v.const_value.size for v in gone if v.const_value is not None)
        return size > max(self.options.max_constant_bytes // 8, saved)

    def put_aside(self) -> None:
        """Let new constants wait on disk where they have become many."""
        for graph, name in self.folding:
            self.keep(graph.initializers.get(name))
        self.folding.clear()

    def keep(self, value: ir.Value | None) -> None:
        tensor = None if value is None else value.const_value
        if value is not None and tensor is not None and tensor.nbytes > _LARGE_BYTES:
            value.const_value = self.spool.keep(tensor)

    def note(self, count: int, what: str) -> None:
        """Record an edit of the whole graph, if there was one."""
        if count:
            self.changed.append(Change("(graph)", "", what.format(f"{count:,}")))

    def stage(self, what: str, step: Callable[[ir.Model], object]) -> None:
        """Run a library pass and record, by operator type, the nodes that went."""
        before = _nodes(self.model.ir)
        step(self.model.ir)
        after = _nodes(self.model.ir)
        gone = Counter(op for output, op in before.items() if output not in after)
        for op, count in sorted(gone.items()):
            self.changed.append(Change("(graph)", op, f"{count:,} {op} {what}"))

    def fused(self, what: str, old: ir.Node, new: ir.Node | None) -> None:
        """Record a rewrite rule that fired at ``old``."""
        where = (new and new.name) or old.name or old.outputs[0].name or ""
        self.changed.append(Change(where, old.op_type, f"{old.op_type} {what}"))
        for value in () if new is None else new.inputs:
            if value is not None and value.graph is None:  # made by the rule, not registered yet
                self.keep(value)

    def left_alone(self) -> list[Skip]:
        """BatchNormalization nodes that stayed, with the reason."""
        return [
            Skip(node.name or "", node.op_type, self._why(node))
            for node in self.model.ir.graph
            if node.op_type == "BatchNormalization"
        ]

    def _why(self, node: ir.Node) -> str:
        if not self.allowed(node):
            return "left out by the recipe"
        if not self.options.fold_batch_norm:
            return "fold_batch_norm is off"
        if node.attributes.get_int("training_mode", 0) != 0:
            return "it is in training mode"
        return "no Conv, ConvTranspose or Gemm with weights of its own feeds it alone"


def _wanted_opset(asked: int | None, have: int, constraints: Constraints) -> int:
    if asked is not None and asked < have:
        raise PassError(
            f"expected an operator set of at least the model's, {have}, got {asked}",
            where="pass 'cleanup', option 'opset'",
            cure="export the model with the older operator set instead",
        )
    if asked is not None:
        return asked
    lowest = max(_OLDEST_OPSET, constraints.opset_min)
    return have if have >= lowest else min(max(lowest, _RAISED_OPSET), constraints.opset_max)


def _not_converted(have: int, wanted: int, reason: str) -> PassError:
    first = (reason.strip().splitlines() or ["unknown reason"])[0]
    return PassError(
        f"cannot raise the operator set from {have} to {wanted}: {first}",
        where="pass 'cleanup'",
        cure=f"export the model again with operator set {wanted} or later",
    )


def _nodes(model: ir.Model) -> dict[str, str]:
    """Operator types by the name of the first output."""
    return {
        node.outputs[0].name or "": node.op_type
        for graph in all_graphs(model)
        for node in graph
        if node.outputs
    }


def _count(model: ir.Model) -> int:
    return sum(1 for graph in all_graphs(model) for _ in graph)
