"""A policy's deterministic action as an ONNX graph, checked with ONNX Runtime. Both need the extra `onnx`."""

import logging
import warnings
from pathlib import Path

import torch

from lightning_unlearn.exporters.torch_program import as_program, drawn_observations
from lightning_unlearn.importers.reader import LARGEST_DIFFERENCE, largest_difference
from lightning_unlearn.policies.actor_critic import ActorCritic

INPUT, OUTPUT = "observation", "action"
_STATES = 1000


def save_graph(path: Path, policy: ActorCritic) -> float:
    """Write the graph, for any number of observations, and compare its actions with the policy's.

    Args:
        path: The new file.
        policy: Its observations are passed in its `observation_dtype`, the normaliser is part of the graph.

    Returns:
        Largest difference between actions of the policy and those that ONNX Runtime computes.

    Raises:
        ValueError: The extra is not installed, or the actions differ; no file is left.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (PyTorch's exporter needs it)
    except ImportError as error:
        raise ValueError(
            f"export onnx needs {error.name}, which is not installed: install this package with its extra `onnx`, or "
            "export pt2, which needs nothing further."
        ) from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is not installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (DeprecationWarning, FutureWarning))  # PyTorch's own, about its next release
        torch.onnx.export(
            as_program(policy),
            f=path,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def act(observation: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: observation.numpy()})[0])

    difference = largest_difference(act, policy, drawn_observations(policy, _STATES).to(policy.observation_dtype))
    if not difference < LARGEST_DIFFERENCE:
        path.unlink()
        raise ValueError(f"ONNX Runtime's actions are up to {difference:.3g} off the model's: the file was removed.")
    return difference
