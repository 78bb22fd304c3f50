"""The engines that `whole.py` compares, each in a process of its own, which answers what the parent asks.

    ("prepare", Point, folder, envs)  ->  {"error": ..., "peak_mib": ..., "runs_mib": ..., "tensors_mib": ..., ...}
    ("run", 5)                        ->  {"seconds": [...]}

or `{"problem": "..."}`. One process computes at a time. Its idle threads must not: PyTorch's sleep some milliseconds
after a call, for which the parent waits, and ONNX Runtime is told to let its own sleep when a call ends.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import itertools
import logging
import os
import pathlib
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import whole_networks
from measuring import keep_memory
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import groupwise

WARM_UP = 2
ONNX = "network.onnx"
# groupwise as it is by default takes about five seconds to be ready; so made, it times every engine and kernel.
TUNED = "groupwise tune=True"
# And so made, a training step keeps the least memory.
RECOMPUTED = "groupwise recompute=True"


@dataclass(frozen=True)
class Point:
    """What is timed: one engine on one network, in one dtype."""

    engine: str
    network: str
    batch: int
    threads: int
    training: bool
    dtype: str = "float32"


# What makes an engine returns a call, and the memory format of the images.
Made = tuple[Callable[[], Any], str]


def eager(point: Point, memory_format: str) -> Made:
    """PyTorch as it is. In bfloat16 a model gets images of that dtype."""
    model, images = _given(point, memory_format)
    return _called(point, model, images), memory_format


def compiled(point: Point) -> Made:
    """`torch.compile`, of a model in channels_last: Inductor chooses that itself in inference, and not in training."""
    model, images = _given(point, "channels_last")
    return _called(point, torch.compile(model), images), "channels_last"


def frozen(point: Point) -> Made:
    """TorchScript, frozen and optimized for inference: it folds BatchNorms, and packs weights for oneDNN."""
    model, images = _given(point, "contiguous")
    traced = torch.jit.freeze(torch.jit.trace(model, images))
    return _called(point, torch.jit.optimize_for_inference(traced), images), "contiguous"


def optimized(point: Point, **options: bool) -> Made:
    """`groupwise.optimize`. Images come contiguous in inference; a training step has them as PyTorch runs best."""
    model, images = _given(replace(point, dtype="float32"), "channels_last" if point.training else "contiguous")
    wishes: dict[str, Any] = {"train": True, **options} if point.training else {**options}
    if point.dtype != "float32":
        wishes["dtype"] = getattr(torch, point.dtype)
    network = groupwise.optimize(model, images, **wishes)
    return _called(point, network, images), "channels_last" if point.training else "contiguous"


def onnxruntime(point: Point, folder: pathlib.Path) -> Made:
    """ONNX Runtime with all of its optimizations."""
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = point.threads, 1
    # Threads that spin after a call would take the processors of the engine that runs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = runtime.InferenceSession(str(folder / ONNX), options, providers=["CPUExecutionProvider"])
    images = whole_networks.inputs(point.batch)[0].numpy()
    name = session.get_inputs()[0].name
    return lambda: torch.from_numpy(session.run(None, {name: images})[0]), "contiguous"


def openvino(point: Point, folder: pathlib.Path) -> Made:
    """OpenVINO for the shortest time of one call, in float32, or in the bfloat16 that it chooses itself."""
    import openvino as engine

    settings = {"INFERENCE_NUM_THREADS": point.threads, "NUM_STREAMS": 1}
    if point.dtype == "float32":
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    compiled_model = engine.Core().compile_model(str(folder / ONNX), "CPU", settings)
    chosen = compiled_model.get_property("INFERENCE_PRECISION_HINT").to_string()
    if point.dtype == "bfloat16" and chosen != "bf16":
        raise RuntimeError(f"it chooses {chosen} on this processor")
    request = compiled_model.create_infer_request()
    # The engine reads the memory of this array, and does not keep it.
    images = whole_networks.inputs(point.batch)[0].numpy()

    def infer() -> Tensor:
        request.set_input_tensor(engine.Tensor(images, shared_memory=True))
        request.infer()
        return torch.from_numpy(request.get_output_tensor().data.copy())

    return infer, "contiguous"


ENGINES: dict[str, Callable[..., Made]] = {
    "eager": functools.partial(eager, memory_format="contiguous"),
    "eager channels_last": functools.partial(eager, memory_format="channels_last"),
    "torch.compile": compiled,
    "freezing": frozen,
    "groupwise": optimized,
    TUNED: functools.partial(optimized, tune=True),
    RECOMPUTED: functools.partial(optimized, recompute=True),
    "onnxruntime": onnxruntime,
    "openvino": openvino,
}
OURS = ("groupwise", TUNED, RECOMPUTED)
OF_TRAINING = ("eager", "eager channels_last", "torch.compile", *OURS)
OF_ONNX = ("onnxruntime", "openvino")
DTYPES = ("float32", "bfloat16")
OF_BFLOAT16 = ("eager", "eager channels_last", "torch.compile", *OURS, "openvino")


def missing(engine: str, training: bool, envs: pathlib.Path | None, dtype: str = "float32") -> str | None:
    """Says why an engine cannot be timed here, or None if it can."""
    if dtype == "bfloat16" and engine not in OF_BFLOAT16:
        return "it is timed in float32"
    if training and engine not in OF_TRAINING:
        return "it does not train"
    if engine == RECOMPUTED and not training:
        return "it is for training"
    if engine in OURS and training and "train" not in inspect.signature(groupwise.optimize).parameters:
        return "this groupwise has no optimize(..., train=True)"
    if engine == "torch.compile" and shutil.which(os.environ.get("CXX", "c++")) is None:
        return "there is no C++ compiler"
    if engine in OF_ONNX and not all(map(importlib.util.find_spec, ("onnx", "onnxscript"))):
        return "onnx and onnxscript are not installed"
    if engine in OF_ONNX and importlib.util.find_spec(engine) is None and _packages(engine, envs) is None:
        return f"{engine} is not installed; engines.py --make-envs DIR installs it, and --envs DIR finds it"
    return None


def serve(pipe: Any) -> None:
    """Answers the parent until it closes the pipe."""
    # Exporters and compilers print; what fails is said in the answer.
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    call: Callable[[], Any] = lambda: None  # noqa: E731
    while True:
        try:
            word, *asked = pipe.recv()
        except EOFError:
            return
        try:
            if word == "prepare":
                call, said = prepare(*asked)
            elif word == "export":
                said = export(*asked)
            else:
                said = {"seconds": seconds(call, *asked)}
        except Exception as error:
            said = {"problem": f"{type(error).__name__}: {str(error).strip()}".split("\n")[0][:200]}
        pipe.send(said)


def prepare(point: Point, folder: pathlib.Path, envs: pathlib.Path | None) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Makes an engine ready; returns its call, and what it cost and how exact it is."""
    keep_memory()
    torch.set_num_threads(point.threads)
    if point.engine in OF_ONNX and importlib.util.find_spec(point.engine) is None:
        sys.path.append(str(_packages(point.engine, envs)))
    make = functools.partial(ENGINES[point.engine], point)
    before, start = memory("VmRSS"), time.perf_counter()
    reset_peak()
    call, memory_format = make(folder=folder) if point.engine in OF_ONNX else make()
    output = call()
    prepared = time.perf_counter() - start
    found = error(output, torch.load(folder / "exact.pt"))
    del output
    peak = peak_since(before)
    # From here on only calls count.
    runs = reset_peak()
    seconds(call, WARM_UP)
    said = {"error": float(f"{found:.3g}"), "peak_mib": peak, "runs_mib": peak_since(before) if runs else None}
    if point.training:
        said["tensors_mib"] = tensors_mib(call)
    return call, {**said, "prepare_s": round(prepared, 2), "memory_format": memory_format}


def peak_since(before: int | None) -> float | None:
    """Returns the peak of the memory above what there was before, in MiB; None where the system hides it."""
    return None if before is None else round((memory("VmHWM") - before) / 1024, 1)


def tensors_mib(call: Callable[[], Any]) -> float:
    """Returns the most that the tensors which a call makes hold at once, in MiB, as PyTorch's allocator tells it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return round(max(held, default=0) / 2**20, 1)


def error(output: list[Tensor], exact: list[Tensor]) -> float:
    """Returns the norm of the difference from float64, relative to the norm: of the logits, or of all gradients.

    The exact logits may be those of the first samples only.
    """
    made = output if isinstance(output, list) else [output[: len(exact[0])]]
    off = sum((one.double() - true).square().sum().item() for one, true in zip(made, exact, strict=True))
    size = sum(true.square().sum().item() for true in exact)
    found = (off / size) ** 0.5
    return found if found == found else float("inf")


def exact(network: str, batch: int, training: bool) -> list[Tensor]:
    """Returns what is compared, in float64: the logits, or the gradients of all parameters."""
    model, (images, labels) = whole_networks.build(network).double(), whole_networks.inputs(batch)
    if training:
        return step(model.train(), images.double(), labels)
    with torch.inference_mode():
        return [model.eval()(images.double()).clone()]


def export(network: str, batch: int, folder: pathlib.Path) -> dict[str, Any]:
    """Writes a network as ONNX, for the engines that read that."""
    model, images = whole_networks.build(network).eval(), whole_networks.inputs(batch)[0]
    torch.onnx.export(model, (images,), str(folder / ONNX), dynamo=True, external_data=False, verbose=False)
    return {}


def step(model: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    """Computes the loss of a model and its gradients, without an optimizer."""
    for parameter in model.parameters():
        parameter.grad = None
    F.cross_entropy(model(images), labels).backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def seconds(call: Callable[[], Any], times: int) -> list[float]:
    """Times each of some calls; returns seconds."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


def memory(name: str) -> int | None:
    """Returns the memory of this process in KiB, now (VmRSS) or at its peak (VmHWM); None where the system hides it."""
    try:
        lines = pathlib.Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)


def reset_peak() -> bool:
    """Lets the peak of the memory begin now; tells whether the system can."""
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True


def _given(point: Point, memory_format: str) -> tuple[nn.Module, Tensor]:
    layout = getattr(torch, {"contiguous": "contiguous_format"}.get(memory_format, memory_format))
    dtype = getattr(torch, point.dtype)
    model = whole_networks.build(point.network).train(point.training).to(dtype, memory_format=layout)
    return model, whole_networks.inputs(point.batch)[0].to(dtype).contiguous(memory_format=layout)


def _called(point: Point, model: Any, images: Tensor) -> Callable[[], Any]:
    if point.training:
        labels = whole_networks.inputs(point.batch)[1]
        return lambda: step(model, images, labels)

    def infer() -> Any:
        with torch.inference_mode():
            return model(images)

    return infer


def _packages(engine: str, envs: pathlib.Path | None) -> pathlib.Path | None:
    """Returns the folder of an engine's packages in an environment that `engines.py` made for this Python."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    folder = None if envs is None else envs / engine / "lib" / version / "site-packages"
    return folder if folder is not None and (folder / engine).is_dir() else None
