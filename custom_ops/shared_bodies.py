"""What bodies call: packed weights go in, products, matrices and rows come out, in standard ops.

Nothing here depends on a weight's make-up: header and segment table are read as the graph runs, and
a weight is unpacked a slab of strips at a time, never whole. docs/packed-weights.md has the layout.
"""

# The names are ONNX's, and onnxscript's values have no type that mypy could check.
# mypy: ignore-errors

from onnxscript import opset23 as op
from onnxscript import script
from onnxscript.values import Opset

from edgewright.custom_ops.spec import DOMAIN, VERSION

_OURS = Opset(DOMAIN, VERSION)


@script(_OURS, default_opset=op)
def PackedWords(bytes):
    """uint8 [..., 4 n] → int64 [n], from little-endian uint32."""
    digits = op.Cast(op.Reshape(bytes, [-1, 4]), to=7)
    return op.ReduceSum(digits * [1, 256, 65536, 16777216], [1], keepdims=0)


@script(_OURS, default_opset=op)
def PackedHalves(bytes, is_float16):
    """uint8 [2 n] → float32 [n], from float16 or bfloat16. A power of two is looked up."""
    digits = op.Cast(op.Reshape(bytes, [-1, 2]), to=7)
    bits = op.ReduceSum(digits * [1, 256], [1], keepdims=0)
    fractions = op.Where(is_float16, 1024, 128)
    exponents = op.Where(is_float16, 32, 256)
    fraction = op.Cast(op.Mod(bits, fractions), to=1) / op.Cast(fractions, to=1)
    rest = bits / fractions
    exponent = op.Mod(rest, exponents)
    sign = op.Cast(1 - 2 * (rest / exponents), to=1)
    whole = op.Cast(op.Greater(exponent, 0), to=1)
    powers = op.Pow(2.0, op.Cast(op.Range(-127, 129, 1), to=1))
    power = op.Gather(powers, op.Max(exponent, 1) + op.Where(is_float16, 112, 0))
    return sign * power * (whole + fraction)


@script(_OURS, default_opset=op)
def PackedHeader(weight):
    """The header's words, and its segment table as int64 [segments, 16]."""
    words = PackedWords(op.Slice(weight, [0], [64]))
    end = 64 + 16 * op.Slice(words, [6], [7])
    table = op.Cast(op.Reshape(op.Slice(weight, [64], end), [-1, 16]), to=7)
    return words, table


@script(_OURS, default_opset=op)
def PackedSizes(words):
    """What a row has: groups of 32 columns, blocks, chunks of 64 that count outliers; one each."""
    groups = (op.Slice(words, [4], [5]) + 31) / 32
    block = op.Slice(words, [5], [6])
    blocks = (32 * groups + block - 1) / block
    flags = op.Slice(words, [7], [8])
    return groups, block, blocks, (groups + 1) / 2 * (flags / 2)


@script(_OURS, default_opset=op)
def PackedSection(words, matrix):
    """Where a matrix and its first segment begin, and where the list of outliers does."""
    listed = (2 * op.Slice(words, [10], [11]) + 63) / 64 * 64
    outliers = op.Slice(words, [8], [9]) + op.Slice(words, [9], [10]) * 4294967296 - listed
    first = (127 + 16 * op.Slice(words, [6], [7])) / 64 * 64
    section = first + matrix * ((outliers - first) / op.Slice(words, [2], [3]))
    scaled = op.Mod(op.Slice(words, [7], [8]), 2)
    scales = scaled * ((2 * op.Slice(words, [4], [5]) + 63) / 64 * 64)
    return section, section + scales, outliers


@script(_OURS, default_opset=op)
def PackedColumnScale(weight, matrix):
    """float32 [K], ones where there are no column scales."""
    words, table = PackedHeader(weight)
    section, codes, outliers = PackedSection(words, matrix)
    columns = op.Slice(words, [4], [5])
    if op.Squeeze(op.Equal(section, codes)):
        scale = op.ConstantOfShape(columns) + 1.0
    else:
        stored = op.Slice(weight, section, section + 2 * columns)
        scale = PackedHalves(stored, op.Cast(0, to=9))
    return scale


@script(_OURS, default_opset=op)
def PackedSegment(words, entry):
    """Of a segment: rows, strips, bytes of a strip's codes and meta, of all, and what precedes
    the outliers in a meta; one each."""
    groups, block, blocks, chunks = PackedSizes(words)
    rows = op.ReduceSum(op.Slice(entry, [0], [4]) * [1, 256, 65536, 16777216], [0])
    strips = (rows + 15) / 16
    codes = groups * 64 * op.Slice(entry, [4], [5])
    scale = op.Min(op.Slice(entry, [6], [7]), 1) + 1
    start = 16 * (2 + blocks * (scale + op.Slice(entry, [5], [6])))
    meta = start + (chunks + 7) / 4 * 4 * op.Min(chunks, 1)
    total = strips * codes + (strips * meta + 63) / 64 * 64
    return rows, strips, codes, meta, total, start


@script(_OURS, default_opset=op)
def PackedFours(vectors):
    """uint8 [4, n] → [8, n], each half a byte."""
    apart = op.BitShift(
        op.Unsqueeze(vectors, [1]), op.CastLike([[[0], [4]]], vectors), direction="RIGHT"
    )
    return op.Reshape(op.BitwiseAnd(apart, op.CastLike(15, vectors)), [8, -1])


@script(_OURS, default_opset=op)
def PackedQuads(vectors, bits):
    """uint8 [bits, n], vector by vector → [8, n], quad by quad."""
    one = op.CastLike(1, vectors)
    if bits == 4:
        quads = PackedFours(vectors)
    else:
        if bits == 8:
            quads = op.Identity(vectors)
        else:
            if bits == 2:
                by = op.CastLike([[[0], [2], [4], [6]]], vectors)
                apart = op.BitShift(op.Unsqueeze(vectors, [1]), by, direction="RIGHT")
                quads = op.Reshape(op.BitwiseAnd(apart, op.CastLike(3, vectors)), [8, -1])
            else:
                if bits == 3:
                    by = op.CastLike([[[0], [3]]], vectors)
                    apart = op.BitShift(op.Unsqueeze(vectors, [1]), by, direction="RIGHT")
                    six = op.Reshape(op.BitwiseAnd(apart, op.CastLike(7, vectors)), [6, -1])
                    rest = op.BitShift(vectors, op.CastLike(6, vectors), direction="RIGHT")
                    third = op.BitShift(
                        op.Slice(rest, [2], [3], [0]),
                        op.CastLike([[0], [1]], vectors),
                        direction="RIGHT",
                    )
                    third = op.BitShift(
                        op.BitwiseAnd(third, one), op.CastLike(2, vectors), direction="LEFT"
                    )
                    two = op.BitwiseOr(op.Slice(rest, [0], [2], [0]), third)
                    quads = op.Concat(six, two, axis=0)
                else:
                    if bits == 5:
                        fifth = op.BitShift(
                            op.Slice(vectors, [4], [5], [0]),
                            op.CastLike([[0], [1], [2], [3], [4], [5], [6], [7]], vectors),
                            direction="RIGHT",
                        )
                        fifth = op.BitShift(
                            op.BitwiseAnd(fifth, one), op.CastLike(4, vectors), direction="LEFT"
                        )
                        four = PackedFours(op.Slice(vectors, [0], [4], [0]))
                        quads = op.BitwiseOr(four, fifth)
                    else:
                        halves = op.Reshape(vectors, [2, 3, -1])
                        rest = op.BitShift(halves, op.CastLike(6, vectors), direction="RIGHT")
                        by = op.CastLike([[[0], [2], [4]]], vectors)
                        rest = op.BitShift(rest, by, direction="LEFT")
                        fourth = op.BitwiseOr(
                            op.Slice(rest, [0], [1], [1]), op.Slice(rest, [1], [2], [1])
                        )
                        fourth = op.BitwiseOr(fourth, op.Slice(rest, [2], [3], [1]))
                        three = op.BitwiseAnd(halves, op.CastLike(63, vectors))
                        quads = op.Reshape(op.Concat(three, fourth, axis=1), [8, -1])
    return quads


@script(_OURS, default_opset=op)
def PackedOutliers(weight, words, counts, starts):
    """Outliers of strips, whose counts are [S, chunks] → each one's strip, its row in it, its
    column and its value."""
    section, codes, listed = PackedSection(words, 0)
    place = op.NonZero(op.Less(op.Range(0, 256, 1), op.Unsqueeze(counts, [2])))  # [3, n]
    strip = op.Gather(place, 0)
    chunk = op.Gather(place, 1)
    firsts = op.CumSum(counts, 1, exclusive=1) + op.Unsqueeze(starts, [1])
    first = op.GatherND(firsts, op.Transpose(op.Slice(place, [0], [2], [0]), perm=[1, 0]))
    at = op.Unsqueeze(listed + 2 * (first + op.Gather(place, 2)), [1]) + [0, 1]
    digits = op.Cast(op.Gather(weight, at), to=7)
    entry = op.ReduceSum(digits * [1, 256], [1], keepdims=0)
    column = 64 * chunk + op.Mod(entry / 16, 64)
    return strip, op.Mod(entry, 16), column, op.Cast(entry / 1024 - 32, to=1)


@script(_OURS, default_opset=op)
def PackedStrips(weight, words, entry, at, first, count):
    """Strips of a segment that begins at `at` → numbers [R, blocks, block], centred on the middle
    code; what each block's rows add to them [R, blocks]; the scale of both [R, blocks]."""
    groups, block, blocks, chunks = PackedSizes(words)
    rows, strips, code_bytes, meta_bytes, total, start = PackedSegment(words, entry)
    bits = op.Slice(entry, [4], [5])
    begin = at + first * code_bytes
    stored = op.Slice(weight, begin, begin + count * code_bytes)
    vectors = op.Reshape(stored, op.Concat(count, groups, bits, [16, 4], axis=0))
    vectors = op.Transpose(vectors, perm=[2, 0, 3, 1, 4])  # [bits, S, 16, groups, 4]
    quads = PackedQuads(op.Reshape(vectors, op.Concat(bits, [-1], axis=0)), op.Squeeze(bits))
    quads = op.Reshape(quads, op.Concat([8], 16 * count, groups, [4], axis=0))
    codes = op.Transpose(quads, perm=[1, 2, 0, 3])  # [R, groups, 8, 4]
    codes = op.Reshape(codes, op.Concat(16 * count, 32 * groups, axis=0))
    step = op.Pow(2.0, op.Cast(op.Slice(entry, [7], [8]), to=1))
    middle = op.Pow(2.0, op.Cast(bits - 1, to=1))
    plain = (op.Cast(codes, to=1) - middle) * step

    begin = at + strips * code_bytes + first * meta_bytes
    stored = op.Slice(weight, begin, begin + count * meta_bytes)
    meta = op.Reshape(stored, op.Concat(count, meta_bytes, axis=0))
    if op.Squeeze(op.Greater(chunks * (8 - bits), 0)):
        counts = op.Cast(op.Slice(meta, start + 4, start + 4 + chunks, [1]), to=7)
        starts = PackedWords(op.Slice(meta, start, start + 4, [1]))
        strip, row, column, value = PackedOutliers(weight, words, counts, starts)
        row = op.Unsqueeze(16 * strip + row, [1])
        place = op.Concat(row, op.Unsqueeze(column, [1]), axis=1)
        numbers = op.ScatterND(plain, place, value, reduction="add")
    else:
        numbers = op.Identity(plain)
    padding = op.Concat([0, 0, 0], blocks * block - 32 * groups, axis=0)
    numbers = op.Pad(numbers, padding)
    numbers = op.Reshape(numbers, op.Concat(16 * count, blocks, block, axis=0))

    by_row = op.Concat(16 * count, blocks, axis=0)
    kind = op.Squeeze(op.Slice(entry, [6], [7]))
    if kind == 0:
        row_scale = PackedHalves(op.Slice(meta, [0], [32], [1]), op.Cast(0, to=9))
        row_scale = op.Unsqueeze(row_scale, [1])
        scale = op.Slice(meta, [32], 32 + 16 * blocks, [1])
        scale = op.Reshape(scale, op.Concat(count, blocks, [16], axis=0))
        scale = op.Reshape(op.Transpose(scale, perm=[0, 2, 1]), by_row)
        scales = row_scale * op.Cast(scale, to=1)
    else:
        scale = op.Slice(meta, [32], 32 + 32 * blocks, [1])
        scale = op.Reshape(scale, op.Concat(count, blocks, [16, 2], axis=0))
        scale = PackedHalves(op.Transpose(scale, perm=[0, 2, 1, 3]), kind == 1)
        scales = op.Reshape(scale, by_row)
    half = op.Cast(op.Slice(entry, [8], [9]), to=1) * 0.5
    if op.Squeeze(op.Cast(op.Slice(entry, [5], [6]), to=9)):
        zeros = op.Slice(meta, start - 16 * blocks, start, [1])
        zeros = op.Reshape(zeros, op.Concat(count, blocks, [16], axis=0))
        zeros = op.Reshape(op.Transpose(zeros, perm=[0, 2, 1]), by_row)
        added = middle + half - op.Cast(zeros, to=1)
    else:
        added = op.Expand(half, by_row)
    return numbers, added * step, scales / step


@script(_OURS, default_opset=op)
def PackedSlab(words, strips, rows_of_x):
    """How many of the strips are unpacked at a time: what a slab makes stays small."""
    groups, block, blocks, chunks = PackedSizes(words)
    wide = op.Max(32 * groups, blocks * rows_of_x)
    return op.Max(op.Min(strips, 262144 / wide), 1)


@script(_OURS, default_opset=op)
def PackedRowsOfX(x, block, blocks):
    """[M, K] → whole numbers [blocks, M, block] and what one of each block's is [blocks, M, 1]; a
    block with a NaN or an infinity stands for NaN."""
    padding = op.Concat([0, 0, 0], blocks * block - op.Shape(x, start=1), axis=0)
    padded = op.Pad(x, padding)
    padded = op.Reshape(
        padded, op.Concat(op.Shape(x, start=0, end=1), blocks, block, axis=0), allowzero=1
    )
    padded = op.Transpose(padded, perm=[1, 0, 2])
    wrong = op.Or(op.IsNaN(padded), op.IsInf(padded))
    is_wrong = op.Cast(op.ReduceMax(op.Cast(wrong, to=1), [2]), to=9)
    padded = op.Where(wrong, 0.0, padded)
    peak = op.ReduceMax(op.Abs(padded), [2])
    is_zero = op.Less(peak, op.Constant(value_float=7.888609052210118e-31))  # 2^-100
    inverse = op.Where(is_zero, 0.0, 127.0 / op.Where(is_zero, 1.0, peak))
    whole = op.Clip(op.Round(padded * inverse), -127.0, 127.0)
    scale = op.Where(is_zero, 0.0, peak / 127.0)
    return whole, op.Where(is_wrong, op.Constant(value_float=float("nan")), scale)


@script(_OURS, default_opset=op)
def PackedMatMul(x, weight, matrix):
    """x [..., K] and matrix [N, K] of a packed weight → [..., N]. Sums within a block are exact:
    float32 holds them."""
    words, table = PackedHeader(weight)
    groups, block, blocks, chunks = PackedSizes(words)
    section, at, outliers = PackedSection(words, matrix)
    rows_of_x = op.Reshape(op.ReduceProd(op.Shape(x, end=-1), keepdims=0), [1])
    flat = op.Reshape(x, op.Concat(rows_of_x, op.Slice(words, [4], [5]), axis=0), allowzero=1)
    scaled = flat * PackedColumnScale(weight, matrix)
    whole, x_scale = PackedRowsOfX(scaled, block, blocks)
    x_sum = op.Cast(op.ReduceSum(whole, [2]), to=6)  # [blocks, M, 1]
    y = op.ConstantOfShape(op.Concat(rows_of_x, [0], axis=0))
    for i in range(op.Squeeze(op.Slice(words, [6], [7]))):
        entry = op.Gather(table, i)
        rows, strips, code_bytes, meta_bytes, total, start = PackedSegment(words, entry)
        slab = PackedSlab(words, strips, rows_of_x)
        part = op.ConstantOfShape(op.Concat(rows_of_x, [0], axis=0))
        for j in range(op.Squeeze((strips + slab - 1) / slab)):
            first = j * slab
            count = op.Min(slab, strips - first)
            numbers, added, scales = PackedStrips(weight, words, entry, at, first, count)
            sums = op.Cast(op.MatMul(whole, op.Transpose(numbers, perm=[1, 2, 0])), to=6)
            added = op.Unsqueeze(op.Transpose(op.Cast(added, to=6), perm=[1, 0]), [1])
            exact = op.Cast(sums + added * x_sum, to=1)  # [blocks, M, R]
            scales = op.Unsqueeze(op.Transpose(scales, perm=[1, 0]), [1])
            new = op.ReduceSum(exact * scales * x_scale, [0], keepdims=0)
            part = op.Concat(part, new, axis=1)
        y = op.Concat(y, op.Slice(part, [0], rows, [1]), axis=1)
        at = at + total
    return op.Reshape(
        y, op.Concat(op.Shape(x, end=-1), op.Slice(words, [3], [4]), axis=0), allowzero=1
    )


@script(_OURS, default_opset=op)
def PackedMatrix(weight):
    """The only matrix of a packed weight, as float32 [N, K]."""
    words, table = PackedHeader(weight)
    groups, block, blocks, chunks = PackedSizes(words)
    section, at, outliers = PackedSection(words, 0)
    columns = op.Slice(words, [4], [5])
    values = op.ConstantOfShape(op.Concat([0], columns, axis=0))
    for i in range(op.Squeeze(op.Slice(words, [6], [7]))):
        entry = op.Gather(table, i)
        rows, strips, code_bytes, meta_bytes, total, start = PackedSegment(words, entry)
        slab = PackedSlab(words, strips, [1])
        part = op.ConstantOfShape(op.Concat([0], columns, axis=0))
        for j in range(op.Squeeze((strips + slab - 1) / slab)):
            first = j * slab
            count = op.Min(slab, strips - first)
            numbers, added, scales = PackedStrips(weight, words, entry, at, first, count)
            new = (numbers + op.Unsqueeze(added, [2])) * op.Unsqueeze(scales, [2])
            new = op.Reshape(new, op.Concat(16 * count, blocks * block, axis=0))
            part = op.Concat(part, op.Slice(new, [0], columns, [1]), axis=0)
        values = op.Concat(values, op.Slice(part, [0], rows, [0]), axis=0)
        at = at + total
    return values * PackedColumnScale(weight, 0)
