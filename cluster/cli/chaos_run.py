"""One chaos run: the answers of one process, then a cluster, clients and faults."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.cli.chaos_client import bits_of, calling_gateways
from cluster.cli.local import local_engine, run
from cluster.experiments.chaos.check import Answer
from cluster.experiments.chaos.history import History
from cluster.experiments.chaos.resources import Sample
from cluster.experiments.chaos.run import Plan, Run
from cluster.experiments.chaos.supervised import supervised
from cluster.experiments.chaos.workload import Question
from cluster.library.bundled import open_model
from cluster.library.reader import Library
from cluster.types import Emitted, EngineRequest, Finished, RequestId


def carry_out(
    plan: Plan, history: History, logs: Path | None, progress: Callable[[str], None]
) -> tuple[list[Answer], list[Sample]]:
    """The questions' answers, and samples of all processes. Raises StartFailed."""
    library = open_model()
    asked = plan.questions(library.spec.vocab)
    progress("the answers of one process")
    answers = undisturbed(library, asked)
    with supervised(library, plan.shape, logs) as cluster:

        async def serve() -> list[Sample]:
            async with calling_gateways(cluster.gateways) as caller:
                chaos = Run(plan, cluster, caller, asked, history, progress)
                await chaos.run()
                return chaos.samples

        samples = asyncio.run(serve())
    return answers, samples


def undisturbed(library: Library, asked: Sequence[Question]) -> list[Answer]:
    """Of one process."""
    requests = [
        EngineRequest(RequestId(str(number)), each.prompt_ids, each.sampling)
        for number, each in enumerate(asked)
    ]
    ids: list[list[int]] = [[] for _ in requests]
    logprobs: list[list[float]] = [[] for _ in requests]
    reasons = ["" for _ in requests]
    with local_engine(library) as engine:
        for event in run(engine, *requests):
            number = int(event.request_id)
            if isinstance(event, Emitted):
                ids[number].append(event.token_id)
                logprobs[number].append(event.logprob)
            elif isinstance(event, Finished):
                reasons[number] = event.reason
    return [
        Answer(tuple(one), bits_of(bits), reason)
        for one, bits, reason in zip(ids, logprobs, reasons, strict=True)
    ]
