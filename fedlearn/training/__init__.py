"""What a ClientApp imports: the client side of federated algorithms, for PyTorch and Flower.

Each class is the site's part of one algorithm, for one round: it is made from the message, the
context and the model, and is attached to an optimiser. What an algorithm keeps between the rounds
of a site is in ``context.state``. All of it works in a simulation and in the field alike.
"""

from fedlearn.training.feddyn import FedDyn
from fedlearn.training.fednova import FedNova
from fedlearn.training.personal import PersonalLayers, batch_norm, matching, only
from fedlearn.training.proximal import Proximal
from fedlearn.training.scaffold import Scaffold

__all__ = [
    "FedDyn",
    "FedNova",
    "PersonalLayers",
    "Proximal",
    "Scaffold",
    "batch_norm",
    "matching",
    "only",
]
