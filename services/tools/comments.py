"""The comments of proto files, by the full name of what they stand at."""

from collections.abc import Iterator, Mapping, Sequence

from google.protobuf import descriptor_pb2

_Path = tuple[int, ...]

# Numbers of the fields that lead to a definition (google/protobuf/descriptor.proto).
_FILE_MESSAGES, _FILE_ENUMS, _FILE_SERVICES = 4, 5, 6
_MESSAGE_FIELDS, _MESSAGE_MESSAGES, _MESSAGE_ENUMS = 2, 3, 4
_SERVICE_METHODS = 2


def comments_of(files: descriptor_pb2.FileDescriptorSet) -> Mapping[str, str]:
    """Every comment in front of or behind a definition; many servers describe
    themselves without them."""
    comments: dict[str, str] = {}
    for file in files.file:
        texts = {
            tuple(location.path): (location.leading_comments or location.trailing_comments)
            for location in file.source_code_info.location
        }
        for name, path in _places(file):
            text = texts.get(path, "").strip()
            if text:
                comments[name] = "\n".join(line.strip() for line in text.split("\n"))
    return comments


def _places(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[str, _Path]]:
    prefix = f"{file.package}." if file.package else ""
    yield from _message_places(prefix, (_FILE_MESSAGES,), file.message_type)
    for index, enum in enumerate(file.enum_type):
        yield prefix + enum.name, (_FILE_ENUMS, index)
    for index, service in enumerate(file.service):
        yield prefix + service.name, (_FILE_SERVICES, index)
        for number, method in enumerate(service.method):
            name = f"{prefix}{service.name}.{method.name}"
            yield name, (_FILE_SERVICES, index, _SERVICE_METHODS, number)


def _message_places(
    prefix: str, path: _Path, messages: Sequence[descriptor_pb2.DescriptorProto]
) -> Iterator[tuple[str, _Path]]:
    for index, message in enumerate(messages):
        name, place = prefix + message.name, (*path, index)
        yield name, place
        for number, field in enumerate(message.field):
            yield f"{name}.{field.name}", (*place, _MESSAGE_FIELDS, number)
        for number, enum in enumerate(message.enum_type):
            yield f"{name}.{enum.name}", (*place, _MESSAGE_ENUMS, number)
        yield from _message_places(f"{name}.", (*place, _MESSAGE_MESSAGES), message.nested_type)
