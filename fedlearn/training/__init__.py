"""What a ClientApp imports: the client side of federated algorithms, for PyTorch and Flower.

Each class is the site's part of one algorithm, for one round: it is made from the message, the
context and the model, and is attached to an optimiser. What an algorithm keeps between the rounds
of a site is in ``context.state``. All of it works in a simulation and in the field alike.

The page is docs/how-to/choose-an-algorithm.md.
"""

from fedlearn.training.base_weights import base_weights
from fedlearn.training.ditto import Ditto
from fedlearn.training.feddyn import FedDyn
from fedlearn.training.fednova import FedNova
from fedlearn.training.moon import Moon
from fedlearn.training.personal import PersonalLayers, batch_norm, matching, only
from fedlearn.training.proximal import Proximal
from fedlearn.training.scaffold import Scaffold

__all__ = [
    "Ditto",
    "FedDyn",
    "FedNova",
    "Moon",
    "PersonalLayers",
    "Proximal",
    "Scaffold",
    "base_weights",
    "batch_norm",
    "matching",
    "only",
]
