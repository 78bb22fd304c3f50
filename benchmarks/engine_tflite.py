"""One convolution in LiteRT's format, made from the classes of its schema because there is no small converter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

if TYPE_CHECKING:
    from engine_worker import Layer


def tflite_model(layer: Layer) -> bytes:
    """Returns a model of a padding, if `SAME` does not cover it, and a convolution with constant weights."""
    model = schema.ModelT()
    model.version = 3
    model.buffers = [_buffer(b"")]
    graph = schema.SubGraphT()
    graph.tensors, graph.operators = [], []
    model.subgraphs, model.operatorCodes = [graph], []

    of_layer = getattr(schema.TensorType, layer.dtype.upper())

    def tensor(shape: Any, data: np.ndarray | None = None, kind: int = of_layer) -> int:
        made = schema.TensorT()
        made.shape, made.type, made.buffer = [int(n) for n in shape], kind, 0
        if data is not None:
            made.buffer = len(model.buffers)
            model.buffers.append(_buffer(np.ascontiguousarray(data).tobytes()))
        made.name = f"t{len(graph.tensors)}"
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    def operator(code: int, inputs: list[int], output: int, kind: int, options: Any) -> None:
        made, of = schema.OperatorT(), schema.OperatorCodeT()
        of.builtinCode, of.deprecatedBuiltinCode, of.version = code, code, 1
        made.opcodeIndex, made.inputs, made.outputs = len(model.operatorCodes), inputs, [output]
        made.builtinOptionsType, made.builtinOptions = kind, options
        model.operatorCodes.append(of)
        graph.operators.append(made)

    batch, channels, *size = layer.input.shape
    outputs = layer.weight.shape[0]
    source = tensor((batch, *size, channels))
    graph.inputs = [source]
    reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel, strict=True)]
    same = layer.stride == (1, 1) and all(r == 2 * p for r, p in zip(reach, layer.padding, strict=True))
    if not same and any(layer.padding):
        pads = np.array([[0, 0], *([p, p] for p in layer.padding), [0, 0]], np.int32)
        padded = tensor((batch, *(n + 2 * p for n, p in zip(size, layer.padding, strict=True)), channels))
        given = [source, tensor(pads.shape, pads, schema.TensorType.INT32)]
        operator(schema.BuiltinOperator.PAD, given, padded, schema.BuiltinOptions.PadOptions, schema.PadOptionsT())
        source = padded
    depthwise = layer.groups == channels and layer.groups > 1
    # (out, in / groups, height, width) becomes (1, height, width, out), or (out, height, width, in / groups).
    weight = layer.weight.transpose((1, 2, 3, 0) if depthwise else (0, 2, 3, 1))
    options = schema.DepthwiseConv2DOptionsT() if depthwise else schema.Conv2DOptionsT()
    options.padding = schema.Padding.SAME if same else schema.Padding.VALID
    options.strideH, options.strideW = layer.stride
    options.dilationHFactor, options.dilationWFactor = layer.dilation
    if depthwise:
        options.depthMultiplier = outputs // channels
        code, kind = schema.BuiltinOperator.DEPTHWISE_CONV_2D, schema.BuiltinOptions.DepthwiseConv2DOptions
    else:
        code, kind = schema.BuiltinOperator.CONV_2D, schema.BuiltinOptions.Conv2DOptions
    target = tensor([layer.output_shape[i] for i in (0, 2, 3, 1)])
    given = [source, tensor(weight.shape, weight), tensor(layer.bias.shape, layer.bias)]
    operator(code, given, target, kind, options)
    graph.outputs = [target]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _buffer(data: bytes) -> Any:
    made = schema.BufferT()
    if data:
        made.data = np.frombuffer(data, np.uint8)
    return made
