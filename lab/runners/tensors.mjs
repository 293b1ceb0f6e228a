// What Node and a browser make of a case: bytes become tensors of ONNX Runtime, and its tensors
// become bytes and what the answer says of them.

const ARRAYS = {
  float32: Float32Array,
  float16: Uint16Array,
  int64: BigInt64Array,
  int32: Int32Array,
  uint8: Uint8Array,
  int8: Int8Array,
  uint16: Uint16Array,
  bool: Uint8Array,
};

export const STRICT = { session: { disable_cpu_ep_fallback: '1' } };

/** `read` gives the ArrayBuffer of a file of the case. */
export async function readInputs(ort, inputs, read) {
  const feed = {};
  for (const [name, { dtype, shape, file }] of Object.entries(inputs)) {
    feed[name] = new ort.Tensor(dtype, new ARRAYS[dtype](await read(file)), shape);
  }
  return feed;
}

/** `write` keeps the bytes of a file of the answer. */
export async function writeOutputs(names, found, write) {
  const outputs = {};
  for (const [index, name] of names.entries()) {
    const tensor = found[name];
    const file = `output${index}.bin`;
    const { buffer, byteOffset, byteLength } = await tensor.getData();
    await write(file, new Uint8Array(buffer, byteOffset, byteLength));
    outputs[name] = { dtype: tensor.type, shape: [...tensor.dims], file };
  }
  return outputs;
}
