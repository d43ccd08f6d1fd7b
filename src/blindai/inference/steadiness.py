"""Whether a run of a graph takes as long whatever its inputs' elements are.

Always true: "steady" is said only of graphs in which nothing can make it false: every operator is
one whose work follows from the shapes of its inputs, or gets what else decides about its work
(axes, sizes, indices) from weights and shapes. What is not known here is not steady: loops,
branches, functions, and operators of other domains than ONNX's own.

Specification: onnx/docs/Operators.md, Operators-ml.md; "Node Evaluation" in onnx/docs/IR.md.
"""

from __future__ import annotations

from typing import Final

import onnx

_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml"})
_SUBGRAPHS: Final = frozenset({onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS})
# The shapes of their inputs say how long they take.
_BY_SHAPE: Final = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin ArrayFeatureExtractor Asin Asinh Atan Atanh AveragePool
    BatchNormalization Binarizer BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike
    Ceil Celu Clip Concat Conv ConvInteger ConvTranspose Cos Cosh CumSum DepthToSpace
    DequantizeLinear Det Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp EyeLike
    FeatureVectorizer Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool
    GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish
    Hardmax Identity Imputer InstanceNormalization IsInf IsNaN LRN LabelEncoder LayerNormalization
    LeakyRelu Less LessOrEqual LinearClassifier LinearRegressor Log LogSoftmax LpNormalization
    LpPool MatMul MatMulInteger Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg
    Normalizer Not OneHotEncoder Or PRelu Pow QLinearConv QLinearMatMul QuantizeLinear
    RMSNormalization Reciprocal Relu Round SVMClassifier SVMRegressor Scaler ScatterElements
    ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Softmax Softplus Softsign SpaceToDepth
    Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Transpose Trilu Where Xor
    """.split()  # noqa: SIM905 - one name a line would be a hundred lines
)
# Besides, the elements of all inputs but the first do.
_BY_ARGUMENTS: Final = frozenset(
    """
    CenterCropPad Expand Pad ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean
    ReduceMin ReduceProd ReduceSum ReduceSumSquare Reshape Resize Slice Split Squeeze Tile TopK
    Unsqueeze Upsample
    """.split()  # noqa: SIM905 - one name a line would be a hundred lines
)
_RANDOM: Final = frozenset(
    """
    Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike
    """.split()  # noqa: SIM905 - one name a line would be a hundred lines
)
_TREES: Final = frozenset({"TreeEnsembleClassifier", "TreeEnsembleRegressor"})
# Which way through a tree is data: all nodes together are few enough not to matter.
_MAX_TREE_NODES: Final = 50_000


def is_steady(model: onnx.ModelProto) -> bool:
    """Return whether a model's runs take as long for all inputs of the same shapes.

    Args:
        model: As it was uploaded.
    """
    if model.functions:
        # One may have the name of an operator.
        return False
    graph = model.graph
    # What is the same in all runs with inputs of the same shapes.
    fixed = {""}
    fixed.update(tensor.name for tensor in graph.initializer)
    # They may be overridden.
    fixed.difference_update(value.name for value in graph.input)
    for node in graph.node:
        has_fixed_inputs = fixed.issuperset(node.input) and node.op_type not in _RANDOM
        if not _is_steady_node(node, fixed, has_fixed_inputs=has_fixed_inputs):
            return False
        if has_fixed_inputs or node.op_type in {"Shape", "Size"}:
            fixed.update(node.output)
    return True


def _is_steady_node(node: onnx.NodeProto, fixed: set[str], *, has_fixed_inputs: bool) -> bool:
    if node.domain not in _DOMAINS or any(each.type in _SUBGRAPHS for each in node.attribute):
        return False
    if has_fixed_inputs or node.op_type in _BY_SHAPE:
        return True
    if node.op_type in _BY_ARGUMENTS:
        return fixed.issuperset(node.input[1:])
    if node.op_type in _TREES:
        return all(len(each.floats) <= _MAX_TREE_NODES for each in node.attribute)
    return False
