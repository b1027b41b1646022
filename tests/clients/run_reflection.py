"""Finds and calls a gateway's services knowing only its address, as grpcurl does; prints one JSON object.

python run_reflection.py HOST:PORT
"""

import json
import sys

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


def call(channel, pool, name, body):
    service, _, method_name = name.rpartition(".")
    method = pool.FindServiceByName(service).methods_by_name[method_name]
    path = f"/{method.containing_service.full_name}/{method.name}"
    kind = channel.unary_stream if method.server_streaming else channel.unary_unary
    stub = kind(
        path,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
    )
    answer = stub(json_format.ParseDict(body, message_factory.GetMessageClass(method.input_type)()))
    parts = list(answer) if method.server_streaming else [answer]
    return [json_format.MessageToDict(part, preserving_proto_field_name=True) for part in parts]


def main(address):
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = descriptor_pool.DescriptorPool(database)
        generated = call(
            channel, pool, "moemesh.v1.Generation.Generate", {"text": "añ", "sampling": {"max_tokens": 6}}
        )
        return {
            "services": sorted(database.get_services()),
            "ids": [token for part in generated for token in part.get("token_ids", [])],
            "text": "".join(part.get("text", "") for part in generated),
            "reason": generated[-1]["finish"]["reason"],
            "health": call(channel, pool, "grpc.health.v1.Health.Check", {})[0]["status"],
            "ready": call(channel, pool, "inference.GRPCInferenceService.ServerReady", {})[0]["ready"],
        }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1])))
