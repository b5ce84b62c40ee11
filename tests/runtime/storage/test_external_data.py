import time

import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from segue.errors import BundleError
from segue.runtime.storage.external_data import MAX_DEPTH, ExternalData, external_data


def outside(name, **entries):
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(*initializers, nodes=()):
    return helper.make_graph(list(nodes), "g", [], [], list(initializers))


def model(*initializers, nodes=()):
    return helper.make_model(graph(*initializers, nodes=nodes))


def encode_varint(value):
    data = b""
    while value > 0x7F:
        data += bytes([value & 0x7F | 0x80])
        value >>= 7
    return data + bytes([value])


def read(proto):
    return external_data(proto.SerializeToString(), "test.onnx")


def test_entries_are_read_with_offset_and_length():
    inside = helper.make_tensor("inside", TensorProto.FLOAT, [1], [0.0])
    found = read(model(outside("a", location="w", offset="16", length="4"), inside, outside("b", location="v/w")))
    assert found == [ExternalData("a", "w", 16, 4), ExternalData("b", "v/w", 0, None)]


def test_a_tensor_is_found_wherever_onnx_allows_one():
    def hidden(i):
        return outside(f"t{i}", location=f"f{i}")

    def sparse(i):
        return onnx.SparseTensorProto(values=hidden(i), indices=hidden(i + 1), dims=[1])

    proto = model(hidden(0))
    proto.graph.sparse_initializer.append(sparse(1))
    for i, (field, value) in enumerate(
        {
            "t": hidden(3),
            "tensors": [hidden(4), hidden(5)],
            "sparse_tensor": sparse(6),
            "sparse_tensors": [sparse(8)],
        }.items()
    ):
        attribute = onnx.AttributeProto(name=f"x{i}", **{field: value})
        proto.graph.node.append(onnx.NodeProto(op_type="Constant", attribute=[attribute]))
    deep = onnx.NodeProto(op_type="If", attribute=[onnx.AttributeProto(name="then", g=graph(hidden(10)))])
    many = onnx.AttributeProto(name="many", graphs=[graph(hidden(11)), graph(nodes=[deep])])
    proto.graph.node.append(onnx.NodeProto(op_type="If", attribute=[many]))
    function = proto.functions.add(name="f")
    function.node.append(onnx.NodeProto(attribute=[onnx.AttributeProto(name="v", t=hidden(12))]))
    function.attribute_proto.append(onnx.AttributeProto(name="d", t=hidden(13)))
    training = proto.training_info.add()
    training.initialization.CopyFrom(graph(hidden(14)))
    training.algorithm.CopyFrom(graph(hidden(15)))
    assert {entry.location for entry in read(proto)} == {f"f{i}" for i in range(16)}


def test_external_data_counts_even_when_the_tensor_is_not_marked_external():
    tensor = outside("a", location="/etc/passwd")
    tensor.ClearField("data_location")
    assert [entry.location for entry in read(model(tensor))] == ["/etc/passwd"]


@pytest.mark.parametrize(
    "entries",
    [
        {},
        {"offset": "3"},
        {"location": ""},
        {"location": "w", "offset": "-1"},
        {"location": "w", "offset": "0x10"},
        {"location": "w", "length": "9" * 20},
        {"location": "w", "length": ""},
    ],
)
def test_incomplete_references_are_refused(entries):
    with pytest.raises(BundleError, match=r"test\.onnx is not a safe ONNX file"):
        read(model(outside("a", **entries)))


def test_a_location_given_twice_is_refused():
    tensor = outside("a", location="w")
    tensor.external_data.add(key="location", value="../w")
    with pytest.raises(BundleError, match="twice"):
        read(model(tensor))


def test_messages_that_a_parser_would_merge_are_refused():
    first, second = (model(outside(name, location="w")).SerializeToString() for name in "ab")
    with pytest.raises(BundleError, match="occurs twice"):
        external_data(first + second, "test.onnx")


def test_nesting_is_bounded():
    data = b""
    for depth in range(MAX_DEPTH + 2):
        field = (
            (1, 5, 6)[(MAX_DEPTH - depth) % 3] if depth <= MAX_DEPTH else 7
        )  # node of a graph, its attribute, the graph in that
        data = bytes([field << 3 | 2]) + encode_varint(len(data)) + data
    with pytest.raises(BundleError, match="nests more than"):
        external_data(data, "test.onnx")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_give_entries_or_a_bundle_error(data):
    try:
        found = external_data(data, "test.onnx")
    except BundleError:
        return
    assert all(entry.location for entry in found)


WHOLE = model(
    outside("a", location="w", offset="16", length="4"),
    nodes=[helper.make_node("If", ["x"], ["y"], then_branch=graph(outside("b", location="v", offset="0", length="8")))],
).SerializeToString()


@pytest.mark.parametrize("end", range(len(WHOLE)))
def test_a_truncated_model_never_shows_an_entry_that_the_whole_has_not(end):
    try:
        found = external_data(WHOLE[:end], "test.onnx")
    except BundleError:
        return
    assert found == external_data(WHOLE, "test.onnx")[: len(found)]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_what_onnx_parses_after_a_flipped_byte_is_seen_in_full(data):
    place, value = data.draw(st.integers(0, len(WHOLE) - 1)), data.draw(st.integers(0, 255))
    changed = WHOLE[:place] + bytes([value]) + WHOLE[place + 1 :]
    try:
        found = {entry.location for entry in external_data(changed, "test.onnx")}
        parsed = onnx.load_model_from_string(changed)
    except (BundleError, DecodeError):
        return
    tensors = [*parsed.graph.initializer]
    for node in parsed.graph.node:
        for attribute in node.attribute:
            tensors += attribute.g.initializer
    for tensor in tensors:
        named = {entry.value for entry in tensor.external_data if entry.key == "location"}
        assert named <= found


def test_a_large_hostile_file_ends_soon():
    started = time.perf_counter()
    with pytest.raises(BundleError):
        external_data(b"\x3a\x80\x80\x80\x40" + b"\x3a" * 2**20, "test.onnx")
    assert external_data(b"\x08\x01" * 2**17, "test.onnx") == []
    assert time.perf_counter() - started < 5
