"""Talks to a gateway as the stock openai SDK does; prints one JSON object. Knows nothing of moemesh's code.

python run_openai.py all|chat|cancel HOST:PORT MODEL
"""

import asyncio
import json
import sys

import openai


def client(address, **more):
    return openai.OpenAI(base_url=f"http://{address}/v1", api_key="none", **more)


def run_chat(address, model):
    api = client(address)
    chat = api.chat.completions.create(
        model=model,
        temperature=0,
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=6,
        logprobs=True,
        top_logprobs=2,
    )
    return {
        "chat": chat.choices[0].message.content,
        "role": chat.choices[0].message.role,
        "chat_usage": chat.usage.model_dump(include={"prompt_tokens", "completion_tokens", "total_tokens"}),
        "chat_logprobs": [each.logprob for each in chat.choices[0].logprobs.content],
        "chat_tokens": "".join(each.token for each in chat.choices[0].logprobs.content),
        "finish": chat.choices[0].finish_reason,
        "request_id": chat.id,
        "texts": asyncio.run(_side_by_side(address, lambda api, number: _chatted(api, model, number))),
    }


async def _side_by_side(address, one):
    async with openai.AsyncOpenAI(base_url=f"http://{address}/v1", api_key="none") as api:
        return await asyncio.gather(*(one(api, number) for number in range(8)))


async def _chatted(api, model, number):
    text = ""
    stream = await api.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": f"{number}ñ"}],
        max_tokens=14,
        temperature=0,
        stream=True,
    )
    async for chunk in stream:
        text += chunk.choices[0].delta.content or ""
    return text


def run_sync(address, model):
    api = client(address)
    greedy = {"model": model, "temperature": 0}
    stream = api.completions.create(
        prompt="añ漢", max_tokens=12, stream=True, stream_options={"include_usage": True}, **greedy
    )
    chunks = list(stream)
    several = api.completions.create(prompt=["abc", "xy"], n=2, max_tokens=3, **greedy)
    whole = api.completions.create(prompt="abcdef", max_tokens=20, **greedy).choices[0].text
    stop = whole[len(whole) // 2 :][:2]
    stopped = api.completions.create(prompt="abcdef", max_tokens=20, stop=["\0\0", stop], **greedy)
    ids = api.completions.create(prompt=[65, 66], max_tokens=2, logprobs=1, **greedy)
    seeded = api.completions.create(model=model, prompt="abcd", temperature=0.5, seed=2, max_tokens=4)
    extra = {"top_k": 1, "ignore_eos": True}
    hot = api.completions.create(model=model, prompt="ab", max_tokens=2, temperature=2, extra_body=extra)
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    return {
        "models": [each.id for each in api.models.list()],
        "model": api.models.retrieve(model).id,
        "streamed": text,
        "stream_usage": chunks[-1].usage.model_dump(include={"prompt_tokens", "completion_tokens"}),
        "stream_finish": [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason],
        "several": [[choice.index, choice.text] for choice in several.choices],
        "whole": whole,
        "stop": stop,
        "stopped": [stopped.choices[0].text, stopped.choices[0].finish_reason],
        "token_logprobs": ids.choices[0].logprobs.token_logprobs,
        "extra": hot.choices[0].text,
        "seeded": seeded.choices[0].text,
        "embedding": api.embeddings.create(model=model, input="abcd").data[0].embedding,
    }


def run_aio(address, model):
    async def one(api, number):
        text = ""
        stream = await api.completions.create(
            model=model, prompt=f"{number}ñ", max_tokens=14, temperature=0, stream=True
        )
        async for chunk in stream:
            text += chunk.choices[0].text
        return text

    return {"texts": asyncio.run(_side_by_side(address, one))}


def run_errors(address, model):
    api = client(address, max_retries=0)

    def status(**fields):
        try:
            api.completions.create(**{"model": model, "prompt": "a", "max_tokens": 1} | fields)
        except openai.APIStatusError as error:
            return [type(error).__name__, error.status_code, error.body["type"]]
        return "no error"

    return {
        "unknown_model": status(model="gpt-4"),
        "empty_prompt": status(prompt=""),
        "negative": status(max_tokens=-1),
        "temperature": status(temperature=-1),
        "not_offered": status(logit_bias={"5": 1}),
        "unknown_key": status(extra_body={"temprature": 1}),
    }


def run_all(address, model):
    """In one process: the SDK takes seconds to be imported."""
    return {
        "sync": run_sync(address, model),
        "aio": run_aio(address, model),
        "errors": run_errors(address, model),
    }


def run_cancel(address, model):
    """A stream that is closed after its first chunk; one whose timeout passes before its first."""
    api = client(address, max_retries=0)
    asked = {"model": model, "prompt": "abc", "max_tokens": 100, "temperature": 0, "stream": True}
    stream = api.completions.create(**asked)
    first = next(iter(stream)).choices[0].text
    stream.close()
    try:
        for _ in client(address, max_retries=0, timeout=0.5).completions.create(**asked):
            pass
        timed_out = "nothing"
    except Exception as error:  # the SDK lets errors of its transport through while a stream is read
        timed_out = type(error).__name__
    return {"first": first, "timed_out": timed_out}


if __name__ == "__main__":
    mode, where, name = sys.argv[1:]
    sys.stdout.write(json.dumps(globals()[f"run_{mode}"](where, name)))
