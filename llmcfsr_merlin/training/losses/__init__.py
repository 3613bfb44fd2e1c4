"""Training losses, one file each. Your own is a function with the same arguments, named `module:function`.

    loss(network, states, targets, settings) -> Tensor: float [M], the loss of each position; their mean does as well
        states: float [M, views * d]; targets: int64 [M]; settings: the section `train`

On a GPU the losses of this folder also get padding (target 0), whose loss is left out afterwards.
"""

from collections.abc import Callable
from importlib import import_module

from torch import Tensor

from llmcfsr_merlin.config.train_settings import LOSSES
from llmcfsr_merlin.runtime.errors import InputError
from llmcfsr_merlin.runtime.extensions import load_class


def loss_function(name: str) -> Callable[..., Tensor]:
    """A loss by its name or by `module:function`; InputError for an unknown one."""
    if name in LOSSES:
        return getattr(import_module(f"{__name__}.{name}"), name)
    if ":" in name:
        return load_class(name)
    raise InputError(f"train.loss: expected {', '.join(LOSSES)} or module:function, found {name!r}")
