"""The messages and services of Qdrant's gRPC protocol.

They are in a descriptor pool of their own. In the default one they would clash with those of a
Qdrant client in the same process, whose files declare the same names.
"""

from __future__ import annotations

from pathlib import Path

from google.protobuf.descriptor import Descriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

PACKAGE = "qdrant."
SERVICES = ("Qdrant", "Collections", "Points", "Snapshots")


def _read() -> DescriptorPool:
    files = FileDescriptorSet.FromString(Path(__file__).with_name("qdrant.binpb").read_bytes())
    pool = DescriptorPool()
    for file in files.file:  # Each after those it imports.
        pool.AddSerializedFile(file.SerializeToString())
    return pool


_pool = _read()


def service(name: str) -> ServiceDescriptor:
    """The service of that name, one of `SERVICES`."""
    return _pool.FindServiceByName(PACKAGE + name)


def message(name: str) -> type[Message]:
    """The class of messages of that name, such as ``PointStruct``."""
    return GetMessageClass(_pool.FindMessageTypeByName(PACKAGE + name))


def short_name(descriptor: Descriptor) -> str:
    """A message's name without that of the package: ``PointStruct``."""
    return descriptor.full_name.removeprefix(PACKAGE)
