"""What a request must satisfy before a router hears of it. Pure: values in, values or an error out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from cluster.errors import InvalidRequest, OtherWeights, UnknownModel
from cluster.types import MOST_PRIORITY, Grammar, RequestId, SamplingParams
from cluster.types import TIER_EXACT as TIER_EXACT  # those who ask know them by admission
from cluster.types import TIERS as TIERS

DEFAULTS = SamplingParams()
MODEL_VERSION = "1"
"""The open inference protocol wants versions; a library has one, and its digest tells it from others."""

MAX_REQUEST_ID = 128
MAX_SAMPLES = 64
MAX_STOPS = 16
MAX_STOP_CHARS = 256


@dataclass(frozen=True)
class Wishes:
    """Sampling as a client asked for it; None stands for the default. Fields as in SamplingParams, and:

    stop: the text ends before the first of these strings that becomes complete.
    n: sequences to generate from the one prompt; sample i has the seed `sample_seed(seed, i)`.
    priority: higher is admitted first.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    top_logprobs: int | None = None
    grammar: Grammar | None = None
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    n: int | None = None
    priority: int | None = None
    ignore_eos: bool = False


SAMPLING_FIELDS = frozenset(field.name for field in fields(SamplingParams))


@dataclass(frozen=True)
class Limits:
    """Of the model served. context: longest sequence in tokens; vocab: token ids are below it."""

    context: int
    vocab: int


@dataclass(frozen=True)
class Admitted:
    """A request that may be submitted. Tokens below `resume_from` are not sent. resumed_ids: all of these; or
    none, then they are generated again.

    resume_window_s: for how long it goes on after its stream has ended early.
    sampling: of sample 0; the others differ in their seeds alone. stop, samples, priority: as `stop`, `n` and
    `priority` of Wishes.
    """

    request_id: RequestId
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    tier: str = TIER_EXACT
    resume_from: int = 0
    resume_window_s: float = 0.0
    stop: tuple[str, ...] = ()
    samples: int = 1
    priority: int = 0
    resumed_ids: tuple[int, ...] = ()


def check_model(asked: str, served: str, version: str = "") -> None:
    """Raises UnknownModel. An empty name or version stands for the one served."""
    if asked not in ("", served):
        raise UnknownModel(f"unknown model {asked!r}; this gateway serves {served!r}")
    if version not in ("", MODEL_VERSION):
        raise UnknownModel(f"unknown version {version!r} of model {served!r}; it has {MODEL_VERSION!r}")


def check_weights(asked: str, resume_from: int, served: str) -> None:
    """asked: what the answer began with, "" where its client does not tell. Raises OtherWeights."""
    if resume_from > 0 and asked not in ("", served):
        raise OtherWeights(
            "the answer began with another model than this gateway serves now; another gateway may still "
            "serve it, else ask again from the start, without resume_from"
        )


def check_tier(asked: str) -> str:
    if asked and asked not in TIERS:
        raise InvalidRequest(f"unknown tier {asked!r}; offered: {', '.join(TIERS)}")
    return asked or TIER_EXACT


def check_text(text: str) -> None:
    if not text:
        raise InvalidRequest("the prompt is empty; send at least one character")


def check_messages(messages: Sequence[object]) -> None:
    if not messages:
        raise InvalidRequest("messages is empty; send at least one")


def check_ids(ids: Sequence[int], limits: Limits) -> Sequence[int]:
    if ids and (max(ids) >= limits.vocab or min(ids) < 0):
        raise InvalidRequest(f"a token id of the prompt is not in 0..{limits.vocab - 1}")
    return ids


def check_prompt(ids: Sequence[int], limits: Limits, room: int = 1) -> tuple[int, ...]:
    """`room`: tokens that must fit behind the prompt. Raises InvalidRequest."""
    if not ids:
        raise InvalidRequest("the prompt is empty; send at least one token")
    check_ids(ids, limits)
    longest = limits.context - room
    if len(ids) > longest:
        raise InvalidRequest(
            f"the prompt has {len(ids)} tokens; at most {longest} fit the context; shorten it"
        )
    return tuple(ids)


def check_request_id(asked: str, draw: Callable[[], str]) -> RequestId:
    """A header carries it back, so it is what a header can have. Raises InvalidRequest."""
    plain = asked.isascii() and asked.isprintable() and asked == asked.strip()
    if len(asked) > MAX_REQUEST_ID or not plain:
        raise InvalidRequest(
            f"request_id must be at most {MAX_REQUEST_ID} printable ASCII characters, no space around them"
        )
    return RequestId(asked or draw())


def check_resume(resume_from: int, wishes: Wishes) -> int:
    """Raises InvalidRequest where the tokens sent before could not be generated again."""
    if resume_from > 0 and wishes.n not in (None, 1):
        raise InvalidRequest("resume_from needs n = 1; resume samples one by one, by the seeds they had")
    if resume_from > 0 and wishes.seed is None and (wishes.temperature or 0.0) > 0:
        raise InvalidRequest("resume_from of a sampled request needs the seed that its first stream returned")
    return resume_from


def check_resumed(ids: Sequence[int], resume_from: int, most: int, limits: Limits) -> tuple[int, ...]:
    """Raises InvalidRequest unless they are as many as came before, or none. most: of the whole answer."""
    if ids and (len(ids) != resume_from or len(ids) > most):
        raise InvalidRequest(
            f"resumed_ids has {len(ids)} tokens, resume_from is {resume_from} and max_tokens {most}; send as "
            "many as resume_from says, or none"
        )
    if ids and max(ids) >= limits.vocab:
        raise InvalidRequest(f"a token of resumed_ids is not in 0..{limits.vocab - 1}")
    return tuple(ids)


def check_window(seconds: float, most: float, samples: int | None) -> float:
    """Raises InvalidRequest. samples: as Wishes.n."""
    if not 0 <= seconds <= most:
        raise InvalidRequest(f"resume_window_s is {seconds:g}; it must be between 0 and {most:g}")
    if seconds > 0 and samples not in (None, 1):
        raise InvalidRequest("resume_window_s needs n = 1; ask for samples one by one, by their seeds")
    return seconds


def check_stop(stops: Sequence[str]) -> tuple[str, ...]:
    if len(stops) > MAX_STOPS:
        raise InvalidRequest(f"stop has {len(stops)} strings; send at most {MAX_STOPS}")
    for stop in stops:
        if not 0 < len(stop) <= MAX_STOP_CHARS:
            raise InvalidRequest(
                f"stop has a string of {len(stop)} characters; they have 1 to {MAX_STOP_CHARS}"
            )
    return tuple(dict.fromkeys(stops))


def check_samples(asked: int | None) -> int:
    if asked is not None and not 1 <= asked <= MAX_SAMPLES:
        raise InvalidRequest(f"n is {asked}; it must be between 1 and {MAX_SAMPLES}")
    return asked or 1


def check_priority(asked: int | None) -> int:
    if asked is not None and abs(asked) > MOST_PRIORITY:
        raise InvalidRequest(f"priority is {asked}; it must be between {-MOST_PRIORITY} and {MOST_PRIORITY}")
    return asked or 0


def check_sampling(
    wishes: Wishes, prompt_tokens: int, limits: Limits, draw_seed: Callable[[], int]
) -> SamplingParams:
    """Fill in defaults, draw a missing seed, shorten max_tokens to the room in the context.

    Raises InvalidRequest naming the field, what it was and what it may be.
    """
    for token in wishes.stop_token_ids:
        if not 0 <= token < limits.vocab:
            raise InvalidRequest(f"stop_token_ids has {token}; ids are between 0 and {limits.vocab - 1}")
    given = {
        name: value for name, value in vars(wishes).items() if value is not None and name in SAMPLING_FIELDS
    }
    given["max_tokens"] = min(given.get("max_tokens", DEFAULTS.max_tokens), limits.context - prompt_tokens)
    given["top_k"] = min(given.get("top_k", DEFAULTS.top_k), limits.vocab)
    given["seed"] = draw_seed() if wishes.seed is None else wishes.seed
    return SamplingParams(**given)
