"""Evaluates flags by PyPI's provider for flagd, in this process: `sync PORT SET`, `file PATH`.

One line of JSON at the start and after each change: the variants of all users of each flag that is read from the
arguments after these. `fetch PORT SET TOKEN` prints the set as it is, or the status that refuses it.
"""

import json
import sys
import threading

import grpc
from openfeature import api
from openfeature.contrib.provider.flagd import FlagdProvider
from openfeature.contrib.provider.flagd.config import ResolverType
from openfeature.evaluation_context import EvaluationContext
from openfeature.event import ProviderEvent
from openfeature.schemas.protobuf.flagd.sync.v1 import sync_pb2, sync_pb2_grpc

USERS = [f"user-{number}" for number in range(40)]


def fetch(port, flag_set, token):
    stub = sync_pb2_grpc.FlagSyncServiceStub(grpc.insecure_channel(f"127.0.0.1:{port}"))
    metadata = [("authorization", f"Bearer {token}")] if token else []
    try:
        answer = stub.FetchAllFlags(
            sync_pb2.FetchAllFlagsRequest(selector=flag_set), metadata=metadata, timeout=20
        )
        print(answer.flag_configuration)
    except grpc.RpcError as error:
        print(json.dumps(error.code().name))


# The provider calls `show` on a thread of its own, and `print` writes a line and its end one after the other.
one_at_a_time = threading.Lock()


def show(*_):
    with one_at_a_time:
        client = api.get_client()
        told = {
            flag: [
                client.get_string_details(flag, "", EvaluationContext(targeting_key=user)).variant
                for user in USERS
            ]
            for flag in flags
        }
        print(json.dumps(told), flush=True)


mode, place, *rest = sys.argv[1:]
if mode == "fetch":
    fetch(place, *rest)
    sys.exit()
if mode == "sync":
    flag_set, *flags = rest
    provider = FlagdProvider(
        resolver_type=ResolverType.IN_PROCESS,
        host="127.0.0.1",
        port=int(place),
        selector=f"flagSetId={flag_set}",
        deadline_ms=20_000,
    )
else:
    flags = rest
    provider = FlagdProvider(resolver_type=ResolverType.FILE, offline_flag_source_path=place)
api.add_handler(ProviderEvent.PROVIDER_CONFIGURATION_CHANGED, show)
api.set_provider_and_wait(provider) if hasattr(api, "set_provider_and_wait") else api.set_provider(provider)
show()
# The test ends this process.
threading.Event().wait()
