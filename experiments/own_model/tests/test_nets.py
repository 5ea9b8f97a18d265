"""The module by itself, without runner."""

from __future__ import annotations

import math

import torch
from own_model.nets import Periodic


def test_a_wave_of_its_own_frequency_is_a_sum_of_its_features() -> None:
    """With sin(2πx) and −sin(2πx) as hidden units, the difference of their positive parts is the wave itself."""
    net = Periodic(1, 1, width=2, frequencies=1)
    with torch.no_grad():
        net.frequencies.fill_(1.0)
        net.hidden.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        net.hidden.bias.zero_()
        net.last.weight.copy_(torch.tensor([[1.0, -1.0]]))
        net.last.bias.zero_()
        x = torch.linspace(0, 1, 50).unsqueeze(1)
        torch.testing.assert_close(net(x), torch.sin(2 * math.pi * x))
