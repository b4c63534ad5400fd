"""Int8 graphs of one operator for Vela, written with the classes of the schema that its package brings."""
import flatbuffers
import numpy as np
from ethosu.vela.tflite import Buffer, FullyConnectedOptions, Model, Operator, OperatorCode, QuantizationParameters, SubGraph, Tensor
from ethosu.vela.tflite.BuiltinOperator import BuiltinOperator
from ethosu.vela.tflite.BuiltinOptions import BuiltinOptions
from ethosu.vela.tflite.TensorType import TensorType


def weights(rows, columns, seed=1):
    """Gaussian weights in int8, each row by its largest magnitude: codes and scales."""
    values = np.random.default_rng(seed).standard_normal((rows, columns))
    scales = np.abs(values).max(axis=1) / 127
    return np.round(values / scales[:, None]).astype(np.int8), scales.astype(np.float32)


def vector(builder, start, values, add):
    start(builder, len(values))
    for value in reversed(values):
        add(value)
    return builder.EndVector()


def fully_connected(m, k, n):
    """The bytes of a model of one product, `[m, k]` by `[n, k]`, with a bias and one scale per output."""
    builder = flatbuffers.Builder(n * k + 65536)
    codes, scales = weights(n, k)
    data = [b"", codes.tobytes(), np.zeros(n, np.int32).tobytes()]
    buffers = []
    for content in data:
        at = builder.CreateByteVector(content) if content else None
        Buffer.BufferStart(builder)
        if at is not None:
            Buffer.BufferAddData(builder, at)
        buffers.append(Buffer.BufferEnd(builder))

    def tensor(name, shape, kind, buffer, steps, axis=0):
        name = builder.CreateString(name)
        shape = vector(builder, Tensor.TensorStartShapeVector, shape, builder.PrependInt32)
        of = vector(builder, QuantizationParameters.QuantizationParametersStartScaleVector, steps, builder.PrependFloat32)
        zeros = vector(
            builder, QuantizationParameters.QuantizationParametersStartZeroPointVector, [0] * len(steps), builder.PrependInt64
        )
        QuantizationParameters.QuantizationParametersStart(builder)
        QuantizationParameters.QuantizationParametersAddScale(builder, of)
        QuantizationParameters.QuantizationParametersAddZeroPoint(builder, zeros)
        QuantizationParameters.QuantizationParametersAddQuantizedDimension(builder, axis)
        quantization = QuantizationParameters.QuantizationParametersEnd(builder)
        Tensor.TensorStart(builder)
        Tensor.TensorAddShape(builder, shape)
        Tensor.TensorAddType(builder, kind)
        Tensor.TensorAddBuffer(builder, buffer)
        Tensor.TensorAddName(builder, name)
        Tensor.TensorAddQuantization(builder, quantization)
        return Tensor.TensorEnd(builder)

    step = 0.05
    tensors = [
        tensor("x", [m, k], TensorType.INT8, 0, [step]),
        tensor("weight", [n, k], TensorType.INT8, 1, list(scales)),
        tensor("bias", [n], TensorType.INT32, 2, [step * scale for scale in scales]),
        tensor("y", [m, n], TensorType.INT8, 0, [1.0]),
    ]
    FullyConnectedOptions.FullyConnectedOptionsStart(builder)
    options = FullyConnectedOptions.FullyConnectedOptionsEnd(builder)
    inputs = vector(builder, Operator.OperatorStartInputsVector, [0, 1, 2], builder.PrependInt32)
    outputs = vector(builder, Operator.OperatorStartOutputsVector, [3], builder.PrependInt32)
    Operator.OperatorStart(builder)
    Operator.OperatorAddOpcodeIndex(builder, 0)
    Operator.OperatorAddInputs(builder, inputs)
    Operator.OperatorAddOutputs(builder, outputs)
    Operator.OperatorAddBuiltinOptionsType(builder, BuiltinOptions.FullyConnectedOptions)
    Operator.OperatorAddBuiltinOptions(builder, options)
    operator = Operator.OperatorEnd(builder)
    lists = [
        vector(builder, SubGraph.SubGraphStartTensorsVector, tensors, builder.PrependUOffsetTRelative),
        vector(builder, SubGraph.SubGraphStartInputsVector, [0], builder.PrependInt32),
        vector(builder, SubGraph.SubGraphStartOutputsVector, [3], builder.PrependInt32),
        vector(builder, SubGraph.SubGraphStartOperatorsVector, [operator], builder.PrependUOffsetTRelative),
    ]
    SubGraph.SubGraphStart(builder)
    SubGraph.SubGraphAddTensors(builder, lists[0])
    SubGraph.SubGraphAddInputs(builder, lists[1])
    SubGraph.SubGraphAddOutputs(builder, lists[2])
    SubGraph.SubGraphAddOperators(builder, lists[3])
    graph = SubGraph.SubGraphEnd(builder)
    OperatorCode.OperatorCodeStart(builder)
    OperatorCode.OperatorCodeAddBuiltinCode(builder, BuiltinOperator.FULLY_CONNECTED)
    OperatorCode.OperatorCodeAddDeprecatedBuiltinCode(builder, BuiltinOperator.FULLY_CONNECTED)
    OperatorCode.OperatorCodeAddVersion(builder, 1)
    code = OperatorCode.OperatorCodeEnd(builder)
    graphs = vector(builder, Model.ModelStartSubgraphsVector, [graph], builder.PrependUOffsetTRelative)
    codes = vector(builder, Model.ModelStartOperatorCodesVector, [code], builder.PrependUOffsetTRelative)
    all_buffers = vector(builder, Model.ModelStartBuffersVector, buffers, builder.PrependUOffsetTRelative)
    Model.ModelStart(builder)
    Model.ModelAddVersion(builder, 3)
    Model.ModelAddOperatorCodes(builder, codes)
    Model.ModelAddSubgraphs(builder, graphs)
    Model.ModelAddBuffers(builder, all_buffers)
    builder.Finish(Model.ModelEnd(builder), b"TFL3")
    return bytes(builder.Output())
