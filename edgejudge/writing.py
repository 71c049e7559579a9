"""What a Judge writes: text or JSON about a picture, or several in one prompt.

Takes pictures and a request; gives text. Knows no policy, and no graph, provider or file format.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgejudge.batches import BatchScorer
from edgejudge.bundle import Bundle
from edgejudge.errors import InputError
from edgejudge.images import ImageInput
from edgejudge.models.prompt import Prompts
from edgejudge.turns import Stop, Turns

if TYPE_CHECKING:
    from edgejudge.runtime.text import Written

__all__ = ["WITHOUT_BUDGET", "Writes"]

WITHOUT_BUDGET = "; load the judge without a memory budget"


class Writes:
    """A part of Judge."""

    bundle: Bundle
    engine: Any
    _way: Any
    _turns: Turns
    _prompts: Prompts

    def write(
        self,
        image: ImageInput | list[ImageInput] | tuple[ImageInput, ...],
        request: str,
        *,
        schema: Mapping[str, Any] | None = None,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        timeout: float | None = None,
    ) -> "Written":
        """Text of the model about a picture, or several in one prompt; the LM head is loaded by
        the first call.

        With a JSON `schema` (needs `edgejudge[text]`) the text always parses: tokens are kept back
        for its end. `temperature` 0 is greedy. Raises InputError for a picture, request or schema
        that cannot be used, for a timeout, and with the code `too_many_images` for more than the
        context holds.
        """
        from edgejudge.runtime.text import Sampling, write

        if isinstance(self.engine, BatchScorer):
            raise InputError(
                "memory_budget", f"text needs the whole decoder in memory{WITHOUT_BUDGET}"
            )
        if max_tokens < 1 or (schema is not None and stop):
            raise ValueError("max_tokens must be at least 1, and a schema takes no stop strings")
        sampling, until = Sampling(temperature, top_p, seed), Stop(timeout)
        eos = self.bundle.manifest.tokens.eos
        document = None
        if schema is not None:
            document = self._way.document(schema, max_tokens)
        images = image if isinstance(image, list | tuple) else [image]
        if not images:
            raise InputError("no_image", "no picture was given; give at least one")
        made = []
        for each in images:
            made.append(self._way.prepare(each, until))
            if failure := made[-1].failure:
                raise InputError(failure.code, failure.message)
        ids = self._prompts.request_ids(request)
        with self._way.having(made, until, self._turns) as (prefix, *_):
            decode = self._prompts.decode
            return write(
                self.engine,
                prefix,
                ids,
                decode,
                eos,
                max_tokens,
                sampling,
                stop,
                document,
                (self.bundle.manifest.tokens.image,),
            )
