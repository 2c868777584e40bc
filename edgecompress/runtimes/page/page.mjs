// One model in one page: takes requests from the server that it came from, one at a time, and posts
// the answers. Opened without "?peer=", it is the page that a visitor keeps open, and holds each
// model in a frame of its own.

// onnxruntime-web keeps its memory to itself, so it is noted here when it is made.
const memories = [];
WebAssembly.Memory = class extends WebAssembly.Memory {
  constructor(descriptor) {
    super(descriptor);
    memories.push(this);
  }
};

// Times per operator can only be had as what the runtime prints, one JSON event per line.
let printed = null;
for (const level of ['log', 'error', 'warn']) {
  const before = console[level].bind(console);
  console[level] = (...words) => (printed === null ? before(...words) : printed.push(words.join(' ')));
}

const root = new URL('..', import.meta.url);
const peer = new URL(location.href).searchParams.get('peer') ?? 'visitor';
const state = document.getElementById('state');

const arrays = {
  float32: Float32Array, float64: Float64Array, int8: Int8Array, uint8: Uint8Array,
  int16: Int16Array, uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array,
  int64: BigInt64Array, uint64: BigUint64Array, bool: Uint8Array,
  float16: globalThis.Float16Array ?? Uint16Array,
};

// A group of runs must last for so many ticks of the clock to be timed within 1 %.
const TICKS = 100;

let ort, session, feeds = {}, tick = 1, group = 1;

function clockTick() {
  let least = Infinity;
  for (let i = 0; i < 10; i++) {
    const start = performance.now();
    let now = start;
    while (now === start) now = performance.now();
    least = Math.min(least, now - start);
  }
  return least;
}

async function timed(runs) {
  const start = performance.now();
  for (let i = 0; i < runs; i++) await session.run(feeds);
  return performance.now() - start;
}

// Answers to requests, by name. What they return is JSON.
const answers = {
  async facts() {
    return {
      agent: navigator.userAgent,
      cores: navigator.hardwareConcurrency ?? null,
      memory_gb: navigator.deviceMemory ?? null,
    };
  },

  // Loads the runtime by way of a model that does nothing: what that costs is not the model's.
  async start({ threads, model }) {
    tick = clockTick();
    ort = await import(new URL('ort/ort.wasm.min.mjs', root));
    ort.env.wasm.wasmPaths = new URL('ort/', root).href;
    ort.env.wasm.numThreads = threads;
    ort.env.logLevel = 'error';
    const nothing = await ort.InferenceSession.create(new URL(model, root).href, {
      executionProviders: ['wasm'],
    });
    await nothing.release();
    return {
      version: ort.env.versions.web,
      threads: ort.env.wasm.numThreads,
      isolated: globalThis.crossOriginIsolated,
      clock_ms: tick,
    };
  },

  // A fixed amount of work, for this page's process to be told from others by its processor time.
  async work() {
    let sum = 0;
    for (let i = 0; i < 1e7; i++) sum = (Math.imul(sum, 31) + i) | 0;
    return { sum };
  },

  async feed({ inputs }) {
    feeds = {};
    for (const { name, type, dims, url } of inputs) {
      const bytes = await (await fetch(new URL(url, root))).arrayBuffer();
      feeds[name] = new ort.Tensor(type, new arrays[type](bytes), dims);
    }
    return {};
  },

  async load({ model, external, provider, options }) {
    const url = new URL(model, root).href;
    const externalData = external.map(({ path, url }) => ({ path, data: new URL(url, root).href }));
    const start = performance.now();
    session = await ort.InferenceSession.create(url, {
      ...options,
      executionProviders: [provider],
      ...(externalData.length ? { externalData } : {}),
    });
    const whole = performance.now() - start;
    // In an application this is the download; here it only tells how fast this server is.
    const fetched = [url, ...externalData.map(({ data }) => data)]
      .flatMap((each) => performance.getEntriesByName(each))
      .reduce((sum, entry) => sum + entry.duration, 0);
    return { load_ms: Math.max(0, whole - fetched), fetch_ms: fetched };
  },

  async run({ count, warm }) {
    let runs = 0;
    const of = (number) => ((runs += number), timed(number));
    if (warm && (await of(group)) < 20 * TICKS * tick) {
      // It may get faster while the browser compiles it better, so the fastest of some counts.
      while (Math.min(await of(group), await of(group), await of(group)) < TICKS * tick) group *= 2;
    }
    const wall_ms = [];
    const per = warm ? group : 1;
    for (let left = count; left > 0; left -= per) wall_ms.push((await of(per)) / per);
    return { wall_ms, group: per, runs };
  },

  async outputs() {
    const found = await session.run(feeds);
    const names = session.outputNames;
    const outputs = [];
    for (const [place, name] of names.entries()) {
      const { type, dims, data } = found[name];
      if (!(type in arrays)) throw new Error(`output ${name} is of type ${type}`);
      const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice();
      await fetch(new URL(`output/${peer}/${place}`, root), { method: 'POST', body: bytes });
      outputs.push({ name, type, dims });
    }
    return { outputs };
  },

  async memory() {
    const arena = {
      wasm_committed: memories.reduce((sum, memory) => sum + memory.buffer.byteLength, 0),
    };
    if (performance.memory) arena.js_heap = performance.memory.usedJSHeapSize;
    return { arena };
  },

  async end_profiling() {
    printed = [];
    session.endProfiling();
    const lines = printed;
    printed = null;
    return { lines };
  },

  async open({ id }) {
    const frame = document.createElement('iframe');
    frame.src = new URL(`?peer=${id}`, root);
    frame.id = `peer-${id}`;
    frame.hidden = true;
    document.body.append(frame);
    return {};
  },

  async close({ id }) {
    document.getElementById(`peer-${id}`)?.remove();
    return {};
  },
};

async function answer({ do: verb, ...rest }) {
  try {
    return await answers[verb](rest);
  } catch (error) {
    printed = null;
    // C++ exceptions arrive as bare numbers.
    return { error: String(error?.message ?? error), kind: error?.name ?? 'Error' };
  }
}

async function serve() {
  for (;;) {
    const response = await fetch(new URL(`next/${peer}`, root), { cache: 'no-store' });
    if (response.status === 204) continue; // nothing to do for a while: ask again
    if (!response.ok) return;
    const request = await response.json();
    state.textContent = `Measuring: ${request.do}. Please keep this page open and the screen on.`;
    const body = JSON.stringify(await answer(request));
    await fetch(new URL(`answer/${peer}/${request.number}`, root), { method: 'POST', body });
    state.textContent = 'Waiting. Please keep this page open and the screen on.';
  }
}

navigator.wakeLock?.request('screen').catch(() => {}); // phones that refuse just need to be watched
serve()
  .catch(() => {}) // the server is gone: that is an end, too
  .finally(() => {
    document.querySelectorAll('iframe').forEach((frame) => frame.remove());
    state.textContent = 'Done. You can close this page.';
  });
