"""A cross-encoder that a test trains in seconds: is a passage on the topic of the question?

Questions and passages have words of their own for each topic, so that swapped texts are unlike any training pair.
"""

import random
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

TOPICS, WORDS = 6, 6
_FILLERS = ("the", "of", "and", "with")


def question(topic: int, draw: random.Random) -> str:
    return " ".join(["what", *(f"ask{topic}x{draw.randrange(WORDS)}" for _ in range(3))])


def passage(topic: int, draw: random.Random) -> str:
    words = [f"tell{topic}x{draw.randrange(WORDS)}" for _ in range(6)] + draw.sample(_FILLERS, 3)
    draw.shuffle(words)
    return " ".join(words)


def pairs(count: int, seed: int) -> list[tuple[str, str, int]]:
    """Questions with passages, half of them of the question's topic: (question, passage, 1 or 0)."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        topic = draw.randrange(TOPICS)
        other = topic if number % 2 else (topic + draw.randrange(1, TOPICS)) % TOPICS
        found.append((question(topic, draw), passage(other, draw), int(topic == other)))
    return found


def train(folder: Path, steps: int = 250) -> tuple[Any, Any]:
    """Train the model, save it with its tokenizer in ``folder``, and return both."""
    words = [f"{kind}{t}x{w}" for kind in ("ask", "tell") for t in range(TOPICS) for w in range(WORDS)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", *_FILLERS, *words]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=1,
    )
    model = BertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(steps):
        batch = pairs(64, step)
        inputs = tokenizer([q for q, _, _ in batch], [p for _, p, _ in batch], padding=True, return_tensors="pt")
        logits = model(**inputs).logits[:, 0]
        labels = torch.tensor([label for *_, label in batch], dtype=torch.float32)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return model, tokenizer


def scores(model: Any, tokenizer: Any, texts: list[tuple[str, str]]) -> list[float]:
    """The probabilities that the model gives, one pair at a time as by a server."""
    with torch.no_grad():
        found = [model(**tokenizer(q, p, return_tensors="pt")).logits[0, 0] for q, p in texts]
    return [float(torch.sigmoid(each)) for each in found]
