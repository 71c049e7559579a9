"""The nano judge's words: tokenizer, chat format and the questions asked about a scene.

Takes concepts; gives a tokenizer (byte-level BPE with the SmolVLM special tokens) and question
samplers. Does not know pixels or the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from concepts import CONCEPTS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 1536
TEMPLATE = "Is {condition} visible?"
SPECIALS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
]
SPECIALS += [f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)]
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
# What later questions will need: counting, relations, scores, pairs, letters, JSON, reasons.
LATER = """How many are there? zero one two three four five six seven eight nine ten none several Is
it left of right of above below inside near bigger smaller than the other? Which picture is better,
A or B? Rate the picture from 1 to 5. good poor fair excellent bad score: high low medium quality
rating {"rating": "Yes", "rationale": "There is a red one in the corner because it shows"}
{"rating": "No", "score": 3} The picture shows and is not visible. Safe Unsafe unsafe safe uncertain
category rule condition broken reason first second third image picture photo sticker drawing emoji
text screen background front behind top bottom corner Answer Yes or No. yes no true false red green
blue yellow black white brown orange purple pink grey large small
"""
NAME_FORMS = (("phrase", 0.6), ("alias", 0.25), ("name", 0.15))


def train_tokenizer(specials: Sequence[str] = SPECIALS, more: Sequence[str] = ()) -> Tokenizer:
    """Byte-level BPE over the questions and the words of later tasks; every concept word becomes
    one token. `more` are texts that should cost few tokens too.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = []
    for concept in CONCEPTS:
        for form in (concept.phrase, concept.alias, concept.name):
            texts += [
                f"User: {TEMPLATE.format(condition=form)}\nAssistant: Yes",
                f"{form}\nAssistant: No",
            ] * 3
    texts += [*LATER.split("\n"), *more] * 3
    texts += [f" {c}" for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"] * 3
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class Prompts:
    """Token ids of prefixes and branches, as the family's chat format lays them out; a subclass is
    another family's.
    """

    IMAGE = "<image>"
    OPENING = "<|im_start|>User:"  # before the image
    BLIND_OPENING = "<|im_start|>User: "  # before a question without any image
    CLOSING = "<end_of_utterance>\nAssistant:"  # from the question to the answer
    ANSWERS = (" Yes", " No")

    def __init__(self, tokenizer: Tokenizer, tokens_per_view: int) -> None:
        self._t = tokenizer
        self._n = tokens_per_view
        self.yes, self.no = (tokenizer.encode(answer).ids for answer in self.ANSWERS)
        assert len(self.yes) == len(self.no) == 1, "Yes and No must be one token each"
        self.image_id = tokenizer.token_to_id(self.IMAGE)
        self.end = self.ids(self.CLOSING)[0]
        asked = [
            {form: self.question(getattr(c, form)) + self.CLOSING for form, _ in NAME_FORMS}
            for c in CONCEPTS
        ]
        self.branches = [{form: self.ids(text) for form, text in each.items()} for each in asked]
        self.blind = [
            {form: self.ids(self.BLIND_OPENING + text) for form, text in each.items()}
            for each in asked
        ]

    @staticmethod
    def question(condition: str) -> str:
        return TEMPLATE.format(condition=condition)

    def ids(self, text: str) -> list[int]:
        return list(self._t.encode(text).ids)

    def prefix(self, rows: int, cols: int, pictures: int = 1) -> list[int]:
        """`<|im_start|>User:` and the expanded image, as SmolVLM's processor writes it; or several
        of one layout, one behind the other.
        """
        return self.ids(self.OPENING) + pictures * self.ids(self._picture(rows, cols))

    def _picture(self, rows: int, cols: int) -> str:
        fake, image = "<fake_token_around_image>", self.IMAGE * self._n
        text = ""
        for r in range(1, rows + 1):
            text += "".join(f"{fake}<row_{r}_col_{c}>{image}" for c in range(1, cols + 1)) + "\n"
        return text + ("\n" if rows else "") + f"{fake}<global-img>{image}{fake}"


def form_of(rng: np.random.Generator) -> str:
    """Which words to ask with: the phrase, its paraphrase or the bare name."""
    return str(rng.choice([f for f, _ in NAME_FORMS], p=[p for _, p in NAME_FORMS]))


def ask(rng: np.random.Generator, present: np.ndarray, count: int) -> list[int]:
    """Concepts to ask about one scene: all shown ones, then half hard negatives (same category),
    half any.
    """
    shown = np.flatnonzero(present == 1)
    absent = np.flatnonzero(present == 0)
    categories = {CONCEPTS[i].category for i in shown}
    hard = [i for i in absent if CONCEPTS[i].category in categories]
    picked = list(rng.permutation(shown)[: count - 2])
    room = count - len(picked)
    picked += list(rng.permutation(hard)[: room // 2])
    rest = [i for i in absent if i not in picked]
    picked += list(rng.permutation(rest)[: count - len(picked)])
    return [int(i) for i in rng.permutation(picked)]
