"""The checked-in descriptors are those of the .proto files, and of the protocol."""

import subprocess
import sys
from pathlib import Path

import pytest
import tritonclient.grpc.service_pb2 as triton
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

import blindai.server.grpc
from blindai.server.grpc.messages import POOL

PROTO = Path(blindai.server.grpc.__file__).parent / "proto"
THEIRS = {
    "inference.GRPCInferenceService": triton.DESCRIPTOR,
    "grpc.health.v1.Health": health_pb2.DESCRIPTOR,
    "grpc.reflection.v1alpha.ServerReflection": reflection_pb2.DESCRIPTOR,
}


def test_regenerated(tmp_path):
    """`make proto` would change nothing."""
    out = tmp_path / "descriptors.binpb"
    files = sorted(path.name for path in PROTO.glob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--descriptor_set_out={out}"]
    subprocess.run([*command, *files], cwd=PROTO, check=True)
    assert out.read_bytes() == (PROTO / "descriptors.binpb").read_bytes()


def check_message(ours, theirs, seen):
    """Compare the fields that both have, and what they hold."""
    if ours.full_name in seen:
        return
    seen.add(ours.full_name)
    others = theirs.fields_by_name
    for field in ours.fields:
        other = others[field.name]
        facts = [(f.number, f.type, f.is_repeated) for f in (field, other)]
        assert facts[0] == facts[1], field.full_name
        if field.message_type is not None:
            check_message(field.message_type, other.message_type, seen)
        if field.enum_type is not None:
            numbers = {v.name: v.number for v in field.enum_type.values}
            assert numbers.items() <= {v.name: v.number for v in other.enum_type.values}.items()


@pytest.mark.parametrize("name", THEIRS)
def test_same_as_other_implementations(name):
    """Methods, fields and numbers are those of tritonclient and of gRPC's own packages."""
    ours = POOL.FindServiceByName(name)
    theirs = THEIRS[name].services_by_name[name.rpartition(".")[2]]
    seen: set[str] = set()
    assert set(ours.methods_by_name) == set(theirs.methods_by_name)
    for method in ours.methods:
        other = theirs.methods_by_name[method.name]
        files = descriptor_pb2.MethodDescriptorProto(), descriptor_pb2.MethodDescriptorProto()
        for each, file in zip((method, other), files, strict=True):
            each.CopyToProto(file)
        assert [f.client_streaming for f in files] == [files[0].client_streaming] * 2
        assert [f.server_streaming for f in files] == [files[0].server_streaming] * 2
        for which in ("input_type", "output_type"):
            mine = getattr(method, which)
            if mine.name != "Unsupported":
                check_message(mine, getattr(other, which), seen)
    assert seen
