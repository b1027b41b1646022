"""Talks to a gateway as a stock tritonclient does; prints one JSON object. Knows nothing of moemesh's code.

python run_triton.py sync|aio|stream|aio_stream|errors|about|cancel|descriptors HOST:PORT MODEL
"""

import asyncio
import json
import queue
import sys

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException


def tensor(name, datatype, value):
    made = triton.InferInput(name, [1], datatype)
    dtype = {
        "BYTES": np.object_,
        "BOOL": np.bool_,
        "INT32": np.int32,
        "FP32": np.float32,
        "UINT64": np.uint64,
    }
    made.set_data_from_numpy(np.array([value], dtype[datatype]))
    return made


def inputs(text, max_tokens, stream=False, **sampling):
    made = [
        tensor("text_input", "BYTES", text.encode()),
        tensor("max_tokens", "INT32", max_tokens),
        tensor("stream", "BOOL", stream),
    ]
    if sampling:
        made.append(tensor("sampling_parameters", "BYTES", json.dumps(sampling).encode()))
    return made


def values(result):
    names = [output.name for output in result.get_response().outputs]
    found = {name: result.as_numpy(name)[0] for name in names}
    return {k: v.decode() if isinstance(v, bytes) else v.item() for k, v in found.items()}


def run_sync(address, model):
    with triton.InferenceServerClient(address) as client:
        metadata = client.get_model_metadata(model)
        wanted = [triton.InferRequestedOutput("text_output")]
        return {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model_ready": client.is_model_ready(model),
            "server": client.get_server_metadata().name,
            "inputs": sorted(tensor.name for tensor in metadata.inputs),
            "answer": values(client.infer(model, inputs("añ", 6), request_id="r1")),
            "id": client.infer(model, inputs("a", 1), request_id="r1").get_response().id,
            "sampled": values(client.infer(model, inputs("abcd", 4, temperature=0.5, seed=2))),
            "one_output": values(client.infer(model, inputs("ab", 3), outputs=wanted)),
            "with_deadline": values(client.infer(model, inputs("ab", 3), client_timeout=30.0)),
        }


def run_aio(address, model):
    async def main():
        async with triton_aio.InferenceServerClient(address) as client:
            calls = [client.infer(model, inputs(f"{n}ñ", 10)) for n in range(8)]
            answers = await asyncio.gather(*calls)
            return {
                "ready": await client.is_model_ready(model),
                "texts": [values(answer)["text_output"] for answer in answers],
            }

    return asyncio.run(main())


def run_stream(address, model):
    """Two requests side by side with empty final responses; then one that fails and one that does not."""
    results = queue.Queue()
    with triton.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: results.put((result, error)))
        for name, text in (("one", "añ漢"), ("two", "xyz")):
            client.async_stream_infer(
                model, inputs(text, 12, stream=True), request_id=name, enable_empty_final_response=True
            )
        parts, finals, empties = {"one": [], "two": []}, 0, 0
        while finals < 2:
            result, error = results.get(timeout=30)
            assert error is None, error
            response = result.get_response()
            if response.parameters["triton_final_response"].bool_param:
                finals += 1
                empties += not response.outputs
            else:
                parts[response.id].append(values(result)["text_output"])
        client.async_stream_infer(model, inputs("ab", -1, stream=True), request_id="bad")
        _, error = results.get(timeout=30)
        client.async_stream_infer(model, inputs("ab", 3), request_id="good")
        result, good_error = results.get(timeout=30)
        client.stop_stream()
    return {
        "texts": {name: "".join(pieces) for name, pieces in parts.items()},
        "empty_finals": empties,
        "error": error.message(),
        "after_error": values(result)["text_output"],
        "good_error": good_error,
    }


def run_aio_stream(address, model):
    async def requests():
        for n in range(4):
            yield {"model_name": model, "inputs": inputs(f"{n}漢", 8, stream=True), "request_id": str(n)}

    async def main():
        texts = {}
        async with triton_aio.InferenceServerClient(address) as client:
            async for result, error in client.stream_infer(requests()):
                assert error is None, error
                name = result.get_response().id
                texts[name] = texts.get(name, "") + values(result)["text_output"]
        return {"texts": texts}

    return asyncio.run(main())


def run_errors(address, model):
    def status(call):
        try:
            call()
        except InferenceServerException as error:
            return error.status()
        return "no error"

    with triton.InferenceServerClient(address) as client:
        wrong_shape = triton.InferInput("text_input", [2], "BYTES")
        wrong_shape.set_data_from_numpy(np.array([b"a", b"b"], np.object_))
        return {
            "unknown_model": status(lambda: client.infer("gpt", inputs("a", 1))),
            "wrong_shape": status(lambda: client.infer(model, [wrong_shape])),
            "empty_prompt": status(lambda: client.infer(model, inputs("", 1))),
            "negative": status(lambda: client.infer(model, inputs("a", -1))),
            "temperature": status(lambda: client.infer(model, inputs("a", 1, temperature=-1))),
            "not_offered": status(lambda: client.load_model(model)),
        }


def run_about(address, model):
    """What the server tells of its model, before and after three requests."""
    with triton.InferenceServerClient(address) as client:
        before = client.get_inference_statistics(model, as_json=True)["model_stats"][0]
        for _ in range(3):
            client.infer(model, inputs("ab", 3))
        after = client.get_inference_statistics(as_json=True)["model_stats"][0]
        config = client.get_model_config(model).config
        index = client.get_model_repository_index().models
        try:
            client.load_model(model)
            sentence = ""
        except InferenceServerException as error:
            sentence = error.message()

        def success(stats, name):
            return int(stats.get("inference_stats", {}).get("success", {}).get(name, 0))

        return {
            "count": success(after, "count") - success(before, "count"),
            "ns": success(after, "ns") - success(before, "ns"),
            "inferences": int(after["inference_count"]) - int(before.get("inference_count", 0)),
            "decoupled": config.model_transaction_policy.decoupled,
            "required": [each.name for each in config.input if not each.optional],
            "output_types": {each.name: each.data_type for each in config.output},
            "index": [[each.name, each.version, each.state] for each in index],
            "sentence": sentence,
        }


def run_cancel(address, model):
    """Against a server that never answers: a deadline, a cancelled call, a cancelled stream."""
    results = queue.Queue()
    seen = {}
    with triton.InferenceServerClient(address) as client:
        try:
            client.infer(model, inputs("ab", 3), client_timeout=0.3)
        except InferenceServerException as error:
            seen["deadline"] = error.status()
        try:
            client.infer(model, inputs("ab", 3), timeout=200_000)  # microseconds, kept by the server
        except InferenceServerException as error:
            seen["timeout"] = error.status()
        call = client.async_infer(model, inputs("ab", 3), lambda result, error: results.put(error))
        call.cancel()
        seen["cancelled"] = results.get(timeout=30).status()
        client.start_stream(lambda result, error: results.put(error))
        client.async_stream_infer(model, inputs("ab", 3, stream=True))
        client.stop_stream(cancel_requests=True)
        seen["stream"] = results.get(timeout=30).status()
    return seen


def run_descriptors(_address, _model):
    """Field numbers of the client's own protocol file, for comparison with ours."""
    from tritonclient.grpc import model_config_pb2, service_pb2

    def describe(message, into):
        into[message.full_name] = {f.name: [f.number, f.type] for f in message.fields}
        for nested in message.nested_types:
            describe(nested, into)

    found = {}
    for module in (service_pb2, model_config_pb2):
        for message in module.DESCRIPTOR.message_types_by_name.values():
            describe(message, found)
    return found


if __name__ == "__main__":
    mode, where, name = sys.argv[1:]
    sys.stdout.write(json.dumps(globals()[f"run_{mode}"](where, name)))
