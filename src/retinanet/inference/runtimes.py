"""ONNX Runtime and OpenVINO: from the file of an exported model to a graph that runs on the CPU."""

from __future__ import annotations

import importlib
import logging
import os
import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retinanet.errors import UserError
from retinanet.files import check_writable
from retinanet.inference.backend import count_cores
from retinanet.inference.exported import INPUTS, ExportedModel, ReadCard

ONNX_KEY = "retinanet"  # of the card, in the metadata of the file
OPENVINO_KEYS = ["retinanet", "card"]  # where the card lies in the model's runtime information
_log = logging.getLogger(__name__)


@contextmanager
def silence(*names: str) -> Iterator[None]:
    """The loggers of libraries say nothing for a while: what goes wrong is raised too."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def import_runtime(package: str, name: str) -> Any:
    """The module of a runtime, which reports nothing to its maker.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # 0 lets ONNX Runtime report
    os.environ.setdefault("NNCF_CI", "1")  # which NNCF reads when it is imported, after OpenVINO
    reporter = "openvino_telemetry"  # OpenVINO has no such switch, and reports nothing where it cannot import this
    blocked = package == "openvino" and not {package, reporter} & sys.modules.keys()
    modules: dict[str, Any] = sys.modules
    if blocked:
        modules[reporter] = None
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(
            f'{name} is not installed. Install what exported models need: pip install "retinanet[export]", or '
            f"{package} alone: pip install {package}"
        ) from None
    finally:
        if blocked:
            del modules[reporter]


@cache
def openvino_core() -> Any:
    """The one core of OpenVINO in this process.

    Each core gives the thread that makes its CPU device a stack for signals and takes it back when it goes. Where two
    do not go in turn, the thread is left with a stack that is freed, and the next signal, such as Ctrl-C, is a crash.

    Raises:
        UserError: OpenVINO is not installed.
    """
    return import_runtime("openvino", "OpenVINO").Core()


def openvino_computes_bf16() -> bool:
    """Whether OpenVINO computes in bf16 on this CPU.

    Raises:
        UserError: OpenVINO is not installed.
    """
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def load_onnx(path: Path, read: ReadCard, streams: int, cores: int) -> ExportedModel:
    """An ONNX file in ONNX Runtime, whose calls have an equal share of the cores."""
    onnxruntime = import_runtime("onnxruntime", "ONNX Runtime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised too
    options.intra_op_num_threads = max(1, cores // streams)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    text = session.get_modelmeta().custom_metadata_map.get(ONNX_KEY, "")
    card, names = read(text, [output.name for output in session.get_outputs()])

    def graph(images: NDArray[Any], sizes: NDArray[np.int64]) -> list[NDArray[Any]]:
        outputs: list[NDArray[Any]] = session.run(names, dict(zip(INPUTS, (images, sizes), strict=True)))
        return outputs

    return ExportedModel(card, graph, runtime="ONNX Runtime", streams=streams)


def load_openvino(path: Path, read: ReadCard, streams: int, cores: int, cache: Path | None = None) -> ExportedModel:
    """An OpenVINO model, with as many requests as calls may go on at once; a request serves one call at a time."""
    core = openvino_core()
    model = core.read_model(path)
    text = model.get_rt_info(OPENVINO_KEYS).astype(str) if model.has_rt_info(OPENVINO_KEYS) else ""
    card, names = read(text, [output.get_any_name() for output in model.outputs])
    bf16 = card.precision == "bf16" and openvino_computes_bf16()
    if card.precision == "bf16" and not bf16:
        _log.warning("%s was exported for bf16, which this CPU does not compute in: fp32 is used instead", path)
    settings = {
        "PERFORMANCE_HINT": "THROUGHPUT" if streams > 1 else "LATENCY",
        "NUM_STREAMS": str(streams),
        "INFERENCE_NUM_THREADS": str(cores),
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",  # left alone, it is bf16 wherever the CPU can
    }
    if cores < count_cores():  # else the processes that share a machine would all take its first cores
        settings["ENABLE_CPU_PINNING"] = "NO"
    if cache is not None:
        check_writable(cache / "graph.blob")
        settings["CACHE_DIR"] = str(cache)
    compiled = core.compile_model(model, "CPU", settings)
    # OpenVINO drops an input that nothing needs: the sizes of a raw graph of normalised images.
    inputs = {name for port in compiled.inputs for name in port.get_names()}
    free: queue.SimpleQueue[Any] = queue.SimpleQueue()
    # The first call goes on alone: OpenVINO's binding initialises a static variable in it and gives up Python's lock
    # meanwhile, so that two first calls at once can wait for each other for ever (seen with 2026.4.1).
    free.put(compiled.create_infer_request())
    later = [compiled.create_infer_request() for _ in range(streams - 1)]

    def graph(images: NDArray[Any], sizes: NDArray[np.int64]) -> list[NDArray[Any]]:
        given = dict(zip(INPUTS, (images, sizes), strict=True))
        request = free.get()
        try:
            request.infer({name: given[name] for name in INPUTS if name in inputs}, share_inputs=True)
            return [request.get_tensor(name).data.copy() for name in names]
        finally:
            others = later.copy()
            later.clear()
            for other in (*others, request):
                free.put(other)

    return ExportedModel(card, graph, runtime="OpenVINO", streams=streams)
