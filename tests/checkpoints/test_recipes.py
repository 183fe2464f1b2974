"""Recipes: a lazy tensor made from its recipe has the values, the precision and the order in memory of the recorded one."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from embspace_lens.checkpoints.checkpoint import Checkpoint
from embspace_lens.checkpoints.lazy_tensor import LazyTensor
from embspace_lens.checkpoints.recipes import OPERATIONS, NotRecordable, recipe_of, tensor_of

OPERATIONS_OF_TWO = {
    "stored": lambda x, y: x,
    "entry": lambda x, y: x[2][1],
    "transpose": lambda x, y: x.transpose(0, 2),
    "matrix of a transpose": lambda x, y: x.permute(0, 2, 1)[1].T,
    "reshape of a transpose": lambda x, y: x.transpose(0, 1).reshape(6, 20),
    "chunk": lambda x, y: x.chunk(2, dim=1)[1],
    "uneven parts": lambda x, y: x.split([1, 2, 3], dim=-2)[2],
    "slice": lambda x, y: x[1:3, ::2],
    "stack": lambda x, y: torch.stack([x, y])[1, 0],
    "cat": lambda x, y: torch.cat([x, y], dim=-1),
    "entry of a cat": lambda x, y: torch.cat([x, y])[5],
    "pad": lambda x, y: nn.functional.pad(x, (0, 1), value=0.5),
    "expand": lambda x, y: x[:, None].expand(4, 2, 6, 5),
    "copy": lambda x, y: x.transpose(1, 2).contiguous(),
    "entry of a copy": lambda x, y: x.transpose(1, 2).contiguous()[1],
    "wider": lambda x, y: x.float().permute(2, 1, 0)[0],
    "part of a wider one": lambda x, y: x.float().split([2, 4], dim=1)[1],
    "narrower": lambda x, y: x.float().to(torch.bfloat16)[1],
    "parameter": lambda x, y: nn.Parameter(x, requires_grad=False).data,
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    values = torch.arange(120.0).reshape(4, 6, 5)
    save_file({"x": values.half(), "y": -values.half()}, tmp_path / "model.safetensors")
    return Checkpoint.of_folder(tmp_path)


@pytest.mark.parametrize("name", OPERATIONS_OF_TWO)
def test_tensors_of_recipes_are_the_recorded_tensors(checkpoint, name):
    recorded = OPERATIONS_OF_TWO[name](checkpoint["x"], checkpoint["y"])
    recipe = json.loads(json.dumps(recipe_of(recorded)))
    made = tensor_of(recipe, checkpoint)
    assert (made.shape, made.dtype, made.stride()) == (recorded.shape, recorded.dtype, recorded.stride())
    a, b = recorded.read(), made.read()
    assert (a.dtype, a.stride()) == (b.dtype, b.stride()) and a.equal(b)
    if made.ndim > 1:
        assert made[1].read().equal(recorded.read()[1])
    converted, expected = tensor_of(recipe, checkpoint, is_converted=True), in_memory(name, checkpoint)
    assert converted.read().equal(expected) and converted[0].read().equal(expected[0])
    assert (converted.read().dtype, converted.read().stride()) == (expected.dtype, expected.stride())


def in_memory(name: str, checkpoint: Checkpoint) -> torch.Tensor:
    """The tensor from tensors in memory."""
    return OPERATIONS_OF_TWO[name](checkpoint["x"].read(), checkpoint["y"].read())


class Doubled:
    """A source that computes."""

    def read(self):
        return torch.zeros(2)

    def entry(self, index):
        return self


def test_computed_tensors_and_tensors_in_memory_have_no_recipe(checkpoint):
    computed = LazyTensor(Doubled(), torch.zeros(2))
    for tensor in (torch.zeros(2), computed, torch.stack([computed, computed])[:, 0]):
        with pytest.raises(NotRecordable):
            recipe_of(tensor)


def damaged(recipe: dict) -> dict[str, dict]:
    """Recipes of what no record holds."""
    tensor = {"tensor": recipe}
    return {
        "unknown operation": {"dtype": "float16", "operation": "mul.Tensor", "args": [tensor, tensor], "output": None},
        "attribute of torch": {"dtype": "float16", "operation": "load", "args": ["x"], "output": None},
        "file outside the checkpoint": recipe | {"stored": "../other/model.safetensors"},
        "entry outside the tensor": recipe | {"entry": [4]},
        "entry of a number": recipe | {"entry": [0, 0, 0, 0]},
        "dtype that is a function": recipe | {"dtype": "load"},
        "no tensor": {"dtype": "float16", "operation": "cat.default", "args": [[1, 2]], "output": None},
        "no recipe": {},
    }


@pytest.mark.parametrize("name", damaged({}))
def test_recipes_name_only_tensors_of_the_checkpoint_and_known_operations(checkpoint, name):
    recipe = damaged(recipe_of(checkpoint["x"]))[name]
    with pytest.raises(Exception):  # noqa: B017 (of any class)
        tensor_of(recipe, checkpoint).read()


def test_operations_are_those_that_move_values():
    assert {"permute.default", "cat.default", "slice.Tensor"} < OPERATIONS.keys()
    assert not any(name.startswith(("mul", "add", "set_", "from_file")) for name in OPERATIONS)
