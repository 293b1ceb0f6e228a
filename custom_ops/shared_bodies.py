"""What bodies call: packed weights go in, products, matrices and rows come out, in standard ops.

Nothing here depends on a weight's make-up: header and segment table are read as the graph runs, and
a weight is unpacked a slab of strips at a time, never whole. docs/packed-weights.md has the layout.
"""

# The names are ONNX's, and onnxscript's values have no type that mypy could check.
# mypy: ignore-errors
# A Split gives more than is used: RUF059. `+` adds tensors: RUF005.
# ruff: noqa: RUF005, RUF059

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
def PackedTable(stored, at, groups, blocks, chunks):
    """uint8 [segments, 16] → int64 [segments, 12] rows, strips, bits, zeros, kind, shift, half,
    where the codes begin and the metas, bytes of a strip's codes and of its meta, what precedes
    the outliers in a meta."""
    digits = op.Cast(stored, to=7)
    number, bits, zeros, kind, shift, half, rest = op.Split(
        digits, op.Constant(value_ints=[4, 1, 1, 1, 1, 1, 7]), axis=1
    )
    rows = op.ReduceSum(number * [1, 256, 65536, 16777216], [1])
    strips = (rows + 15) / 16
    code_bytes = 64 * groups * bits
    start = 16 * (2 + blocks * (op.Min(kind, [1]) + 1 + zeros))
    meta_bytes = start + (chunks + 7) / 4 * 4 * op.Min(chunks, [1])
    codes = strips * code_bytes
    total = codes + (strips * meta_bytes + 63) / 64 * 64
    begin = at + op.CumSum(total, 0, exclusive=1)
    return op.Concat(
        rows,
        strips,
        bits,
        zeros,
        kind,
        shift,
        half,
        begin,
        begin + codes,
        code_bytes,
        meta_bytes,
        start,
        axis=1,
    )


@script(_OURS, default_opset=op)
def PackedHeader(weight, matrix):
    """[11] of a matrix: rows, columns, groups of 32 columns, their block, blocks, chunks of 64 that
    count outliers, where its section begins, the header's flags, where the outliers' list begins,
    segments, matrices. And [segments, 12] of its segments, as PackedTable has them."""
    words = PackedWords(op.Slice(weight, [0], [64]))
    head, stack, rows, columns, block, count, flags, low, high, entries, rest = op.Split(
        words, op.Constant(value_ints=[2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 5])
    )
    groups = (columns + 31) / 32
    blocks = (32 * groups + block - 1) / block
    chunks = (groups + 1) / 2 * op.Mod(flags / 2, 2)
    listed = low + 4294967296 * high - (2 * entries + 63) / 64 * 64
    first = (127 + 16 * count) / 64 * 64
    section = first + matrix * ((listed - first) / stack)
    facts = op.Concat(
        rows, columns, groups, block, blocks, chunks, section, flags, listed, count, stack, axis=0
    )
    at = section + op.Mod(flags, 2) * ((2 * columns + 63) / 64 * 64)
    at = at + flags / 4 * ((4 * columns + 63) / 64 * 64)
    stored = op.Reshape(op.Slice(weight, [64], 64 + 16 * count), [-1, 16])
    return facts, PackedTable(stored, at, groups, blocks, chunks)


@script(_OURS, default_opset=op)
def PackedColumnScale(weight, facts):
    """float32 [K], ones where there are no column scales."""
    n, columns, others, section, flags, rest = op.Split(
        facts, op.Constant(value_ints=[1, 1, 4, 1, 1, 3])
    )
    if op.Squeeze(op.Cast(op.Mod(flags, 2), to=9)):
        stored = op.Slice(weight, section, section + 2 * columns)
        scale = PackedHalves(stored, op.Cast(0, to=9))
    else:
        scale = op.Expand(1.0, columns)
    return scale


@script(_OURS, default_opset=op)
def PackedColumnOrder(weight, facts):
    """int64 [K]: which of the matrix's columns each stored one is."""
    n, columns, others, section, flags, rest = op.Split(
        facts, op.Constant(value_ints=[1, 1, 4, 1, 1, 3])
    )
    stored = columns * (flags / 4)  # all of them, or none
    at = section + op.Mod(flags, 2) * ((2 * columns + 63) / 64 * 64)
    words = PackedWords(op.Slice(weight, at, at + 4 * stored))
    return op.Concat(words, op.Range(op.Squeeze(stored), op.Squeeze(columns), 1), axis=0)


@script(_OURS, default_opset=op)
def PackedColumnsBack(values, weight, facts):
    """Stored columns [R, K], times their scales → the matrix's."""
    order = PackedColumnOrder(weight, facts)
    places = op.ScatterElements(order, order, op.Range(0, op.Size(order), 1), axis=0)
    return op.Gather(values * PackedColumnScale(weight, facts), places, axis=1)


@script(_OURS, default_opset=op)
def PackedQuads(vectors, bits):
    """uint8 [bits, n], vector by vector → [8, n], quad by quad."""
    stacked = op.Unsqueeze(vectors, [1])
    if bits == 8:
        quads = op.Identity(vectors)
    else:
        if bits == 2:
            by = op.Cast([[[0], [2], [4], [6]]], to=2)
            apart = op.BitwiseAnd(op.BitShift(stacked, by, direction="RIGHT"), op.Cast(3, to=2))
            quads = op.Reshape(apart, [8, -1])
        else:
            if bits == 3:
                by = op.Cast([[[0], [3]]], to=2)
                apart = op.BitwiseAnd(op.BitShift(stacked, by, direction="RIGHT"), op.Cast(7, to=2))
                rest = op.BitShift(vectors, op.Cast(6, to=2), direction="RIGHT")
                two, third = op.Split(rest, op.Constant(value_ints=[2, 1]))
                # Bit 0 of the last is above the first pair, bit 1 above the second.
                third = op.BitShift(third, op.Cast([[2], [1]], to=2), direction="LEFT")
                two = op.BitwiseOr(two, op.BitwiseAnd(third, op.Cast(4, to=2)))
                quads = op.Concat(op.Reshape(apart, [6, -1]), two, axis=0)
            else:
                if bits == 6:
                    halves = op.Reshape(vectors, [2, 3, -1])
                    rest = op.BitShift(halves, op.Cast(6, to=2), direction="RIGHT")
                    rest = op.BitShift(rest, op.Cast([[[0], [2], [4]]], to=2), direction="LEFT")
                    low, middle, high = op.Split(rest, axis=1, num_outputs=3)
                    fourth = op.BitwiseOr(op.BitwiseOr(low, middle), high)
                    three = op.BitwiseAnd(halves, op.Cast(63, to=2))
                    quads = op.Reshape(op.Concat(three, fourth, axis=1), [8, -1])
                else:
                    four = op.Slice(stacked, [0], [4], [0])
                    by = op.Cast([[[0], [4]]], to=2)
                    four = op.BitShift(four, by, direction="RIGHT")
                    four = op.Reshape(op.BitwiseAnd(four, op.Cast(15, to=2)), [8, -1])
                    if bits == 4:
                        quads = op.Identity(four)
                    else:
                        fifth = op.Slice(vectors, [4], [5], [0])
                        by = op.Cast([[0], [1], [2], [3], [4], [5], [6], [7]], to=2)
                        fifth = op.BitShift(fifth, by, direction="RIGHT")
                        fifth = op.BitwiseAnd(fifth, op.Cast(1, to=2))
                        fifth = op.BitShift(fifth, op.Cast(4, to=2), direction="LEFT")
                        quads = op.BitwiseOr(four, fifth)
    return quads


@script(_OURS, default_opset=op)
def PackedOutliers(weight, listed, counts, starts):
    """Outliers of strips, whose counts are [S, chunks] → each one's strip, its row in it, its
    column and its value."""
    place = op.NonZero(op.Less(op.Range(0, 256, 1), op.Unsqueeze(counts, [2])))
    strip, chunk, number = op.Split(place, axis=0, num_outputs=3)  # [1, n] each
    firsts = op.CumSum(counts, 1, exclusive=1) + op.Unsqueeze(starts, [1])
    first = op.GatherND(firsts, op.Transpose(op.Concat(strip, chunk, axis=0), perm=[1, 0]))
    at = op.Transpose(listed + 2 * (first + number), perm=[1, 0]) + [0, 1]
    digits = op.Cast(op.Gather(weight, at), to=7)
    entry = op.ReduceSum(digits * [1, 256], [1], keepdims=0)
    column = 64 * op.Squeeze(chunk, [0]) + op.Mod(entry / 16, 64)
    value = op.Cast(entry / 1024 - 32, to=1)
    return op.Squeeze(strip, [0]), op.Mod(entry, 16), column, value


@script(_OURS, default_opset=op)
def PackedStrips(weight, facts, segment, first, count):
    """Strips of a segment → numbers [R, blocks, block], centred on the middle code; what is added
    to all of a block's [R, blocks]; the scale of both [R, blocks]."""
    n, k, groups, block, blocks, chunks, section, scaled, listed, g, stack = op.Split(
        facts, num_outputs=11
    )
    (
        r,
        strips,
        bits,
        has_zeros,
        kind,
        shift,
        half,
        codes_at,
        metas_at,
        code_bytes,
        meta_bytes,
        start,
    ) = op.Split(segment, num_outputs=12)
    rows = 16 * count
    begin = codes_at + first * code_bytes
    stored = op.Slice(weight, begin, begin + count * code_bytes)
    vectors = op.Reshape(stored, op.Concat(count, groups, bits, [16, 4], axis=0))
    vectors = op.Transpose(vectors, perm=[2, 0, 3, 1, 4])  # [bits, S, 16, groups, 4]
    quads = PackedQuads(op.Reshape(vectors, op.Concat(bits, [-1], axis=0)), op.Squeeze(bits))
    quads = op.Reshape(quads, op.Concat([8], rows, groups, [4], axis=0))
    codes = op.Transpose(quads, perm=[1, 2, 0, 3])  # [R, groups, 8, 4]
    codes = op.Reshape(codes, op.Concat(rows, 32 * groups, axis=0))
    step = op.Pow(2.0, op.Cast(shift, to=1))
    middle = op.Pow(2.0, op.Cast(bits - 1, to=1))
    plain = (op.Cast(codes, to=1) - middle) * step

    begin = metas_at + first * meta_bytes
    stored = op.Slice(weight, begin, begin + count * meta_bytes)
    meta = op.Reshape(stored, op.Concat(count, meta_bytes, axis=0))
    if op.Squeeze(op.Greater(chunks * (8 - bits), 0)):
        counts = op.Cast(op.Slice(meta, start + 4, start + 4 + chunks, [1]), to=7)
        starts = PackedWords(op.Slice(meta, start, start + 4, [1]))
        strip, row, column, value = PackedOutliers(weight, listed, counts, starts)
        row = op.Unsqueeze(16 * strip + row, [1])
        place = op.Concat(row, op.Unsqueeze(column, [1]), axis=1)
        numbers = op.ScatterND(plain, place, value, reduction="add")
    else:
        numbers = op.Identity(plain)
    padding = op.Concat([0, 0, 0], blocks * block - 32 * groups, axis=0)
    numbers = op.Reshape(op.Pad(numbers, padding), op.Concat(rows, blocks, block, axis=0))

    by_row = op.Concat(rows, blocks, axis=0)
    if op.Squeeze(op.Equal(kind, 0)):
        row_scale = PackedHalves(op.Slice(meta, [0], [32], [1]), op.Cast(0, to=9))
        scale = op.Slice(meta, [32], 32 + 16 * blocks, [1])
        scale = op.Reshape(scale, op.Concat(count, blocks, [16], axis=0))
        scale = op.Reshape(op.Transpose(scale, perm=[0, 2, 1]), by_row)
        scales = op.Unsqueeze(row_scale, [1]) * op.Cast(scale, to=1)
    else:
        scale = op.Slice(meta, [32], 32 + 32 * blocks, [1])
        scale = op.Reshape(scale, op.Concat(count, blocks, [16, 2], axis=0))
        scale = op.Transpose(scale, perm=[0, 2, 1, 3])
        scales = op.Reshape(PackedHalves(scale, op.Squeeze(op.Equal(kind, 1))), by_row)
    half_step = op.Cast(half, to=1) * 0.5
    if op.Squeeze(op.Cast(has_zeros, to=9)):
        zeros = op.Slice(meta, start - 16 * blocks, start, [1])
        zeros = op.Reshape(zeros, op.Concat(count, blocks, [16], axis=0))
        zeros = op.Reshape(op.Transpose(zeros, perm=[0, 2, 1]), by_row)
        added = middle + half_step - op.Cast(zeros, to=1)
    else:
        added = op.Expand(half_step, by_row)
    return numbers, added * step, scales / step


@script(_OURS, default_opset=op)
def PackedRowsOfX(x, block, blocks):
    """[M, K] → whole numbers [blocks, M, block] and what one of each block's is [blocks, M, 1]; a
    block with a NaN or an infinity stands for NaN."""
    padding = op.Concat([0, 0, 0], blocks * block - op.Shape(x, start=1), axis=0)
    shape = op.Concat(op.Shape(x, start=0, end=1), blocks, block, axis=0)
    padded = op.Reshape(op.Pad(x, padding), shape, allowzero=1)
    padded = op.Transpose(padded, perm=[1, 0, 2])
    # A NaN or an infinity is no number of which 0 is made.
    rest = padded * 0.0
    wrong = op.IsNaN(rest)
    padded = op.Where(wrong, 0.0, padded)
    peak = op.ReduceMax(op.Abs(padded), [2])
    is_zero = op.Less(peak, op.Constant(value_float=7.888609052210118e-31))  # 2^-100
    inverse = op.Where(is_zero, 0.0, 127.0 / op.Where(is_zero, 1.0, peak))
    whole = op.Clip(op.Round(padded * inverse), -127.0, 127.0)
    scale = op.Where(is_zero, 0.0, peak / 127.0)
    return whole, scale + op.ReduceSum(rest, [2])


@script(_OURS, default_opset=op)
def PackedMatMul(x, weight, matrix):
    """x [..., K] and matrix [N, K] of a packed weight → [..., N]. Sums within a block are exact:
    float32 holds them."""
    facts, table = PackedHeader(weight, matrix)
    n, k, groups, block, blocks, chunks, section, flags, listed, segments, stack = op.Split(
        facts, num_outputs=11
    )
    leading = op.Shape(x, end=-1)
    rows_of_x = op.ReduceProd(leading)
    flat = op.Reshape(x, op.Concat(rows_of_x, k, axis=0), allowzero=1)
    stored = op.Gather(flat, PackedColumnOrder(weight, facts), axis=1)
    whole, x_scale = PackedRowsOfX(stored * PackedColumnScale(weight, facts), block, blocks)
    x_sum = op.Cast(op.ReduceSum(whole, [2]), to=6)  # [blocks, M, 1]
    most = 262144 / op.Max(32 * groups, blocks * rows_of_x)
    nothing = op.ConstantOfShape(op.Concat(rows_of_x, [0], axis=0))
    y = op.Identity(nothing)
    for i in range(op.Squeeze(segments)):
        segment = op.Gather(table, i)
        rows, strips, rest = op.Split(segment, op.Constant(value_ints=[1, 1, 10]))
        slab = op.Max(op.Min(strips, most), 1)
        part = op.Identity(nothing)
        for j in range(op.Squeeze((strips + slab - 1) / slab)):
            first = j * slab
            count = op.Min(slab, strips - first)
            numbers, added, scales = PackedStrips(weight, facts, segment, first, count)
            sums = op.Cast(op.MatMul(whole, op.Transpose(numbers, perm=[1, 2, 0])), to=6)
            added = op.Unsqueeze(op.Transpose(op.Cast(added, to=6), perm=[1, 0]), [1])
            exact = op.Cast(sums + added * x_sum, to=1)  # [blocks, M, R]
            scales = op.Unsqueeze(op.Transpose(scales, perm=[1, 0]), [1])
            new = op.ReduceSum(exact * scales * x_scale, [0], keepdims=0)
            part = op.Concat(part, new, axis=1)
        y = op.Concat(y, op.Slice(part, [0], rows, [1]), axis=1)
    return op.Reshape(y, op.Concat(leading, n, axis=0), allowzero=1)


@script(_OURS, default_opset=op)
def PackedCount(weight):
    """How many matrices a packed weight has."""
    return op.Squeeze(PackedWords(op.Slice(weight, [8], [12])))


@script(_OURS, default_opset=op)
def StackedMatMul(x, weight, matrix):
    """x [T, K] and one matrix of a stack [E, N, K] → [T, N]."""
    return op.MatMul(x, op.Transpose(op.Cast(op.Gather(weight, matrix), to=1), perm=[1, 0]))


@script(_OURS, default_opset=op)
def StackedCount(weight):
    return op.Squeeze(op.Shape(weight, start=0, end=1))


@script(_OURS, default_opset=op)
def PackedMatrix(weight):
    """The only matrix of a packed weight, as float32 [N, K]."""
    facts, table = PackedHeader(weight, 0)
    n, k, groups, block, blocks, chunks, section, flags, listed, segments, stack = op.Split(
        facts, num_outputs=11
    )
    nothing = op.ConstantOfShape(op.Concat([0], k, axis=0))
    values = op.Identity(nothing)
    for i in range(op.Squeeze(segments)):
        segment = op.Gather(table, i)
        rows, strips, rest = op.Split(segment, op.Constant(value_ints=[1, 1, 10]))
        slab = op.Max(op.Min(strips, 8192 / groups), 1)
        part = op.Identity(nothing)
        for j in range(op.Squeeze((strips + slab - 1) / slab)):
            first = j * slab
            count = op.Min(slab, strips - first)
            numbers, added, scales = PackedStrips(weight, facts, segment, first, count)
            new = (numbers + op.Unsqueeze(added, [2])) * op.Unsqueeze(scales, [2])
            new = op.Reshape(new, op.Concat(16 * count, blocks * block, axis=0))
            part = op.Concat(part, op.Slice(new, [0], k, [1]), axis=0)
        values = op.Concat(values, op.Slice(part, [0], rows, [0]), axis=0)
    return PackedColumnsBack(values, weight, facts)


@script(_OURS, default_opset=op)
def PackedRows(ids, weight):
    """The rows that ids [...] name, of the only matrix, as float32 [..., K]. Each row of x gathers
    the bytes of its codes, scales and outliers, from every segment in turn."""
    facts, table = PackedHeader(weight, 0)
    n, k, groups, block, blocks, chunks, section, flags, listed, segments, stack = op.Split(
        facts, num_outputs=11
    )
    flat = op.Unsqueeze(op.Reshape(ids, [-1]), [1])  # [T, 1]
    count = op.Shape(flat, start=0, end=1)
    each_group = op.Unsqueeze(op.Range(0, op.Squeeze(groups), 1), [1])
    each_block = op.Unsqueeze(op.Range(0, op.Squeeze(blocks), 1), [0])
    each_chunk = op.Unsqueeze(op.Range(0, op.Squeeze(chunks), 1), [0])
    values = op.Expand(0.0, op.Concat(count, k, axis=0))
    row = op.Identity(flat)
    for i in range(op.Squeeze(segments)):
        segment = op.Gather(table, i)
        (
            rows,
            strips,
            bits,
            has_zeros,
            kind,
            shift,
            half,
            codes,
            metas,
            code_bytes,
            meta_bytes,
            start,
        ) = op.Split(segment, num_outputs=12)
        inside = op.And(op.GreaterOrEqual(row, 0), op.Less(row, rows))
        held = op.Where(inside, row, 0)
        strip = held / 16
        lane = held - 16 * strip
        # [bits, T, groups, 4]
        vector = op.Range(0, op.Squeeze(bits), 1)
        vector = op.Reshape(64 * vector, [-1, 1, 1, 1])
        at = op.Unsqueeze(codes + strip * code_bytes + 4 * lane, [2])
        at = at + 64 * bits * each_group + [0, 1, 2, 3]
        vectors = op.Reshape(op.Gather(weight, vector + at), op.Concat(bits, [-1], axis=0))
        quads = PackedQuads(vectors, op.Squeeze(bits))
        quads = op.Reshape(quads, op.Concat([8], count, groups, [4], axis=0), allowzero=1)
        quads = op.Transpose(quads, perm=[1, 2, 0, 3])
        quads = op.Reshape(quads, op.Concat(count, 32 * groups, axis=0), allowzero=1)
        numbers = op.Cast(quads, to=1)

        meta = metas + strip * meta_bytes
        by_block = meta + 32 + lane + 16 * each_block  # [T, blocks]
        if op.Squeeze(op.Equal(kind, 0)):
            row_scale = op.Gather(weight, meta + 2 * lane + [0, 1])
            row_scale = op.Unsqueeze(PackedHalves(row_scale, op.Cast(0, to=9)), [1])
            scales = row_scale * op.Cast(op.Gather(weight, by_block), to=1)
        else:
            place = 2 * by_block - meta - 32
            stored = op.Gather(weight, op.Unsqueeze(place, [2]) + [0, 1])
            scales = PackedHalves(stored, op.Squeeze(op.Equal(kind, 1)))
            scales = op.Reshape(scales, op.Shape(place), allowzero=1)
        if op.Squeeze(op.Cast(has_zeros, to=9)):
            place = by_block - 32 - 16 * blocks + start
            middle = op.Cast(op.Gather(weight, place), to=1)
        else:
            middle = op.Expand(op.Pow(2.0, op.Cast(bits - 1, to=1)), op.Shape(scales))
        middle = middle - 0.5 * op.Cast(half, to=1)
        if op.Squeeze(op.Greater(chunks * (8 - bits), 0)):
            counts = op.Cast(op.Gather(weight, meta + start + 4 + each_chunk), to=7)
            starts = PackedWords(op.Gather(weight, meta + start + [0, 1, 2, 3]))
            item, lane_of, column, added = PackedOutliers(weight, listed, counts, starts)
            own = op.Equal(lane_of, op.Gather(op.Squeeze(lane, [1]), item))
            added = op.Where(own, added / op.Pow(2.0, op.Cast(shift, to=1)), 0.0)
            place = op.Concat(op.Unsqueeze(item, [1]), op.Unsqueeze(column, [1]), axis=1)
            whole = op.ScatterND(numbers, place, added, reduction="add")
        else:
            whole = op.Identity(numbers)
        # [T, blocks] → [T, blocks * block], of which there are K
        wide = op.Concat(count, blocks, block, axis=0)
        long = op.Concat(count, blocks * block, axis=0)
        middle = op.Reshape(op.Expand(op.Unsqueeze(middle, [2]), wide), long, allowzero=1)
        scales = op.Reshape(op.Expand(op.Unsqueeze(scales, [2]), wide), long, allowzero=1)
        whole = op.Slice(whole, [0], k, [1]) - op.Slice(middle, [0], k, [1])
        values = op.Where(inside, whole * op.Slice(scales, [0], k, [1]), values)
        row = row - rows
    values = PackedColumnsBack(values, weight, facts)
    return op.Reshape(values, op.Concat(op.Shape(ids), k, axis=0), allowzero=1)
