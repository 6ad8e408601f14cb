"use strict";

// Runs an exported model in this browser. What it knows of the model stands in manifest.json, and
// where the runtime comes from in page.json. Names and labels may hold anything: they are shown as
// text, never as markup.

const FORMAT_VERSION = 1;
const FRAME = 114; // grey around a picture that does not fill a detector's input
const TOP = 5; // classes that are shown
const SHEET = 16; // pictures of a generator
const PAUSE = 30; // milliseconds after which a long task lets the browser draw
const [PAD, START, END] = [0, 1, 2];
const HELD_OUT = "held_out/"; // folder of pictures to try
const SPECIAL = ["<pad>", "<s>", "</s>"];
const ARRAYS = { uint8: Uint8Array, int32: Int32Array, float32: Float32Array };
// A word with what is inside it, "don't" and "e.g"; a mark; a line's end.
const LETTER = String.raw`[\p{L}\p{N}_]`;
const WORDS = RegExp(
  String.raw`<${LETTER}+>|\n|'?${LETTER}+(?:['’.-]${LETTER}+)*|[^\p{L}\p{N}_\s]`,
  "gu"
);
// The smallest module with an instruction on 128 bits at once.
const SIMD = [
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15,
  253, 98, 11,
];

const site = {}; // page.json, manifest.json, the vocabulary, and the task
const chosen = { precision: "", device: "wasm" };
const loaded = { precision: "", device: "", ort: null, sessions: {}, times: [], warm: new Set() };
const slots = [null, null]; // pictures; only an embedder has a second one
const latents = []; // of a generator, two sets of random numbers
let stopped = true; // whether a text is to end

const at = (id) => document.getElementById(id);
const sum = (values) => values.reduce((a, b) => a + b, 0);
const mapped = (object, change) =>
  Object.fromEntries(Object.entries(object).map(([key, value]) => [key, change(value, key)]));

/** A sentence for the visitor. */
class Trouble extends Error {}

function element(kind, text = "", name = "") {
  return Object.assign(document.createElement(kind), { textContent: text, className: name });
}

function show(...ids) {
  for (const id of ids) at(id).hidden = false;
}

function tell(id, text) {
  Object.assign(at(id), { textContent: text, hidden: !text });
}

async function attempt(job) {
  try {
    await job();
  } catch (error) {
    console.error(error);
    tell("message", error instanceof Trouble ? error.message : `This failed: ${error.message}`);
  }
}

/** Do jobs one after the other; one that waits already is not done twice. */
const perform = (() => {
  const waiting = [];
  let active = false;
  return async (job) => {
    if (!waiting.includes(job)) waiting.push(job);
    stopped = true;
    if (active) return;
    active = true;
    at("result").setAttribute("aria-busy", "true");
    while (waiting.length) {
      tell("message", "");
      await attempt(waiting.shift());
    }
    active = false;
    at("result").setAttribute("aria-busy", "false");
  };
})();

// Files: what lies beside this page.

async function fetched(path, integrity) {
  try {
    const response = await fetch(path, integrity ? { integrity } : { cache: "no-cache" });
    if (response.ok) return response;
    throw new Error(response.status);
  } catch (error) {
    const doubt = integrity ? ", or is not the file that it should be" : "";
    throw new Trouble(`${path} cannot be loaded${doubt} (${error.message}).`);
  }
}

async function json(path) {
  const text = await (await fetched(path)).text();
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Trouble(`${path} is damaged (${error.message}): make the page anew.`);
  }
}

/** Fetch a file that the manifest names, which lies beside it or in a folder, and check it. */
function listed({ file, sha256 }, folder = "") {
  const bytes = String(sha256).match(/../g).map((pair) => parseInt(pair, 16));
  return fetched(addressOf(file, folder), `sha256-${btoa(String.fromCharCode(...bytes))}`);
}

function addressOf(file, folder) {
  if (typeof file !== "string" || !file || /[/\\]|^\./.test(file)) {
    throw new Trouble("manifest.json names a file that does not lie beside it.");
  }
  return folder + encodeURIComponent(file);
}

function checkManifest(manifest) {
  const version = manifest?.format_version;
  if (version > FORMAT_VERSION) {
    throw new Trouble(
      `manifest.json has format_version ${version}, this page reads ${FORMAT_VERSION}: make the ` +
        "page anew with the Tiffin that exported the model, or a newer one."
    );
  }
  const parts = manifest?.parts ? Object.values(manifest.parts) : [manifest];
  const whole = (part) => ["inputs", "outputs", "files"].every((key) => Array.isArray(part?.[key]));
  if (version !== FORMAT_VERSION || !parts.every(whole)) {
    throw new Trouble("manifest.json is no manifest of an export: make the page anew.");
  }
}

/** Return what can be run: precisions, and the entries of their files by part. */
function variants() {
  const { files, pairs, parts } = site.manifest;
  const named = (entry) =>
    parts
      ? mapped(parts, (part, name) => part.files.find(({ file }) => file === entry[name]))
      : { model: entry };
  return (pairs ?? files).map((one) => ({ precision: one.precision, files: named(one) }));
}

// Runtime: onnxruntime-web, its files held against their checksums.

const runtimes = {};

function runtime(device) {
  runtimes[device] ??= fetchRuntime(device);
  runtimes[device].catch(() => delete runtimes[device]); // the next try may reach it
  return runtimes[device];
}

async function fetchRuntime(device) {
  const { folder, local, files } = site.page.runtime;
  const [main, factory, binary] = await Promise.all(
    files[device].map(async ({ file, integrity }) => {
      const content = await (await fetched(folder + file, integrity)).arrayBuffer();
      if (file.endsWith(".wasm")) return content;
      // A page may import its own scripts; of others what was checked is handed on.
      if (local) return new URL(folder + file, document.baseURI).href;
      return URL.createObjectURL(new Blob([content], { type: "text/javascript" }));
    })
  );
  const ort = await import(main);
  ort.env.logLevel = "error";
  // More threads need headers that a plain web server does not send.
  Object.assign(ort.env.wasm, { numThreads: 1, wasmPaths: { mjs: factory }, wasmBinary: binary });
  return ort;
}

/** Load the chosen files, where they are not loaded yet. */
async function load() {
  const { precision } = chosen;
  const { files } = variants().find((one) => one.precision === precision);
  const device = precision === "int8" ? "wasm" : chosen.device; // the GPU has no such operators
  if (loaded.precision === precision && loaded.device === device) return;
  for (const session of Object.values(loaded.sessions)) await session.release();
  Object.assign(loaded, { precision: "", sessions: {}, times: [], warm: new Set() });
  try {
    loaded.ort = await runtime(device);
    for (const [part, entry] of Object.entries(files)) {
      const content = new Uint8Array(await (await listed(entry)).arrayBuffer());
      const options = { executionProviders: [device], logSeverityLevel: 3 };
      loaded.sessions[part] = await loaded.ort.InferenceSession.create(content, options);
    }
  } catch (error) {
    if (device === "wasm") throw error;
    return leaveGpu(error);
  }
  Object.assign(loaded, { precision, device });
  const bytes = sum(Object.values(files).map((entry) => entry.bytes));
  at("size").textContent = `${(bytes / 1e6).toFixed(2)} MB`;
  at("device").textContent = device === "wasm" ? "WebAssembly, one thread" : "WebGPU";
}

async function leaveGpu(error) {
  tell("note", `WebGPU does not run this file, so WebAssembly does (${error.message}).`);
  chosen.device = "wasm";
  at("devices").hidden = true;
  await load();
}

/**
 * Run a part of the model.
 * @param {Object} feeds by input `{ type, data, dims }`
 * @returns {Promise<Object>} the same by output
 */
async function run(feeds, part = "model") {
  const { Tensor } = loaded.ort;
  const given = mapped(feeds, ({ type, data, dims }) => new Tensor(type, data, dims));
  try {
    // The first run also builds what the others use, and would say nothing of the speed.
    if (!loaded.warm.has(part)) await loaded.sessions[part].run(given);
    loaded.warm.add(part);
    const start = performance.now();
    const results = await loaded.sessions[part].run(given);
    measured(performance.now() - start);
    return mapped(results, ({ type, data, dims }) => ({ type, data, dims }));
  } catch (error) {
    if (loaded.device === "wasm") throw error;
    await leaveGpu(error);
    return run(feeds, part);
  }
}

function measured(time) {
  const { times } = loaded;
  times.push(time);
  if (times.length > 50) times.shift();
  const middle = [...times].sort((a, b) => a - b)[times.length >> 1];
  const count = times.length > 1 ? `, the median of ${times.length}` : "";
  at("time").textContent = `${Number(middle.toPrecision(3))} ms per run${count}`;
}

// Pictures, read and resized as export/images.py does.

/** Round halves to the even neighbour, as Python does. */
function round(value) {
  const low = Math.floor(value);
  return value - low === 0.5 ? low + (low % 2) : Math.round(value);
}

async function decode(blob, name) {
  try {
    // Pillow, too, turns by EXIF and leaves colour profiles alone.
    const options = { imageOrientation: "from-image", colorSpaceConversion: "none" };
    return await createImageBitmap(blob, options);
  } catch {
    throw new Trouble(`${name} is no picture that this browser can read: choose another one.`);
  }
}

/** Return a picture's pixels, over white, as RGB. */
function pixelsOf(bitmap) {
  const { width, height } = bitmap;
  const result = new Uint8Array(3 * width * height);
  const strip = Math.max(1, Math.floor(2 ** 22 / width)); // phones allow small canvases only
  for (let top = 0; top < height; top += strip) {
    const size = { width, height: Math.min(strip, height - top) };
    const canvas = Object.assign(element("canvas"), size);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.fillStyle = "white";
    context.fillRect(0, 0, width, size.height);
    context.drawImage(bitmap, 0, -top);
    const { data } = context.getImageData(0, 0, width, size.height);
    let place = 3 * top * width;
    for (let i = 0; i < data.length; i += 4) {
      for (let c = 0; c < 3; c++) result[place++] = data[i + c];
    }
  }
  return result;
}

/** Return for each new pixel the first of the old ones and their weights: Pillow's triangle. */
function weights(from, to) {
  const scale = from / to;
  const support = Math.max(scale, 1);
  return Array.from({ length: to }, (_, index) => {
    const center = (index + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const last = Math.min(from, Math.trunc(center + support + 0.5));
    const place = (_, i) => Math.max(0, 1 - Math.abs((first + i - center + 0.5) * (1 / support)));
    const values = Array.from({ length: last - first }, place);
    const total = sum(values);
    return { first, values: values.map((value) => Math.trunc(0.5 + (value / total) * 2 ** 22)) };
  });
}

/** Resample the middle axis of `[outer, from, inner]` to `[outer, to, inner]`. */
function resampled(pixels, outer, from, to, inner) {
  if (from === to) return pixels;
  const result = new Uint8Array(outer * to * inner);
  weights(from, to).forEach(({ first, values }, index) => {
    for (let line = 0; line < outer; line++) {
      for (let i = 0; i < inner; i++) {
        let place = (line * from + first) * inner + i;
        let total = 2 ** 21;
        for (const value of values) {
          total += pixels[place] * value;
          place += inner;
        }
        result[(line * to + index) * inner + i] = total >> 22;
      }
    }
  });
  return result;
}

/** Return a picture as RGB of some size: bilinear with antialiasing, to Pillow's last bit. */
function resized(bitmap, width, height) {
  const pixels = pixelsOf(bitmap);
  const [lessWide, lessHigh] = [bitmap.width - width, bitmap.height - height];
  if (lessHigh > 0 && lessHigh > 2 * lessWide) {
    const low = resampled(pixels, 1, bitmap.height, height, 3 * bitmap.width);
    return resampled(low, height, bitmap.width, width, 3);
  }
  const narrow = resampled(pixels, bitmap.height, bitmap.width, width, 3);
  return resampled(narrow, 1, bitmap.height, height, 3 * width);
}

/** Return where a picture lies in an input that it fills with its sides in proportion. */
function frameOf(bitmap, height, width) {
  const scale = Math.min(height / bitmap.height, width / bitmap.width);
  const [high, wide] = [bitmap.height, bitmap.width].map((n) => Math.max(1, round(n * scale)));
  const [top, left] = [height - high, width - wide].map((rest) => Math.floor(rest / 2));
  return { scale, high, wide, top, left };
}

function framed(bitmap, width, height) {
  const { high, wide, top, left } = frameOf(bitmap, height, width);
  const pixels = resized(bitmap, wide, high);
  const result = new Uint8Array(3 * height * width).fill(FRAME);
  for (let y = 0; y < high; y++) {
    const row = pixels.subarray(3 * wide * y, 3 * wide * (y + 1));
    result.set(row, 3 * ((top + y) * width + left));
  }
  return result;
}

/** Return what the model is given for a picture. */
function fed(bitmap, fit = resized) {
  const [{ name, dtype, shape }] = site.manifest.inputs;
  const [height, width, channels] = shape.slice(1);
  let pixels = fit(bitmap, width, height);
  if (channels === 1) {
    const [r, g, b] = [0, 1, 2].map((c) => pixels.filter((_, i) => i % 3 === c));
    pixels = r.map((_, i) => round(0.299 * r[i] + 0.587 * g[i] + 0.114 * b[i]));
  }
  const data = ARRAYS[dtype].from(pixels);
  return { [name]: { type: dtype, data, dims: [1, height, width, channels] } };
}

/** Show pictures, as large as they are within reason; returns each one's context and scale. */
function draw(bitmaps, captions) {
  const drawn = bitmaps.map((bitmap, i) => {
    const canvas = element("canvas");
    const side = Math.max(bitmap.width, bitmap.height);
    const scale = side < 128 ? Math.ceil(256 / side) : Math.min(1, 1024 / side);
    canvas.width = Math.max(1, bitmap.width * scale);
    canvas.height = Math.max(1, bitmap.height * scale);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", captions[i]);
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = side >= 128;
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    const figure = element("figure");
    figure.append(canvas, element("figcaption", captions[i]));
    return { figure, context, scale };
  });
  at("pictures").replaceChildren(...drawn.map(({ figure }) => figure));
  return drawn;
}

// Text, cut and joined as export/text.py does.

function encode(vocabulary, text) {
  const { kind, tokens } = vocabulary;
  if (kind === "pieces") return encodePieces(vocabulary, text);
  const numbers = new Map(tokens.map((token, i) => [token, i]));
  if (SPECIAL.every((token, i) => tokens[i] === token)) SPECIAL.forEach((s) => numbers.delete(s));
  if (kind !== "characters") {
    const parts = kind === "words" ? text.match(WORDS) : text.split(/ +|(\n)/).filter(Boolean);
    return (parts ?? []).map((part) => numbers.get(part) ?? numbers.get("<unk>"));
  }
  const unknown = [...new Set(text)].filter((letter) => !numbers.has(letter)).sort();
  if (unknown.length) {
    const shown = unknown.slice(0, 10).map((letter) => JSON.stringify(letter)).join(" ");
    throw new Trouble(
      `The model has never seen ${shown}${unknown.length > 10 ? " and others" : ""}: it knows ` +
        `${numbers.size} characters, those of the text that it was trained on. Leave them out.`
    );
  }
  return [...text].map((letter) => numbers.get(letter));
}

/** Cut a text into SentencePiece's likeliest pieces: Viterbi's search over unigrams. */
function encodePieces({ tokens, scores }, text) {
  if (!scores) throw new Trouble("This model's vocabulary needs Python: run `tiffin translate`.");
  const known = new Map();
  tokens.forEach((token, i) => scores[i] !== null && known.set(token, i));
  const longest = Math.max(...tokens.map((token) => [...token].length));
  const unknown = Math.min(...scores.filter((score) => score !== null)) - 10;
  const words = text.normalize("NFKC").split(/\s+/).filter(Boolean);
  const letters = [...words.map((word) => `▁${word}`).join("")];
  const best = [{ score: 0 }];
  for (let end = 1; end <= letters.length; end++) {
    for (let begin = Math.max(0, end - longest); begin < end; begin++) {
      const id = known.get(letters.slice(begin, end).join(""));
      if (id === undefined && begin < end - 1) continue;
      const score = Math.fround(best[begin].score + Math.fround(scores[id] ?? unknown));
      if (!best[end] || score > best[end].score) best[end] = { score, begin, id };
    }
  }
  const found = [];
  const other = tokens.indexOf("<unk>");
  for (let end = letters.length; end > 0; end = best[end].begin) {
    const id = best[end].id ?? other;
    if (id !== other || found[0] !== other) found.unshift(id); // unknown letters in a row are one
  }
  return found;
}

function textOf({ kind, tokens }, numbers) {
  const parts = numbers.map((number) => tokens[number]);
  if (kind === "characters") return parts.join("");
  if (kind === "pieces") return parts.join("").replaceAll("▁", " ").trim();
  const [opening, closing] = kind === "words" ? ["([{\n", ".,;:!?)]}%\n"] : ["\n", "\n"];
  let text = "";
  parts.forEach((part, i) => {
    const near = opening.includes(parts[i - 1] ?? "\n") || closing.includes(part);
    text += near ? part : ` ${part}`;
  });
  return text;
}

const single = (token) => ({ type: "int32", data: Int32Array.of(token), dims: [1] });

/** Return the states and the memory that the next step is given. */
const handedOn = (kept, outputs) => mapped(kept, (old, name) => outputs[`next_${name}`] ?? old);

const argmax = (values) => values.reduce((best, value, i) => (value > values[best] ? i : best), 0);

/** Draw a token; below temperature 1 the likely gain, at 0 the likeliest is taken. */
function sampled(logits, temperature) {
  const best = argmax(logits);
  if (temperature === 0) return best;
  const shares = Array.from(logits, (value) => Math.exp((value - logits[best]) / temperature));
  let left = Math.random() * sum(shares);
  const found = shares.findIndex((share) => (left -= share) < 0);
  return found < 0 ? best : found;
}

// Tasks: whether a model is of one, its controls, and its answer.

const names = (tensors) => tensors.map(({ name }) => name);
const takesPicture = ({ inputs }) => inputs.length === 1 && Boolean(inputs[0].layout);
const labelOf = (index) => site.manifest.labels?.[index] ?? `class ${index}`;

const translation = {
  fits: ({ parts }) => parts?.encoder && parts.decoder,
  start: () => startText("A text to translate", "Translate"),
  async answer() {
    const { source, target } = site.vocabulary;
    const [, length] = site.manifest.parts.encoder.inputs[0].shape;
    const tokens = encode(source, at("source").value.trim());
    if (!tokens.length) throw new Trouble("There is nothing to translate: write a text.");
    if (tokens.length >= length) {
      const many = `${tokens.length} ${source.kind}`;
      throw new Trouble(`The text has ${many}, the model takes ${length - 1}: divide it.`);
    }
    const data = Int32Array.from({ length }, (_, i) => [...tokens, END][i] ?? PAD);
    let kept = await run({ source: { type: "int32", data, dims: [1, length] } }, "encoder");
    const said = [];
    for (let token = START; said.length < 2 * tokens.length + 12; said.push(token)) {
      const outputs = await run({ token: single(token), ...kept }, "decoder");
      const logits = outputs.logits.data;
      logits[PAD] = logits[START] = -Infinity;
      token = argmax(logits);
      if (token === END) break;
      kept = handedOn(kept, outputs);
    }
    at("answer").replaceChildren(element("p", textOf(target, said), "said"));
  },
};

const language = {
  fits: ({ states, inputs, outputs }) =>
    states && names(inputs).includes("token") && names(outputs).includes("logits"),
  refuses: () => !site.page.vocabulary && "Its vocabulary.json is missing.",
  start() {
    startText("What the text begins with", "Write");
    show("sampling");
  },
  async answer() {
    const { inputs, states } = site.manifest;
    const temperature = Number(at("temperature").value);
    const prompt = encode(site.vocabulary, at("source").value || "\n");
    if (!prompt.length) throw new Trouble("The text begins with nothing that the model knows.");
    const [left, tokens] = [[...prompt], [...prompt]];
    const zeros = inputs.filter(({ name }) => name in states).map(({ name, shape: [, units] }) => [
      name,
      { type: "float32", data: new Float32Array(units), dims: [1, units] },
    ]);
    let kept = Object.fromEntries(zeros);
    const said = element("p", "", "said");
    at("answer").replaceChildren(said);
    at("stop").hidden = stopped = false;
    let shown = performance.now();
    const length = prompt.length + Math.max(1, Number(at("length").value));
    try {
      while (tokens.length < length && !stopped) {
        const outputs = await run({ token: single(left.shift()), ...kept });
        kept = handedOn(kept, outputs);
        if (!left.length) {
          left.push(sampled(outputs.logits.data, temperature));
          tokens.push(left[0]);
        }
        if (performance.now() - shown < PAUSE) continue;
        said.textContent = textOf(site.vocabulary, tokens);
        await new Promise((resolve) => setTimeout(resolve));
        shown = performance.now();
      }
    } finally {
      at("stop").hidden = true;
    }
    said.textContent = textOf(site.vocabulary, tokens);
  },
};

const detection = {
  fits: ({ outputs }) =>
    ["boxes", "scores", "classes", "count"].every((name) => names(outputs).includes(name)),
  refuses: ({ inputs }) =>
    inputs.length > 1 && "This detector judges regions that somebody else proposes.",
  start() {
    startPicture();
    show("least");
  },
  async answer() {
    if (!slots[0]) return;
    this.found = await detect(slots[0]);
    this.show();
  },
  show() {
    const sure = this.found.filter(({ score }) => score >= Number(at("score").value));
    const [{ context, scale }] = draw([slots[0]], [`The picture, ${sure.length} found`]);
    for (const one of [...sure].reverse()) drawBox(context, scale, one); // the surest on top
    const list = shares(sure.map(({ box, score, kind }) => {
      const corners = box.map((value) => value.toFixed(1)).join(", ");
      return [score, `${labelOf(kind)} (y1, x1, y2, x2: ${corners})`];
    }));
    at("answer").replaceChildren(element("p", `${sure.length} found`, "verdict"), list);
  },
};

const embedding = {
  fits: (manifest) => takesPicture(manifest) && names(manifest.outputs).includes("embeddings"),
  start() {
    startPicture();
    show("slots");
  },
  async answer() {
    draw(slots.filter(Boolean), slots[0] ? ["The first", "The second"] : ["The second"]);
    if (!slots.every(Boolean)) {
      at("answer").replaceChildren(element("p", "Give two pictures, to compare them."));
      return;
    }
    const [first, second] = [await embed(slots[0]), await embed(slots[1])];
    const distance = Math.hypot(...first.map((value, i) => value - second[i]));
    const { threshold } = site.manifest.verification ?? {};
    const verdict = distance <= threshold ? "The same" : "Different";
    const told = threshold === undefined ? "" : `, up to ${threshold.toFixed(4)} is the same`;
    const lines = [element("p", `Distance ${distance.toFixed(4)}${told}`)];
    if (told) lines.unshift(element("p", verdict, "verdict"));
    at("answer").replaceChildren(...lines);
  },
};

const generation = {
  fits: ({ inputs: [input, ...others], outputs: [output] }) =>
    !others.length && input?.dtype === "float32" && output?.dtype === "uint8" &&
    output.shape.length === 4,
  start() {
    show("latent");
    drawLatents();
  },
  async answer() {
    const [{ name, shape }] = site.manifest.inputs;
    const share = Number(at("walk").value);
    const data = latents[0].map((value, i) => value + share * (latents[1][i] - value));
    const dims = [SHEET, ...shape.slice(1)];
    const outputs = await run({ [name]: { type: "float32", data, dims } });
    draw([paint(Object.values(outputs)[0])], [`${SHEET} pictures that the model made`]);
    at("answer").replaceChildren();
  },
};

const classification = {
  fits: (manifest) => takesPicture(manifest) && manifest.outputs.some((o) => o.shape.length === 2),
  start: () => startPicture(),
  async answer() {
    if (!slots[0]) return;
    const scores = await classify(slots[0]);
    const order = [...scores.keys()].sort((a, b) => scores[b] - scores[a]).slice(0, TOP);
    const [{ context }] = draw([slots[0]], ["The picture"]);
    context.canvas.classList.add("small"); // the classes are to be seen beside it
    at("answer").replaceChildren(shares(order.map((index) => [scores[index], labelOf(index)])));
  },
};

/** Return the probabilities of the classes; an output that is no distribution gets a softmax. */
async function classify(bitmap) {
  const outputs = await run(fed(bitmap));
  const flat = names(site.manifest.outputs.filter(({ shape }) => shape.length === 2));
  const name = ["probabilities", "logits"].find((one) => flat.includes(one)) ?? flat[0];
  const scores = [...outputs[name].data];
  const near = Math.abs(sum(scores) - 1) < 0.05 && scores.every((score) => score >= 0);
  if (name === "probabilities" || (name !== "logits" && near)) return scores;
  const top = scores[argmax(scores)];
  const raised = scores.map((score) => Math.exp(score - top));
  return raised.map((value) => value / sum(raised));
}

/** Return an embedding of length 1. */
async function embed(bitmap) {
  const { data } = (await run(fed(bitmap))).embeddings;
  const length = Math.hypot(...data);
  if (!(length > 0)) throw new Trouble("The model finds nothing in this picture to compare.");
  return Array.from(data, (value) => value / length);
}

/** Return what a detector finds, the surest first: boxes in the picture's own pixels. */
async function detect(bitmap) {
  const [height, width] = site.manifest.inputs[0].shape.slice(1);
  const { boxes, scores, classes, count } = await run(fed(bitmap, framed));
  const { scale, top, left } = frameOf(bitmap, height, width);
  const { units } = site.manifest.outputs.find(({ name }) => name === "boxes");
  const unit = units === "relative" ? [height, width] : [1, 1];
  return Array.from({ length: Number(count.data[0]) }, (_, i) => {
    const box = [0, 1, 2, 3].map((corner) => {
      const value = boxes.data[4 * i + corner] * unit[corner % 2];
      const found = (value - [top, left][corner % 2]) / scale;
      return Math.min(Math.max(found, 0), [bitmap.height, bitmap.width][corner % 2]);
    });
    return { box, score: scores.data[i], kind: Number(classes.data[i]) };
  });
}

function drawBox(context, scale, { box, score, kind }) {
  const [y1, x1, y2, x2] = box.map((value) => value * scale);
  const unit = Math.max(context.canvas.width, context.canvas.height) / 640;
  const size = Math.max(10, 18 * unit);
  const text = `${labelOf(kind)} ${(100 * score).toFixed(0)} %`;
  // Steps of the golden section keep neighbouring classes apart.
  context.fillStyle = context.strokeStyle = `hsl(${((kind * 0.618) % 1) * 360} 90% 55%)`;
  context.lineWidth = Math.max(1, 3 * unit);
  context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  context.font = `${size}px sans-serif`;
  context.fillRect(x1, y1, context.measureText(text).width + 4, 1.2 * size);
  context.fillStyle = "black";
  context.fillText(text, x1 + 2, y1 + size);
}

/** Return a list of shares, each with what it is of and a bar. */
function shares(entries) {
  const list = element("ol");
  for (const [share, text] of entries) {
    const [row, bar] = [element("li"), element("span", "", "bar")];
    bar.style.width = `${100 * share}%`;
    const percent = element("span", `${(100 * share).toFixed(1)} %`, "share");
    row.append(percent, element("span", text), bar);
    list.append(row);
  }
  return list;
}

/** Paint a batch of pictures as one sheet. */
function paint({ data, dims: [count, height, width, channels] }) {
  const side = Math.ceil(Math.sqrt(count));
  const canvas = Object.assign(element("canvas"), { width: side * width, height: side * height });
  const context = canvas.getContext("2d");
  for (let n = 0; n < count; n++) {
    const image = context.createImageData(width, height);
    const first = n * height * width * channels;
    image.data.forEach((_, i) => {
      const place = first + channels * Math.floor(i / 4) + (i % 4) % channels;
      image.data[i] = i % 4 === 3 ? 255 : data[place];
    });
    context.putImageData(image, (n % side) * width, Math.floor(n / side) * height);
  }
  return canvas;
}

function drawLatents() {
  const length = SHEET * site.manifest.inputs[0].shape.slice(1).reduce((a, b) => a * b, 1);
  const numbers = () => Float32Array.from({ length }, () => 2 * Math.random() - 1);
  latents.splice(0, 2, numbers(), numbers());
}

// Controls.

async function respond() {
  await load();
  await site.task.answer();
}

const answer = () => perform(respond);

/** Answer for a picture that a function gets. */
const give = (get) =>
  perform(async () => {
    const bitmap = await get();
    const slot = Number(document.querySelector("[name=slot]:checked").value);
    slots[slot] = bitmap;
    if (site.task === embedding) document.querySelector(`[name=slot][value="${1 - slot}"]`).click();
    await respond();
    // On a phone the answer may be out of sight; who draws or compares goes on above it.
    const goesOn = site.task === embedding || !at("drawing").hidden;
    if (!goesOn) at("answer").scrollIntoView({ block: "nearest" });
  });

const giveFile = (file) => file && give(() => decode(file, file.name || "What was dropped"));

function startPicture() {
  show("picture");
  at("file").addEventListener("change", () => giveFile(at("file").files[0]));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      at("drop").classList.toggle("over", kind === "dragover");
      if (kind === "drop") giveFile(event.dataTransfer.files[0]);
    });
  }
  at("camera").addEventListener("click", () => attempt(turnCamera));
  at("take").addEventListener("click", () => give(() => createImageBitmap(at("video"))));
  const { pictures = [], labels = [] } = site.manifest;
  list("sample", pictures, ({ file, label }, button, i) => {
    const image = element("img");
    image.src = addressOf(file, HELD_OUT);
    image.alt = `Held-out picture ${i + 1}${label ? `: ${label}` : ""}`;
    button.append(image);
    return () =>
      give(async () => decode(await (await listed(pictures[i], HELD_OUT)).blob(), file));
  });
  if (labels?.length === 10 && [..."0123456789"].every((d) => labels.includes(d))) startPad();
}

/** Offer things to try, each by a button; a function fills it and returns what it does. */
function list(kind, entries, fill) {
  at(`${kind}s`).hidden = !entries.length;
  entries.forEach((entry, i) => {
    const [item, button] = [element("li"), element("button")];
    button.type = "button";
    button.addEventListener("click", fill(entry, button, i));
    item.append(button);
    at(`${kind}-list`).append(item);
  });
}

async function turnCamera() {
  const video = at("video");
  tell("message", "");
  if (video.srcObject) {
    for (const track of video.srcObject.getTracks()) track.stop();
    video.srcObject = null;
  } else {
    if (!navigator.mediaDevices) {
      throw new Trouble("Browsers give a camera to pages at https and at localhost only.");
    }
    try {
      const wanted = { video: { facingMode: "environment" } };
      video.srcObject = await navigator.mediaDevices.getUserMedia(wanted);
    } catch (error) {
      throw new Trouble(
        error.name === "NotAllowedError"
          ? "The camera is not allowed: allow it for this page, or choose a file."
          : `There is no camera to be had (${error.message}): choose a file.`
      );
    }
    await video.play();
  }
  video.hidden = at("take").hidden = !video.srcObject;
  at("camera").textContent = video.srcObject ? "Close the camera" : "Open the camera";
}

function startPad() {
  show("drawing");
  const pad = at("pad");
  const context = pad.getContext("2d");
  const width = pad.width / 11;
  const pen = { strokeStyle: "white", lineWidth: width, lineCap: "round", lineJoin: "round" };
  const clear = () => {
    context.fillStyle = "black"; // the usual sets of digits are white on black
    context.fillRect(0, 0, pad.width, pad.height);
  };
  const stroke = (event) => {
    const begins = event.type === "pointerdown";
    if (!begins && !event.buttons) return;
    const box = pad.getBoundingClientRect();
    const scale = pad.width / box.width;
    if (begins) {
      pad.setPointerCapture(event.pointerId);
      context.beginPath();
    }
    Object.assign(context, pen);
    context.lineTo((event.clientX - box.left) * scale, (event.clientY - box.top) * scale);
    if (begins) context.closePath(); // a dot
    context.stroke();
  };
  for (const kind of ["pointerdown", "pointermove"]) pad.addEventListener(kind, stroke);
  pad.addEventListener("pointerup", () => give(() => createImageBitmap(pad)));
  at("clear").addEventListener("click", clear);
  clear();
}

function startText(label, go) {
  show("text");
  at("source-label").textContent = label;
  at("go").textContent = go;
  const { examples = [] } = site.manifest;
  at("source").value = examples[0] ?? "";
  list("example", examples, (example, button) => {
    button.textContent = example;
    return () => {
      at("source").value = example;
      answer();
    };
  });
  at("go").addEventListener("click", answer);
  at("stop").addEventListener("click", () => (stopped = true));
}

function startSettings() {
  for (const id of ["temperature", "walk", "score"]) {
    const said = document.querySelector(`output[for=${id}]`);
    const tellValue = () => (said.textContent = Number(at(id).value).toFixed(2));
    at(id).addEventListener("input", tellValue);
    tellValue();
  }
  at("walk").addEventListener("input", answer);
  at("score").addEventListener("input", () => detection.found && attempt(() => detection.show()));
  at("renew").addEventListener("click", () => {
    drawLatents();
    answer();
  });
  const switchTo = (setting, value) => () => {
    chosen[setting] = value;
    answer();
  };
  for (const { precision } of variants()) {
    const [label, radio] = [element("label"), element("input")];
    const checked = precision === chosen.precision;
    Object.assign(radio, { type: "radio", name: "precision", checked });
    radio.addEventListener("change", switchTo("precision", precision));
    label.append(radio, ` ${precision}`);
    at("precisions").append(label);
  }
  for (const radio of document.querySelectorAll("[name=device]")) {
    radio.addEventListener("change", switchTo("device", radio.value));
  }
}

async function findGpu() {
  // A step is too short for a graphics card: the way there and back takes longer.
  if (site.manifest.states || site.manifest.parts) return;
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  if (!adapter) return;
  // A graphics card that is but a program is slower than WebAssembly.
  if (!adapter.info?.isFallbackAdapter) chosen.device = "webgpu";
  document.querySelector(`[name=device][value=${chosen.device}]`).checked = true;
  show("devices");
}

function checkBrowser() {
  if (location.protocol === "file:") {
    throw new Trouble(
      "Browsers do not let a page read the files beside it from a disk: serve this folder, say " +
        "by `python -m http.server`, and open the address that it names."
    );
  }
  if (typeof WebAssembly === "undefined" || !WebAssembly.validate(Uint8Array.from(SIMD))) {
    throw new Trouble(
      "This browser lacks WebAssembly SIMD, which the runtime needs: take a newer one " +
        "(Chrome 91, Firefox 89, Safari 16.4 or later)."
    );
  }
}

function findTask(manifest) {
  const tasks = [translation, language, detection, embedding, generation, classification];
  const task = tasks.find((one) => one.fits(manifest));
  const why = task ? task.refuses?.(manifest) : "This page has no controls for such a model.";
  if (why) throw new Trouble(`${why} The README.md of its export says how to run it otherwise.`);
  return task;
}

async function start() {
  tell("loading", "The page is loading.");
  checkBrowser();
  [site.page, site.manifest] = await Promise.all([json("page.json"), json("manifest.json")]);
  checkManifest(site.manifest);
  const { name, description } = site.manifest;
  document.title = at("name").textContent = name;
  at("description").textContent = description ?? "";
  site.task = findTask(site.manifest);
  if (site.page.vocabulary) site.vocabulary = await json("vocabulary.json");
  chosen.precision = variants()[0]?.precision;
  if (!chosen.precision) throw new Trouble("manifest.json names no file: make the page anew.");
  await findGpu();
  site.task.start();
  startSettings();
  show("result", "facts");
  tell("loading", "The model is loading.");
  // A text is not written before it was asked for; without a picture there is no answer anyway.
  await (site.vocabulary ? perform(load) : answer());
}

attempt(start).then(() => tell("loading", ""));
