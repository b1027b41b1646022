"""From what a client asked for to a request that may be submitted: every service admits by these rules."""

from __future__ import annotations

import dataclasses
import secrets
import uuid
from collections.abc import Sequence

from cluster.gateway import admission
from cluster.gateway.admission import Admitted, Wishes
from cluster.gateway.pool import RouterPool
from cluster.gateway.served import ServedModel
from cluster.types import EngineRequest, sample_seed


def draw_seed() -> int:
    return secrets.randbits(64)


def draw_id() -> str:
    return uuid.uuid4().hex


def check_place(pool: RouterPool, wishes: Wishes) -> None:
    """Raises what a new request would meet for want of a place, before anybody reads its prompt; who wants
    no token needs none."""
    if wishes.max_tokens != 0:
        pool.check_place(admission.check_samples(wishes.n), admission.check_priority(wishes.priority))


async def admit(
    served: ServedModel,
    prompt: Sequence[int],
    wishes: Wishes,
    *,
    request_id: str = "",
    tier: str = "",
    resume_from: int = 0,
    resume_window_s: float = 0.0,
    resumed_ids: Sequence[int] = (),
) -> Admitted:
    """Fill in defaults, draw a missing seed and id. resume_window_s: as admission.check_window gave it.

    Raises InvalidRequest, naming what is wrong.
    """
    tier = admission.check_tier(tier)
    name = admission.check_request_id(request_id, draw_id)
    resume_from = admission.check_resume(resume_from, wishes)
    ids = admission.check_prompt(prompt, served.limits)
    sampling = admission.check_sampling(wishes, len(ids), served.limits, draw_seed)
    if sampling.grammar is not None:
        await served.check_grammar(sampling.grammar)
    return Admitted(
        name,
        ids,
        sampling,
        tier,
        resume_from,
        resume_window_s,
        admission.check_stop(wishes.stop),
        admission.check_samples(wishes.n),
        admission.check_priority(wishes.priority),
        admission.check_resumed(resumed_ids, resume_from, sampling.max_tokens, served.limits),
    )


def sample_requests(admitted: Admitted, tenant: str = "") -> list[EngineRequest]:
    """One a sample, alike but for the seed. tenant: whose prompts may share pages with this one."""
    return [
        EngineRequest(
            admitted.request_id,
            admitted.prompt_ids,
            dataclasses.replace(admitted.sampling, seed=sample_seed(admitted.sampling.seed, index)),
            priority=admitted.priority,
            tier=admitted.tier,
            tenant=tenant,
            emitted=admitted.resumed_ids,
        )
        for index in range(admitted.samples)
    ]
