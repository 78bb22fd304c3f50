"""One inference engine in a process and an environment of its own: `engines.py` asks, this answers, a JSON line each.

    {"load": "layer.npz", "threads": 2}  ->  {"output": "output.npy", "variant": "NHWC", "version": "..."}
    {"run": 5}                           ->  {"seconds": [...]}

or `{"problem": "..."}`. The worker runs without torch and without groupwise. A layer has constant weights, which an
engine may rearrange when it loads them. If an engine has several variants, the fastest one is timed. A 1-D layer is a
2-D one of height 1. The arrays of a layer of 16 bits come and go as float32; its engine has them in the layer's dtype.
"""

from __future__ import annotations

import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

# What ONNX and OpenVINO call the dtypes. OpenVINO computes float64 in float32, and its result tells.
ONNX_TYPES = {"float32": "FLOAT", "bfloat16": "BFLOAT16", "float16": "FLOAT16", "float64": "DOUBLE"}
PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "float64": "f32"}
# A variant is a name, a call that infers once, and a call that returns the output as (N, C, H, W).
Variant = tuple[str, Callable[[], object], Callable[[], np.ndarray]]


class Unsupported(Exception):
    """Raised for a layer that an engine does not take."""


@dataclass(frozen=True)
class Layer:
    """A 2-D or 3-D convolution and its arrays, in PyTorch's order."""

    input: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool
    output_shape: tuple[int, ...]
    dtype: str

    @classmethod
    def read(cls, path: str) -> Layer:
        """Reads a layer from a file of `numpy.savez`."""
        with np.load(path) as arrays:
            pair = {name: tuple(map(int, arrays[name])) for name in ("stride", "padding", "dilation", "output_shape")}
            dtype = str(arrays["dtype"])
            tensors = {name: typed(np.ascontiguousarray(arrays[name]), dtype) for name in ("input", "weight", "bias")}
            groups, transposed = int(arrays["groups"]), bool(arrays["transposed"])
            return cls(**tensors, **pair, groups=groups, transposed=transposed, dtype=dtype)

    @property
    def kernel(self) -> tuple[int, ...]:
        """The kernel's extents."""
        return self.weight.shape[2:]

    def check_plain(self, engine: str) -> None:
        """Raises `Unsupported` for a layer that is not 2-D and of float32."""
        if self.dtype != "float32" or len(self.kernel) != 2:
            raise Unsupported(f"{engine} is given 2-D convolutions of float32")


def typed(array: np.ndarray, dtype: str) -> np.ndarray:
    """Returns an array in a dtype."""
    if dtype != "bfloat16":
        return array.astype(dtype)
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        raise Unsupported("its environment has no bfloat16 for NumPy") from None
    return array.astype(bfloat16)


def widened(array: np.ndarray, dtype: str) -> np.ndarray:
    """Returns an array in float32, or in float64 if it is that. Engines give bfloat16 as some type of 16 bits."""
    if dtype == "bfloat16":
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.promote_types(array.dtype, np.float32))


def onnx_model(layer: Layer) -> bytes:
    """Returns an ONNX model of this one layer, with constant weights."""
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node(
        "ConvTranspose" if layer.transposed else "Conv",
        ["x", "w", "b"],
        ["y"],
        kernel_shape=layer.kernel,
        strides=layer.stride,
        pads=[*layer.padding, *layer.padding],
        dilations=layer.dilation,
        group=layer.groups,
    )
    kind = getattr(TensorProto, ONNX_TYPES[layer.dtype])
    x = helper.make_tensor_value_info("x", kind, layer.input.shape)
    y = helper.make_tensor_value_info("y", kind, layer.output_shape)
    constants = [numpy_helper.from_array(layer.weight, "w"), numpy_helper.from_array(layer.bias, "b")]
    graph = helper.make_graph([node], "layer", [x], [y], constants)
    # The engines lag behind the package, so the model has an older version of the format: the first with its dtype.
    opset, version = (22, 10) if layer.dtype == "bfloat16" else (17, 9)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=version)
    return model.SerializeToString()


def onnxruntime(layer: Layer, threads: int) -> Iterator[Variant]:
    """Yields ONNX Runtime with its blocked layout (ALL) and without (EXTENDED)."""
    import onnxruntime as ort

    for level in ("ALL", "EXTENDED"):
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
        session = ort.InferenceSession(onnx_model(layer), options, providers=["CPUExecutionProvider"])
        output = ort.OrtValue.ortvalue_from_numpy(np.zeros(layer.output_shape, layer.input.dtype))
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(layer.input))
        binding.bind_ortvalue_output("y", output)
        yield level, lambda session=session, binding=binding: session.run_with_iobinding(binding), output.numpy


def openvino(layer: Layer, threads: int) -> Iterator[Variant]:
    """Yields OpenVINO with tensors whose channels are the second dimension, and the last."""
    import io

    import openvino as ov
    from openvino.preprocess import PrePostProcessor

    core = ov.Core()
    for layout in ("NCHW", "NHWC") if len(layer.kernel) == 2 else ("NCDHW", "NDHWC"):
        model, given, last = core.read_model(io.BytesIO(onnx_model(layer))), layer.input, layout.endswith("C")
        if last:
            change = PrePostProcessor(model)
            for side in (change.input(), change.output()):
                side.tensor().set_layout(ov.Layout(layout))
                side.model().set_layout(ov.Layout(layout.replace("C", "").replace("N", "NC")))
            model, given = change.build(), np.ascontiguousarray(np.moveaxis(given, 1, -1))
        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        settings["INFERENCE_PRECISION_HINT"] = PRECISIONS[layer.dtype]
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        if layer.dtype == "bfloat16":
            request.set_input_tensor(ov.Tensor(given.view(np.uint16), given.shape, ov.Type.bf16))
        else:
            request.set_input_tensor(ov.Tensor(given, shared_memory=True))

        # The function holds the array, because the engine only points at it.
        def result(request: Any = request, last: bool = last, given: np.ndarray = given) -> np.ndarray:
            data = request.get_output_tensor().data
            return np.moveaxis(data, -1, 1) if last else data

        yield layout, request.infer, result


def ncnn(layer: Layer, threads: int) -> Iterator[Variant]:
    """Yields ncnn, whose text and binary formats this function writes itself."""
    layer.check_plain("ncnn")
    import ncnn as engine

    if layer.transposed or len(layer.input) > 1:
        raise Unsupported("ncnn is given plain convolutions of one sample")
    name = "ConvolutionDepthWise" if layer.groups > 1 else "Convolution"
    height, width = layer.kernel
    facts = {0: layer.weight.shape[0], 1: width, 11: height, 5: 1, 6: layer.weight.size, 7: layer.groups}
    for first, pair in ((2, layer.dilation), (3, layer.stride), (4, layer.padding)):
        facts |= {first: pair[1], first + 10: pair[0]}
    text = f"7767517\n2 2\nInput x 0 1 x\n{name} y 1 1 x y {' '.join(f'{k}={v}' for k, v in sorted(facts.items()))}\n"
    net = engine.Net()
    net.opt.num_threads = threads
    for option in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(net.opt, f"use_{option}", False)
    with tempfile.TemporaryDirectory() as folder:
        param, binary = pathlib.Path(folder) / "layer.param", pathlib.Path(folder) / "layer.bin"
        param.write_text(text)
        # Four zeros say that the weight follows as float32.
        binary.write_bytes(bytes(4) + layer.weight.tobytes() + layer.bias.tobytes())
        net.load_param(str(param))
        net.load_model(str(binary))
    given = engine.Mat(layer.input[0]).clone()
    found: list[Any] = [None]

    def infer() -> None:
        extractor = net.create_extractor()
        extractor.input("x", given)
        found[0] = extractor.extract("y")[1]

    yield "", infer, lambda: np.array(found[0])[None]


def mnn(layer: Layer, threads: int) -> Iterator[Variant]:
    """Yields MNN, whose format is converted from ONNX."""
    layer.check_plain("MNN")
    # This calls the converter itself, because MNN.tools reports conversions to a log service, for which it calls pip.
    import _tools
    import MNN.expr as expr
    from MNN import nn

    with tempfile.TemporaryDirectory() as folder:
        model, converted = f"{folder}/layer.onnx", f"{folder}/layer.mnn"
        pathlib.Path(model).write_bytes(onnx_model(layer))
        _tools.mnnconvert(["mnnconvert", "-f", "ONNX", "--modelFile", model, "--MNNModel", converted])
        settings = {"backend": "CPU", "numThread": threads, "precision": "high"}
        manager = nn.create_runtime_manager((settings,))
        # A module leaves its input as it is; a session may overwrite it.
        net = nn.load_module_from_file(converted, ["x"], ["y"], runtime_manager=manager)
    given = expr.const(layer.input, list(layer.input.shape), expr.NCHW, expr.float)
    found: list[Any] = [None]

    def infer() -> None:
        found[0] = net.forward([given])[0]

    def result() -> np.ndarray:
        return np.array(expr.convert(found[0], expr.NCHW).read()).reshape(layer.output_shape)

    yield "", infer, result


def litert(layer: Layer, threads: int) -> Iterator[Variant]:
    """Yields LiteRT (TensorFlow Lite) with XNNPACK, in its only layout, NHWC."""
    from ai_edge_litert.interpreter import Interpreter
    from engine_tflite import tflite_model

    if layer.transposed:
        raise Unsupported("LiteRT's transposed convolution has no groups")
    if len(layer.kernel) != 2:
        raise Unsupported("LiteRT's 3-D convolution has no groups")
    interpreter = Interpreter(model_content=tflite_model(layer), num_threads=threads)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], layer.input.transpose(0, 2, 3, 1))
    output = interpreter.get_output_details()[0]["index"]
    yield "", interpreter.invoke, lambda: interpreter.get_tensor(output).transpose(0, 3, 1, 2)


ENGINES = {"onnxruntime": onnxruntime, "openvino": openvino, "ncnn": ncnn, "mnn": mnn, "litert": litert}
PACKAGES = {"litert": "ai-edge-litert"}


def seconds(run: Callable[[], object], times: int) -> list[float]:
    """Times each of some calls; returns seconds."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return found


def serve(engine: str, answers: Any) -> None:
    """Answers until there is no more to read."""
    run: Callable[[], object]
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if "load" in asked:
                layer = Layer.read(asked["load"])
                variants = list(ENGINES[engine](layer, asked["threads"]))
                times = [statistics.median(seconds(variant[1], 7)[2:]) for variant in variants]
                name, run, result = variants[times.index(min(times))]
                path = pathlib.Path(asked["load"]).with_name(f"{engine}.npy")
                np.save(path, widened(result(), layer.dtype))
                said = {"output": str(path), "variant": name, "version": metadata.version(PACKAGES.get(engine, engine))}
            else:
                said = {"seconds": seconds(run, asked["run"])}
        except Exception as error:
            said = {"problem": f"{type(error).__name__}: {error}".split("\n")[0]}
        print(json.dumps(said), file=answers, flush=True)


if __name__ == "__main__":
    # Engines print to stdout, so the answers use a copy of it, and prints go to stderr.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        serve(sys.argv[1], answers)
