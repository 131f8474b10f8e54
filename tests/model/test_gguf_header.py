"""GGUF headers: what the gguf package reads is read here, and no damage gets past as anything but a ModelError."""

import struct

import gguf
import numpy as np
import pytest
from gguf_files import write_tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from psyfast.errors import ModelError
from psyfast.model.load.gguf_header import GgufHeader
from psyfast.model.load.tensors import GgufFile

Q8_0 = gguf.GGMLQuantizationType.Q8_0
TENSORS = {
    "one": np.arange(6, dtype=np.float32).reshape(2, 3),
    "two": (np.arange(2 * 34, dtype=np.uint8).reshape(2, 34), Q8_0),
    "three": np.arange(4, dtype=np.float16),
}


@pytest.fixture
def whole(tmp_path):
    return write_tensors(tmp_path / "whole.gguf", TENSORS)


def read_all(path):
    """Everything that a header can be asked for."""
    header = GgufHeader(path)
    return header.metadata, header.strings("words"), [header.stored(tensor).tobytes() for tensor in header.tensors]


def test_reads_what_the_gguf_package_reads(whole):
    header, theirs = GgufHeader(whole), gguf.GGUFReader(str(whole))
    fields = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert header.strings("words") == fields.pop("words")
    assert header.metadata == fields
    assert {type(value) for value in header.metadata.values()} == {int, float, bool, str, list}
    assert header.strings("no such key") is None
    for ours, tensor in zip(header.tensors, theirs.tensors, strict=True):
        assert (ours.name, ours.kind, ours.start) == (tensor.name, tensor.tensor_type, tensor.data_offset)
        assert ours.shape == tuple(int(n) for n in tensor.shape[::-1])
        assert header.stored(ours).tobytes() == tensor.data.tobytes()


def test_a_file_cut_off_anywhere_is_refused(whole):
    data = whole.read_bytes()
    last = max(tensor.start + tensor.num_bytes for tensor in GgufHeader(whole).tensors)
    for length in range(last):
        whole.write_bytes(data[:length])
        with pytest.raises(ModelError, match=r"whole\.gguf: .*(cut off|left for them|begins with|cannot be read)"):
            read_all(whole)
    whole.write_bytes(data[:last])
    read_all(whole)


U32, U64 = struct.Struct("<I"), struct.Struct("<Q")


@pytest.mark.parametrize(
    "value",
    [
        b"\xff",
        b"\0",
        b"\x80",
        U32.pack(0),
        U32.pack(1 << 31),
        b"\xff" * 4,
        U64.pack(1 << 33),
        U64.pack(1 << 63),
        b"\xff" * 8,
    ],
    ids=bytes.hex,
)
def test_any_field_overwritten_is_refused_or_harmless(whole, value):
    data = whole.read_bytes()
    refused = 0
    for start in range(GgufHeader(whole).tensors[0].start):
        whole.write_bytes(data[:start] + value + data[start + len(value) :])
        try:
            read_all(whole)
        except ModelError as error:
            refused += 1
            assert "whole.gguf" in str(error)
    assert refused > len(b"GGUF")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 900), st.binary(min_size=1, max_size=12)), min_size=1, max_size=4))
def test_random_damage_is_refused_or_harmless(whole, changes):
    data = bytearray(whole.read_bytes())
    for start, value in changes:
        data[start : start + len(value)] = value
    damaged = whole.with_name("damaged.gguf")
    damaged.write_bytes(data)
    try:
        read_all(damaged)
    except ModelError as error:
        assert "damaged.gguf" in str(error)


def text(value):
    return struct.pack("<Q", len(value)) + value


def pair(key, kind, value):
    return text(key) + struct.pack("<I", kind) + value


def tensor(name=b"x", shape=(4,), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def build(pairs=(), tensors=(), *, magic=b"GGUF", version=3, counts=None, values=b"\0" * 256):
    num_tensors, num_pairs = counts or (len(tensors), len(pairs))
    head = magic + struct.pack("<IQQ", version, num_tensors, num_pairs) + b"".join([*pairs, *tensors])
    return head + b"\0" * (-len(head) % 32) + values


STRINGS = struct.pack("<IQ", 8, 2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read as a GGUF file"),
        (build(magic=b"GGML"), r"begins with b'GGML', expected b'GGUF'"),
        (build(version=1), "version 1, expected little-endian, version 2 or 3; convert"),
        (build(version=4), "version 4"),
        (build(version=3 << 24), "big-endian"),
        (build(counts=(1 << 40, 0)), "holds 1,099,511,627,776 tensors, and .* bytes are left"),
        (build(counts=(0, 1 << 63)), "pairs of metadata"),
        (build([pair(b"k", 13, b"\0" * 8)]), "'k' is of type 13"),
        (build([pair(b"k", 4, b"\0" * 4)] * 2), "'k' stands twice in its metadata"),
        (build([pair(b"\xff", 4, b"\0" * 4)]), "key of pair 0 of 1 is not UTF-8"),
        (build([pair(b"k", 8, struct.pack("<Q", 1 << 62))]), "cut off: 'k' ends at byte"),
        (build([pair(b"k", 9, struct.pack("<IQ", 4, 1 << 61))]), "cut off: 'k' ends at byte"),
        (build([pair(b"k", 9, struct.pack("<IQ", 9, 1))]), "'k' is of type 9"),
        (build([pair(b"k", 9, struct.pack("<IQ", 8, 1 << 50))]), "strings in 'k', and .* bytes are left"),
        (build([pair(b"k", 9, STRINGS + text(b"a") + struct.pack("<Q", 1 << 63))]), "cut off: 'k' ends at byte"),
        (build([pair(b"general.alignment", 4, struct.pack("<I", 24))]), "'general.alignment' is 24"),
        (build([pair(b"general.alignment", 4, struct.pack("<I", 0))]), "'general.alignment' is 0"),
        (build([pair(b"general.alignment", 8, text(b"32"))]), "'general.alignment' is '32'"),
        (build([], [tensor(b"\xff")]), "name of tensor 0 of 1 is not UTF-8"),
        (build([], [tensor(shape=(1,) * 5)]), "'x' has 5 dimensions, expected at most 4"),
        (build([], [tensor(shape=(1 << 62, 1 << 62))]), "cut off: tensor 'x' ends at byte"),
        (build([], [tensor(kind=99)]), "'x' is of type 99, which the installed gguf package does not know"),
        (build([], [tensor(kind=3, shape=(33, 2))]), "'x' has rows of 33 values, expected a multiple of Q4_1's 32"),
        (build([], [tensor(offset=4)]), "'x' lies at offset 4, expected a multiple of 32"),
        (build([], [tensor(offset=1 << 40)]), "cut off: tensor 'x' ends at byte"),
        (build([], [tensor(), tensor(offset=32)]), "tensor 'x' stands in it twice"),
        (build([], [tensor(shape=(9,)), tensor(b"y", offset=32)]), "tensors 'x' and 'y' overlap"),
    ],
)
def test_each_kind_of_damage_is_named(tmp_path, data, message):
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=rf"x\.gguf: .*{message}"):
        read_all(path)


def test_a_vocabulary_that_is_not_utf8_is_refused_when_it_is_used(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(build([pair(b"words", 9, STRINGS + text(b"a") + text(b"\xff"))]))
    header = GgufHeader(path)
    with pytest.raises(ModelError, match=r"'words' holds a string that is not UTF-8"):
        header.strings("words")


def test_a_folder_is_no_gguf_file(tmp_path):
    with pytest.raises(ModelError, match="cannot be read as a GGUF file"):
        GgufHeader(tmp_path)


@pytest.mark.parametrize("alignment", [1, 8, 4096])
def test_values_begin_at_a_multiple_of_the_alignment(tmp_path, alignment):
    path = tmp_path / "x.gguf"
    head = build([pair(b"general.alignment", 4, struct.pack("<I", alignment))], [tensor(shape=(2,))], values=b"")
    start = -(-len(head.rstrip(b"\0")) // alignment) * alignment
    path.write_bytes(head + b"\0" * 8192)
    assert GgufHeader(path).tensors[0].start >= start
    assert GgufHeader(path).tensors[0].start % alignment == 0


MANY_VALUES = 300_000  # more than are de-quantised at a time
BLOCK_TYPES = [kind for kind in gguf.GGMLQuantizationType if kind in gguf.quants._type_traits]


def finite_blocks(kind, num_blocks):
    """Random bytes of blocks, [num_blocks, bytes of a block], and their values, [num_blocks, values of a block]."""
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    found = np.random.default_rng(0).integers(0, 256, (num_blocks, block_bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        values = gguf.quants.dequantize(found, kind).reshape(num_blocks, block_size)
    finite = np.isfinite(values).all(1)
    return found[finite], values[finite]


@pytest.mark.parametrize(
    "kind", [*BLOCK_TYPES, gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16], ids=lambda kind: kind.name
)
def test_values_have_the_bits_that_the_gguf_package_gives_them(tmp_path, kind):
    blocks, values = finite_blocks(kind, 4 * MANY_VALUES // gguf.GGML_QUANT_SIZES[kind][0])
    for num_rows in (1, 7, len(blocks) // 2):
        a_row = len(blocks) // num_rows
        stored, expected = blocks[: num_rows * a_row], values[: num_rows * a_row].reshape(num_rows, -1)
        file = write_tensors(tmp_path / "x.gguf", {"blk.0.ffn_down.weight": (stored.reshape(num_rows, -1), kind)})
        read = GgufFile(file).read("model.layers.0.mlp.down_proj.weight").float().numpy()
        assert read.shape == expected.shape
        assert np.array_equal(read.view(np.uint32), expected.astype(np.float32).view(np.uint32))


def test_a_type_without_de_quantisation_is_named(tmp_path):
    path = write_tensors(tmp_path / "x.gguf", {"output_norm.weight": np.arange(4, dtype=np.int32)})
    with pytest.raises(ModelError, match=r"x\.gguf: tensor 'model.norm.weight' is stored as I32"):
        GgufFile(path).read("model.norm.weight")
