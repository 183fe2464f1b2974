"""Both precisions of the screening pass, and every device."""

import pytest
import torch

from embspace_lens.search.bounds import screen_with

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=cuda)])
def device(request):
    return torch.device(request.param)


@pytest.fixture(params=[torch.bfloat16, torch.float32], autouse=True)
def screen_dtype(request):
    """Both precisions, independent of which one is faster on this processor."""
    with screen_with(request.param):
        yield request.param
