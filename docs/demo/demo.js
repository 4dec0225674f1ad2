"use strict";
const find = (query) => document.querySelector(query);
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const element = (tag, text, attributes = {}) => {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
};

// scikit-learn's digits are strokes in a field of 32 x 32 px, of which each 4 x 4 px are counted.
const FIELD = 32, BLOCK = 4, SIDE = FIELD / BLOCK;
const STROKE = 4.5; // px of that field
const { names, image_size: size, mean: [mean], std: [std] } = DATA.about;

// Grey values in [0, 1] of a square image as a canvas of its own size.
const paint = (canvas, values) => {
  canvas.width = canvas.height = Math.sqrt(values.length);
  const image = new ImageData(canvas.width, canvas.height);
  values.forEach((value, place) => image.data.fill(Math.round(255 * value), 4 * place, 4 * place + 3));
  values.forEach((_, place) => { image.data[4 * place + 3] = 255; });
  canvas.getContext("2d").putImageData(image, 0, 0);
};

// SIDE x SIDE values to size x size, bilinearly, as the test images are (align_corners=False).
const enlarged = (values) => {
  const places = Array.from({ length: size }, (_, to) => {
    const from = Math.max(0, (to + 0.5) * SIDE / size - 0.5);
    const first = Math.min(Math.floor(from), SIDE - 1);
    return [first, Math.min(first + 1, SIDE - 1), from - first];
  });
  const mixed = (a, b, share) => a + (b - a) * share;
  return Float32Array.from({ length: size * size }, (_, place) => {
    const [top, bottom, down] = places[Math.floor(place / size)];
    const [left, right, across] = places[place % size];
    const row = (y) => mixed(values[y * SIDE + left], values[y * SIDE + right], across);
    return mixed(row(top), row(bottom), down);
  });
};

// What was drawn, moved and scaled to fill the field as the digits of the data set do, and counted.
const counted = (strokes) => {
  const points = strokes.flat();
  const [xs, ys] = [points.map((point) => point[0]), points.map((point) => point[1])];
  const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const scale = (FIELD - STROKE) / Math.max(right - left, bottom - top, 1);
  const canvas = Object.assign(document.createElement("canvas"), { width: FIELD, height: FIELD });
  const context = canvas.getContext("2d");
  context.translate(FIELD / 2, FIELD / 2);
  context.scale(scale, scale);
  context.translate(-(left + right) / 2, -(top + bottom) / 2);
  draw(context, strokes, STROKE / scale);
  const alpha = context.getImageData(0, 0, FIELD, FIELD).data.filter((_, place) => place % 4 === 3);
  const values = new Float32Array(SIDE * SIDE);
  alpha.forEach((value, place) => {
    const [y, x] = [Math.floor(place / FIELD), place % FIELD].map((at) => Math.floor(at / BLOCK));
    values[y * SIDE + x] += value / (255 * BLOCK * BLOCK);
  });
  return values;
};

const draw = (context, strokes, width) => {
  Object.assign(context, { lineWidth: width, lineCap: "round", lineJoin: "round", strokeStyle: "#fff" });
  for (const stroke of strokes) {
    context.beginPath();
    context.moveTo(...stroke[0]);
    // A stroke of one point is a dot.
    for (const point of stroke.length > 1 ? stroke.slice(1) : stroke) context.lineTo(...point);
    context.stroke();
  }
};

const softmax = (logits) => {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
};

// A column for each model: its heading with the answer, and a cell for each class.
const columns = DATA.models.map((model) => {
  const head = element("th", model.name, { scope: "col" });
  const right = model.top1 === null ? "" : `; ${model.top1.toFixed(1)} % of ${DATA.tests} test images`;
  const answer = element("output", "?", { class: "answer", "aria-label": model.name });
  head.append(element("small", `${(model.bytes / 1000).toFixed(0)} kB${right}`), answer);
  find("#heads").append(head);
  return { answer, cells: names.map(() => element("td", "", { "data-share": "" })) };
});
names.forEach((name, place) => {
  const row = element("tr", "");
  row.append(element("th", name, { scope: "row" }), ...columns.map((column) => column.cells[place]));
  find("#classes").append(row);
});

const show = ({ answer, cells }, probabilities) => {
  const best = probabilities.indexOf(Math.max(...probabilities));
  answer.textContent = names[best];
  probabilities.forEach((probability, place) => {
    const share = `${(100 * probability).toFixed(1)} %`;
    cells[place].textContent = share;
    cells[place].dataset.share = probability;
    cells[place].style.setProperty("--share", share.replace(" ", ""));
  });
  return best;
};

const sessions = [];
let failed = false;
const classify = async (values) => {
  if (failed) return;
  const image = enlarged(values);
  paint(find("#seen"), image);
  const images = new ort.Tensor("float32", image.map((value) => (value - mean) / std), [1, 1, size, size]);
  const found = [];
  // One after the other: the runtime's memory is one.
  for (const session of sessions) found.push(softmax((await session.run({ images })).logits.data));
  const classes = new Set(found.map((probabilities, place) => show(columns[place], probabilities)));
  find("#state").textContent = classes.size === 1 ? "All name the same class." : "They differ.";
};
// Images are classified in the order in which they were given.
let last = Promise.resolve();
const next = (values) => {
  if (failed) return;
  find("#state").textContent = "Computing.";
  last = last.then(() => classify(values)).catch((error) => { find("#state").textContent = String(error); });
};

const pad = find("#pad");
const board = pad.getContext("2d");
let strokes = [];
const cleared = () => {
  strokes = [];
  board.clearRect(0, 0, pad.width, pad.height);
};
const at = (event) => {
  const place = pad.getBoundingClientRect();
  return [event.clientX - place.left, event.clientY - place.top].map((way) => way * pad.width / place.width);
};
pad.addEventListener("pointerdown", (event) => {
  pad.setPointerCapture(event.pointerId);
  strokes.push([at(event)]);
});
pad.addEventListener("pointermove", (event) => {
  if (!pad.hasPointerCapture(event.pointerId)) return;
  strokes.at(-1).push(at(event));
  draw(board, [strokes.at(-1).slice(-2)], 20);
});
pad.addEventListener("pointerup", () => { if (strokes.length) next(counted(strokes)); });
find("#clear").addEventListener("click", cleared);

for (const { label, pixels } of DATA.digits) {
  const values = pixels.map((value) => value / 16);
  const button = element("button", "", { type: "button", "aria-label": `a ${label} of the test set` });
  const canvas = element("canvas", "");
  paint(canvas, values);
  button.append(canvas);
  button.addEventListener("click", () => {
    cleared();
    next(values);
  });
  find("#picks").append(button);
}

// A page that lies on a disk may fetch nothing, so that the engine is here already, as text.
last = (async () => {
  const code = new Blob([bytes(DATA.engine.mjs)], { type: "text/javascript" });
  ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(code) };
  ort.env.wasm.wasmBinary = bytes(DATA.engine.wasm);
  ort.env.wasm.numThreads = 1; // more need a server that isolates the page
  for (const model of DATA.models) {
    sessions.push(await ort.InferenceSession.create(bytes(model.onnx), { executionProviders: ["wasm"] }));
  }
  find("#state").textContent = "Ready.";
})().catch((error) => {
  failed = true;
  find("#state").textContent = `The files cannot be loaded: ${error}`;
});
