// States on a browser's WebGPU device whose graph gives their new tokens alone: buffers of ours, which
// those are copied into without coming back to this process.

const ROUNDED_TO = 16; // bytes, as shaders may read a buffer in vectors of four values
const COPIED_BY = 4; // bytes, of offsets and sizes alike

export function canCopy(tokenBytes) {
  return tokenBytes % COPIED_BY === 0;
}

/** A tensor of zeros, as every new buffer is. */
export function zerosOnDevice(ort, dataType, dims, bytes) {
  const { COPY_DST, COPY_SRC, STORAGE } = globalThis.GPUBufferUsage;
  const size = Math.ceil(bytes / ROUNDED_TO) * ROUNDED_TO;
  const buffer = ort.env.webgpu.device.createBuffer({ size, usage: COPY_DST | COPY_SRC | STORAGE });
  return ort.Tensor.fromGpuBuffer(buffer, { dataType, dims, dispose: () => buffer.destroy() });
}

/** `copies` are [begin, end, at] in bytes, from one tensor to another. */
export function copyOnDevice(ort, from, to, copies) {
  const { device } = ort.env.webgpu;
  const encoder = device.createCommandEncoder();
  for (const [begin, end, at] of copies) {
    encoder.copyBufferToBuffer(from.gpuBuffer, begin, to.gpuBuffer, at, end - begin);
  }
  device.queue.submit([encoder.finish()]);
}
