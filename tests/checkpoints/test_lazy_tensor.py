"""Lazy tensors: operations that move values give the values of the same operations on plain tensors, and read as little as possible."""

import einops
import pytest
import torch
from torch import Tensor, nn

from embspace_lens.checkpoints.lazy_tensor import LazyTensor, loaded, materialized
from embspace_lens.errors import EmbspaceError


class Recorded:
    """A source that records which of its entries are read."""

    def __init__(self, values: Tensor, name: str, reads: list[str]) -> None:
        self.values, self.name, self.reads = values, name, reads

    def read(self) -> Tensor:
        self.reads.append(self.name)
        return self.values

    def entry(self, index: int) -> "Recorded":
        return Recorded(self.values[index], f"{self.name}[{index}]", self.reads)


def lazy(values: Tensor, reads: list[str] | None = None, name: str = "x") -> LazyTensor:
    return LazyTensor(Recorded(values, name, [] if reads is None else reads), values)


x = torch.arange(120.0).reshape(4, 6, 5)
y = -x
REARRANGEMENTS = {
    "transpose": lambda x, y: x.transpose(0, 2),
    "T": lambda x, y: x[0].T,
    "mT": lambda x, y: x.mT,
    "permute": lambda x, y: x.permute(0, 2, 1),
    "permute with negative axes": lambda x, y: x.permute(0, -1, -2),
    "reshape": lambda x, y: x.reshape(24, 5),
    "reshape of a transpose": lambda x, y: x.transpose(0, 1).reshape(6, 20),
    "chunk": lambda x, y: x.chunk(2, dim=1)[1],
    "chunk of the first dimension": lambda x, y: x.chunk(2)[1],
    "split": lambda x, y: x.split([1, 2, 3], dim=-2)[2],
    "tensor_split": lambda x, y: x.tensor_split(3, dim=1)[0],
    "slice": lambda x, y: x[1:3, ::2],
    "unbind": lambda x, y: x.unbind(1)[3],
    "stack": lambda x, y: torch.stack([x, y]),
    "stack inside": lambda x, y: torch.stack([x, y], dim=2),
    "cat": lambda x, y: torch.cat([x, y]),
    "cat inside": lambda x, y: torch.cat([x, y], dim=-1),
    "rearrange": lambda x, y: einops.rearrange(x, "a (b c) d -> a c (b d)", b=2),
    "pad": lambda x, y: nn.functional.pad(x, (0, 1)),
    "clone": lambda x, y: x.clone().contiguous(),
    "detach": lambda x, y: x.detach(),
    "parameter": lambda x, y: nn.Parameter(x, requires_grad=False).data,
}


@pytest.mark.parametrize("name", REARRANGEMENTS)
def test_rearranged_lazy_tensors_have_the_values_of_rearranged_tensors(name):
    expected = REARRANGEMENTS[name](x, y)
    actual = REARRANGEMENTS[name](lazy(x), lazy(y))
    assert isinstance(actual, LazyTensor) and actual.shape == expected.shape and actual.stride() == expected.stride()
    torch.testing.assert_close(actual.read(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", REARRANGEMENTS)
def test_an_entry_has_the_values_of_the_entry_of_the_whole(name):
    expected = REARRANGEMENTS[name](x, y)
    for index in (0, len(expected) - 1, -1):
        torch.testing.assert_close(
            REARRANGEMENTS[name](lazy(x), lazy(y))[index].read(), expected[index], rtol=0, atol=0
        )


def test_nothing_is_read_before_the_values_are_needed():
    reads: list[str] = []
    tensor = torch.cat([lazy(x, reads), lazy(y, reads)]).transpose(0, 1)
    assert tensor.shape == (6, 8, 5) and tensor.dtype == torch.float32 and not reads
    tensor.read()
    assert reads == ["x", "x"]


@pytest.mark.parametrize(
    "merge",
    [
        lambda parts: torch.stack(parts),
        lambda parts: torch.stack(parts).transpose(1, 2),
        lambda parts: torch.stack(parts).chunk(2, dim=1)[0],
        lambda parts: torch.cat([torch.stack(parts), torch.stack(parts)], dim=1),
        lambda parts: torch.stack(parts).clone().to(torch.float64),
    ],
)
def test_one_expert_of_merged_experts_is_read_alone(merge):
    """As transformers merges the experts of a checkpoint into one parameter."""
    reads: list[str] = []
    merged = merge([lazy(x[i], reads, f"expert {i}") for i in range(4)])
    expected = merge(list(x))[2]
    torch.testing.assert_close(merged[2].read().to(expected.dtype), expected, rtol=0, atol=0)
    assert set(reads) == {"expert 2"}


def test_one_entry_of_a_stored_stack_is_read_alone():
    reads: list[str] = []
    stack = lazy(x, reads, "stack")
    torch.testing.assert_close(stack.permute(0, 2, 1)[3].read(), x[3].T)
    assert reads == ["stack[3]"]


def test_values_keep_their_stored_precision_when_a_wider_one_is_asked_for():
    wide = lazy(x.bfloat16()).to(torch.float32)
    assert wide.dtype == torch.float32 and wide.read().dtype == torch.bfloat16
    narrow = lazy(x).to(torch.bfloat16)
    assert narrow.read().equal(x.bfloat16())


@pytest.mark.parametrize(
    "run",
    [lambda x: x @ torch.ones(5), lambda x: x + 1, lambda x: x.sum(), lambda x: x[0, 0, 0].item(), lambda x: x.mul_(2)],
)
def test_arithmetic_is_refused_in_one_sentence(run):
    with pytest.raises(EmbspaceError, match=r"stay in its checkpoint .*offload=False"):
        run(lazy(x))


def test_a_module_can_be_called_while_its_parameters_are_materialized():
    linear = nn.Linear(5, 6, bias=False)
    stored = linear.weight.detach().clone()
    linear._parameters["weight"] = lazy(stored)
    expected = nn.functional.linear(x, stored)
    with materialized(linear):
        torch.testing.assert_close(linear(x), expected)
    assert isinstance(linear.weight, LazyTensor)
    with pytest.raises(KeyboardInterrupt), materialized(linear):
        raise KeyboardInterrupt
    assert isinstance(linear.weight, LazyTensor)


def test_plain_values_are_returned_unchanged():
    assert loaded(x) is x and loaded(None) is None
