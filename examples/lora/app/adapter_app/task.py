"""A small transformer with LoRA (Hu et al. 2022, arXiv:2106.09685).

The transformer is made from its configuration, with weights that follow from a seed, so that every
site has the same ones without a download. With a pretrained model, read its files from the site's
data mount instead: `BertForSequenceClassification.from_pretrained(folder)`.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from peft import LoraConfig, TaskType, get_peft_model
from peft import get_peft_model_state_dict as adapter_of
from peft import set_peft_model_state_dict as set_adapter
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

torch.set_num_threads(1)

_TRANSFORMER = BertConfig(
    vocab_size=32,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=256,
    max_position_embeddings=16,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    num_labels=2,
)
_ADAPTER = LoraConfig(
    task_type=TaskType.SEQ_CLS, r=4, lora_alpha=8, target_modules=["query", "value"]
)


def new_model() -> nn.Module:
    """Return the frozen transformer with a fresh adapter; the classifier is part of the adapter."""
    torch.manual_seed(1)
    return get_peft_model(BertForSequenceClassification(_TRANSFORMER), _ADAPTER)


def adapter(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return what is trained and sent: two small matrices for each layer, and the classifier."""
    return {name: each.detach().contiguous() for name, each in adapter_of(model).items()}


def with_adapter(arrays: dict[str, torch.Tensor]) -> nn.Module:
    """Return the transformer with an adapter that came in a message."""
    model = new_model()
    set_adapter(model, arrays)
    return model


@functools.lru_cache(maxsize=1)
def load(folder: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens (n, 16) and labels (n,). Read once: the process stays warm."""
    table = torch.from_numpy(np.loadtxt(f"{folder}/tokens.csv", delimiter=",", dtype=np.int64))
    return table[:, :-1], table[:, -1]


def train(
    model: nn.Module, tokens: torch.Tensor, labels: torch.Tensor, *, epochs: int, rate: float
) -> float:
    """Train the adapter in place; return the loss of the last batch."""
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate)
    loss = torch.tensor(0.0)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(32):
            optimizer.zero_grad()
            loss = model(input_ids=tokens[batch], labels=labels[batch]).loss
            loss.backward()
            optimizer.step()
    return loss.item()


def judge(model: nn.Module, tokens: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Return loss and accuracy."""
    with torch.no_grad():
        found = model(input_ids=tokens, labels=labels)
    accuracy = (found.logits.argmax(dim=1) == labels).float().mean().item()
    return {"loss": found.loss.item(), "accuracy": accuracy}
