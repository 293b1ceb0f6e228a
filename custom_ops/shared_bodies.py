"""What bodies call: packed weights go in, products, matrices and rows come out, in standard ops.

Nothing here depends on a weight's make-up: header and segment table are read as the graph runs, and
a weight is unpacked some strips at a time, never whole. docs/packed-weights.md has the layout.

Products stand in a loop, if need be of one turn: ONNX Runtime opens a graph in time that grows with
the square of the values beside each other in it, and a model has hundreds of products. It leaves a
loop alone; an If that it can decide it would take apart, and not survive that within a loop.

A loop carries one value: onnxscript has several in an order that changes from run to run.
"""

# The names are ONNX's, and onnxscript's values have no type that mypy could check.
# mypy: ignore-errors
# A Split gives more than is used: RUF059. `+` adds tensors: RUF005.
# ruff: noqa: RUF005, RUF059

from onnxscript import opset23 as op
from onnxscript import script
from onnxscript.values import Opset

from edgewright.custom_ops.packed_tables import (
    FACTS_ADD,
    FACTS_DIVIDE,
    FACTS_LEAST,
    FACTS_OF_BYTES,
    FACTS_TIMES,
    MIDDLES,
    NUMBERS,
    PIECE_FACTORS,
    PIECE_MASKS,
    PIECE_VECTORS,
    PIECES_BEGIN,
    PIECES_END,
    SCALE_FACTORS,
    SCALE_SUMMANDS,
    UNITS,
)
from edgewright.custom_ops.spec import DOMAIN, VERSION

_OURS = Opset(DOMAIN, VERSION)


@script(_OURS, default_opset=op)
def PackedWords(bytes):
    """uint8 [..., 4 n] → int64 [n, 1], from little-endian uint32."""
    digits = op.Cast(op.Reshape(bytes, [-1, 4]), to=7)
    return op.MatMul(digits, [[1], [256], [65536], [16777216]])


@script(_OURS, default_opset=op)
def PackedScales(bytes, kind):
    """uint8 [..., 1 or 2] → float32 [...]: codes, or of two bytes float16 or bfloat16, as `kind`
    says."""
    low = op.Cast(op.Gather(bytes, 0, axis=-1), to=1)
    high = op.Cast(op.Gather(bytes, -1, axis=-1), to=7) + 256 * kind
    factor = op.Gather(op.Constant(value=SCALE_FACTORS), high)
    summand = op.Gather(op.Constant(value=SCALE_SUMMANDS), high)
    return factor * op.Max(summand + low * 0.5, low)


@script(_OURS, default_opset=op)
def PackedTable(stored, at, groups, blocks, chunks):
    """uint8 [segments, 16] → int64 [segments, 13] rows, strips, bits, zeros, kind, bytes of a
    scale, shift, half, where the codes begin and the metas, bytes of a strip's codes and of its
    meta, what precedes the outliers in a meta."""
    digits = op.Cast(stored, to=7)
    number, bits, zeros, kind, shift, half, rest = op.Split(
        digits, op.Constant(value_ints=[4, 1, 1, 1, 1, 1, 7]), axis=1
    )
    rows = op.MatMul(number, [[1], [256], [65536], [16777216]])
    strips = (rows + 15) / 16
    width = op.Min(kind, 1) + 1
    code_bytes = 64 * groups * bits
    start = 16 * (2 + blocks * (width + zeros))
    meta_bytes = start + op.BitwiseAnd(chunks + 7, -4) * op.Min(chunks, 1)
    codes = strips * code_bytes
    total = codes + op.BitwiseAnd(strips * meta_bytes + 63, -64)
    begin = at + op.CumSum(total, 0, exclusive=1)
    return op.Concat(
        rows,
        strips,
        bits,
        zeros,
        kind,
        width,
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
    """[7] of a matrix: rows, columns, their block, groups of 32 columns, blocks, chunks of 64 that
    count outliers, where the outliers' list begins. Of its stored columns, the scales [K], ones
    where there are none, and which of the matrix's they are [K]. And [segments, 13] of its
    segments, as PackedTable has them."""
    digits = op.Cast(op.Slice(weight, [0], [64]), to=7)
    sums = op.MatMul(digits, op.Constant(value=FACTS_OF_BYTES)) + op.Constant(value=FACTS_ADD)
    facts = sums / op.Constant(value=FACTS_DIVIDE) * op.Constant(value=FACTS_TIMES)
    facts = op.Max(facts, op.Constant(value=FACTS_LEAST))
    (
        matrices,
        rows,
        columns,
        block,
        flags,
        flags_from_1,
        has_order,
        groups,
        all_chunks,
        scale_bytes,
        order_bytes,
        table_end,
        sections,
        total,
        list_bytes,
    ) = op.Split(facts, num_outputs=15)
    blocks = (columns + block - 1) / block
    chunks = all_chunks * op.Mod(flags_from_1, 2)
    listed = total - list_bytes
    section = sections + (listed - sections) / matrices * matrix
    has_scales = op.Mod(flags, 2)
    scaled = columns * has_scales
    stored = op.Reshape(op.Slice(weight, section, section + 2 * scaled), [-1, 2])
    scale = op.Concat(PackedScales(stored, 2), op.Expand(1.0, columns - scaled), axis=0)
    at = section + has_scales * scale_bytes
    ordered = columns * has_order  # all of them, or none
    words = PackedWords(op.Slice(weight, at, at + 4 * ordered))
    usual = op.Range(op.Squeeze(ordered), op.Squeeze(columns), 1)
    order = op.Concat(op.Squeeze(words, [1]), usual, axis=0)
    table = op.Reshape(op.Slice(weight, [64], table_end), [-1, 16])
    begin = at + has_order * order_bytes
    return (
        op.Concat(rows, columns, block, groups, blocks, chunks, listed, axis=0),
        scale,
        order,
        PackedTable(table, begin, groups, blocks, chunks),
    )


@script(_OURS, default_opset=op)
def PackedColumnsBack(values, scale, order):
    """Stored columns [R, K], times their scales → the matrix's."""
    places = op.ScatterElements(order, order, op.Range(0, op.Size(order), 1), axis=0)
    return op.Gather(values * scale, places, axis=1)


@script(_OURS, default_opset=op)
def PackedQuads(vectors, bits, unit):
    """uint8 [A, bits, n], vectors → float32 [A, 8 n], quads."""
    first = op.Gather(op.Constant(value=PIECES_BEGIN), bits)
    last = op.Gather(op.Constant(value=PIECES_END), bits)
    place = op.Slice(op.Constant(value=PIECE_VECTORS), first, last)
    mask = op.Slice(op.Constant(value=PIECE_MASKS), first, last)
    factor = op.Slice(op.Constant(value=PIECE_FACTORS), first, last) * unit
    pieces = op.BitwiseAnd(op.Gather(vectors, place, axis=1), mask)  # [A, layers * 8, n]
    values = op.DequantizeLinear(pieces, factor, axis=1)
    of_quads = op.Concat([0], (last - first) / 8, 8 * op.Shape(vectors, start=2), axis=0)
    return op.ReduceSum(op.Reshape(values, of_quads), [1], keepdims=0)


@script(_OURS, default_opset=op)
def PackedOutliers(weight, listed, counts, starts):
    """How many outliers the chunks of some strips have [S, chunks] and which the strips' first are
    [S, 1] → each one's place [n, 2], column and row, and its value [n]."""
    counts = op.Unsqueeze(op.Transpose(op.Cast(counts, to=7), perm=[1, 0]), [2])
    inside = op.NonZero(op.Less(op.Constant(value=NUMBERS), counts))
    of, number = op.Split(op.Transpose(inside, perm=[1, 0]), op.Constant(value_ints=[2, 1]), axis=1)
    firsts = op.CumSum(counts, 0, exclusive=1) + starts
    at = 2 * (op.GatherND(firsts, of) + number) + listed + [0, 1]
    entry = op.MatMul(op.Cast(op.Gather(weight, at), to=7), [[1], [256]])
    place = of * [64, 16] + op.Mod(entry / [16, 1], [64, 16])
    return place, op.Squeeze(op.Cast(entry / 1024 - 32, to=1), [1])


@script(_OURS, default_opset=op)
def PackedSteps(table, most):
    """The steps [S] at which segments begin, and how many there are, of at most so many strips."""
    steps = (op.Gather(table, 1, axis=1) + most - 1) / most
    return op.CumSum(steps, 0, exclusive=1), op.ReduceSum(steps, keepdims=0)


@script(_OURS, default_opset=op)
def PackedStrips(weight, facts, table, begins, most, step):
    """The strips of a step → whole numbers [blocks, block, R]; what is added to all of a block's
    [blocks, 1, R]; the scale of both [blocks, 1, R]; how many rows the segment has from here on."""
    n, k, block, groups, blocks, chunks, listed = op.Split(facts, num_outputs=7)
    begun = op.Cast(op.LessOrEqual(begins, step), to=6)
    which = op.ArgMax(begun, axis=0, keepdims=0, select_last_index=1)
    (
        rows,
        strips,
        bits,
        has_zeros,
        kind,
        width,
        shift,
        half,
        codes_at,
        metas_at,
        code_bytes,
        meta_bytes,
        start,
    ) = op.Split(op.Gather(table, which), num_outputs=13)
    first = (step - op.Gather(begins, which)) * most
    count = op.Min(most, strips - first)
    begin = codes_at + first * code_bytes
    stored = op.Slice(weight, begin, begin + count * code_bytes)
    vectors = op.Reshape(stored, op.Concat(count, groups, bits, [16, 4], axis=0))
    vectors = op.Transpose(vectors, perm=[1, 2, 4, 0, 3])  # [groups, bits, 4, S, 16]
    vectors = op.Reshape(vectors, op.Concat(groups, bits, [-1], axis=0))
    more = blocks * (block / 32) - groups
    vectors = op.Pad(vectors, op.Concat([0, 0, 0], more, [0, 0], axis=0))
    unit = op.Gather(op.Constant(value=UNITS), shift)
    plain = op.Reshape(PackedQuads(vectors, bits, unit), op.Concat(blocks * block, [-1], axis=0))

    begin = metas_at + first * meta_bytes
    stored = op.Slice(weight, begin, begin + count * meta_bytes)
    meta = op.Reshape(stored, op.Concat(count, meta_bytes, axis=0))
    # Without chunks there are no outliers, and any four bytes do for which of them is the first.
    starts_at = op.Min(start, meta_bytes - 4)
    counts_at = starts_at + 4
    starts = PackedWords(op.Slice(meta, starts_at, counts_at, [1]))
    counts = op.Slice(meta, counts_at, counts_at + chunks, [1])
    place, value = PackedOutliers(weight, listed, counts, starts)
    numbers = op.ScatterND(plain, place, value, reduction="add")
    numbers = op.Reshape(numbers, op.Concat(blocks, block, [-1], axis=0))

    by_row = op.Concat(blocks, [1, -1], axis=0)
    lanes = 16 * blocks
    by_block = op.Concat(count, blocks, [16, -1], axis=0)
    scale = op.Reshape(op.Slice(meta, [32], 32 + lanes * width, [1]), by_block)
    scale = op.Reshape(op.Transpose(PackedScales(scale, kind), perm=[1, 0, 2]), by_row)
    row_scale = PackedScales(op.Reshape(op.Slice(meta, [0], [32], [1]), [-1, 2]), 2)
    scales = scale * op.Where(op.Equal(kind, 0), row_scale, 1.0)
    zeros = op.Reshape(op.Slice(meta, start - lanes, start, [1]), by_block)
    zeros = op.Reshape(op.Transpose(zeros, perm=[1, 0, 2, 3]), by_row)
    middle = op.Gather(op.Constant(value=MIDDLES), bits)
    zeros = op.Where(op.Cast(has_zeros, to=9), op.Cast(zeros, to=1), middle)
    added = (op.Cast(half, to=1) * 0.5 - zeros) * unit
    return numbers, added, scales / unit, rows - 16 * first


@script(_OURS, default_opset=op)
def PackedRowsOfX(x, block, blocks):
    """[M, K] → whole numbers [blocks, M, block] and what one of each block's is [blocks, M, 1]; a
    block with a NaN or an infinity stands for NaN. No quotient rounds to more than 127."""
    padding = op.Concat([0, 0, 0], blocks * block - op.Shape(x, start=1), axis=0)
    shape = op.Concat(op.Shape(x, start=0, end=1), blocks, block, axis=0)
    padded = op.Reshape(op.Pad(x, padding), shape, allowzero=1)
    padded = op.Transpose(padded, perm=[1, 0, 2])
    peak = op.ReduceMax(op.Abs(padded), [2])
    least = op.Constant(value_float=7.888609052210118e-31)  # 2^-100
    whole = op.Round(padded * (127.0 / op.Max(peak, least)))
    scale = op.Where(op.Less(peak, least), 0.0, peak / 127.0)
    # A NaN or an infinity is no number of which 0 is made.
    return whole, scale + op.ReduceSum(padded * 0.0, [2])


@script(_OURS, default_opset=op)
def PackedMatMul(x, weight, matrix):
    """x [..., K] and matrix [N, K] of a packed weight → [..., N]. Sums within a block are exact:
    float32 holds them."""
    facts, scale, order, table = PackedHeader(weight, matrix)
    n, k, block, groups, blocks, chunks, listed = op.Split(facts, num_outputs=7)
    leading = op.Shape(x, end=-1)
    rows_of_x = op.ReduceProd(leading)
    flat = op.Reshape(x, op.Concat(rows_of_x, k, axis=0), allowzero=1)
    stored = op.Gather(flat, order, axis=1)
    whole, x_scale = PackedRowsOfX(stored * scale, block, blocks)
    x_sum = op.Cast(op.ReduceSum(whole, [2]), to=6)  # [blocks, M, 1]
    most = op.Max(262144 / op.Max(32 * groups, blocks * rows_of_x), 1)
    begins, steps = PackedSteps(table, most)
    y = op.ConstantOfShape(op.Concat(rows_of_x, [0], axis=0))
    for step in range(steps):
        numbers, added, scales, left = PackedStrips(weight, facts, table, begins, most, step)
        sums = op.Cast(op.MatMul(whole, numbers), to=6)  # [blocks, M, R]
        exact = op.Cast(sums + op.Cast(added, to=6) * x_sum, to=1)
        new = op.ReduceSum(exact * scales * x_scale, [0], keepdims=0)
        y = op.Concat(y, op.Slice(new, [0], left, [1]), axis=1)
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
    matrix = op.ConstantOfShape([0, 0])
    for _turn in range(1):
        facts, scale, order, table = PackedHeader(weight, 0)
        n, k, block, groups, blocks, chunks, listed = op.Split(facts, num_outputs=7)
        most = op.Max(8192 / groups, 1)
        begins, steps = PackedSteps(table, most)
        values = op.ConstantOfShape(op.Concat(k, [0], axis=0))
        for step in range(steps):
            numbers, added, scales, left = PackedStrips(weight, facts, table, begins, most, step)
            new = op.Reshape((numbers + added) * scales, op.Concat(blocks * block, [-1], axis=0))
            values = op.Concat(values, op.Slice(new, [0, 0], op.Concat(k, left, axis=0)), axis=1)
        matrix = PackedColumnsBack(op.Transpose(values, perm=[1, 0]), scale, order)
    return matrix


@script(_OURS, default_opset=op)
def PackedRows(ids, weight):
    """The rows that ids [...] name, of the only matrix, as float32 [..., K]. Each row of x gathers
    the bytes of its codes, scales and outliers, from every segment in turn."""
    facts, scale, order, table = PackedHeader(weight, 0)
    n, k, block, groups, blocks, chunks, listed = op.Split(facts, num_outputs=7)
    flat = op.Unsqueeze(op.Reshape(ids, [-1]), [1])  # [T, 1]
    count = op.Shape(flat, start=0, end=1)
    each_group = op.Range(0, op.Squeeze(groups), 1)
    each_block = op.Range(0, op.Squeeze(blocks), 1)
    each_chunk = op.Range(0, op.Squeeze(chunks), 1)
    values = op.Expand(0.0, op.Concat(count, k, axis=0))
    begins = op.CumSum(op.Gather(table, 0, axis=1), 0, exclusive=1)
    for i in range(op.Squeeze(op.Shape(table, start=0, end=1))):
        row = flat - op.Gather(begins, i)
        segment = op.Gather(table, i)
        (
            rows,
            strips,
            bits,
            has_zeros,
            kind,
            width,
            shift,
            half,
            codes_at,
            metas_at,
            code_bytes,
            meta_bytes,
            start,
        ) = op.Split(segment, num_outputs=13)
        inside = op.And(op.GreaterOrEqual(row, 0), op.Less(row, rows))
        held = op.Where(inside, row, 0)
        strip = held / 16
        lane = held - 16 * strip
        at = codes_at + strip * code_bytes + 4 * lane + 64 * bits * each_group  # [T, groups]
        vector = op.Unsqueeze(64 * op.Range(0, op.Squeeze(bits), 1), [1])
        vectors = op.Gather(weight, op.Reshape(at, [-1, 1, 1]) + vector + [0, 1, 2, 3])
        unit = op.Gather(op.Constant(value=UNITS), shift)
        long = op.Concat(count, 32 * groups, axis=0)
        numbers = op.Reshape(PackedQuads(vectors, bits, unit), long, allowzero=1)

        meta = metas_at + strip * meta_bytes
        starts_at = meta + op.Min(start, meta_bytes - 4)
        starts = PackedWords(op.Gather(weight, starts_at + [0, 1, 2, 3]))
        counts = op.Gather(weight, starts_at + 4 + each_chunk)
        place, added = PackedOutliers(weight, listed, counts, starts)
        column, among = op.Split(place, num_outputs=2, axis=1)
        item = among / 16
        own = op.Equal(op.Mod(among, 16), op.Gather(op.Squeeze(lane, [1]), item))
        added = op.Where(op.Squeeze(own, [1]), added, 0.0)
        place = op.Concat(item, column, axis=1)
        numbers = op.ScatterND(numbers, place, added, reduction="add")

        by_block = lane + 16 * each_block  # [T, blocks]
        place = op.Unsqueeze(meta + 32 + width * by_block, [2])
        scales = PackedScales(op.Gather(weight, place + op.Range(0, op.Squeeze(width), 1)), kind)
        row_scale = PackedScales(op.Gather(weight, meta + 2 * lane + [0, 1]), 2)
        scales = scales * op.Where(op.Equal(kind, 0), op.Unsqueeze(row_scale, [1]), 1.0) / unit
        zeros = op.Gather(weight, meta + start - 16 * blocks + by_block)
        middle = op.Gather(op.Constant(value=MIDDLES), bits)
        zeros = op.Where(op.Cast(has_zeros, to=9), op.Cast(zeros, to=1), middle)
        zeros = (zeros - 0.5 * op.Cast(half, to=1)) * unit
        # [T, blocks] → [T, blocks * block], of which there are K
        wide = op.Concat(count, blocks, block, axis=0)
        long = op.Concat(count, blocks * block, axis=0)
        zeros = op.Reshape(op.Expand(op.Unsqueeze(zeros, [2]), wide), long, allowzero=1)
        scales = op.Reshape(op.Expand(op.Unsqueeze(scales, [2]), wide), long, allowzero=1)
        whole = op.Slice(numbers, [0], k, [1]) - op.Slice(zeros, [0], k, [1])
        values = op.Where(inside, whole * op.Slice(scales, [0], k, [1]), values)
    values = PackedColumnsBack(values, scale, order)
    return op.Reshape(values, op.Concat(op.Shape(ids), k, axis=0), allowzero=1)
