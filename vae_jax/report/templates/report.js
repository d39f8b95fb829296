// The page can be read without this script. It adds what a still page cannot show: the image behind
// a point of the latent map, the images of a cell of the confusion matrix, the decoding of any code.

const element = (id) => document.getElementById(id);

// --- numbers from the page ----------------------------------------------------------------------

function halfToNumber(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1024 + fraction) * 2 ** (exponent - 25);
}

/** Little-endian half-precision numbers of a base64 text. */
function readHalves(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const numbers = new Float32Array(bytes.length / 2);
  for (let i = 0; i < numbers.length; i++) numbers[i] = halfToNumber(view.getUint16(2 * i, true));
  return numbers;
}

function readData() {
  const text = element("explorer-data");
  return text ? JSON.parse(text.textContent) : null;
}

const data = readData();

// --- the decoder --------------------------------------------------------------------------------

const sigmoid = (a) => 1 / (1 + Math.exp(-a));
const softplus = (a) => Math.max(a, 0) + Math.log1p(Math.exp(-Math.abs(a)));
const clip = (v) => Math.min(Math.max(v, 0), 1);
// The same as in vae_jax/nets/mlp.py; "gelu" is the tanh approximation there too.
const ACTIVATIONS = {
  identity: (a) => a,
  relu: (a) => Math.max(a, 0),
  tanh: Math.tanh,
  silu: (a) => a * sigmoid(a),
  gelu: (a) => 0.5 * a * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (a + 0.044715 * a ** 3))),
  softplus,
};

/** h W + b for a kernel W of inputs x outputs, in the order of its rows. */
function affine(layer, h, kernel, bias) {
  const out = Float32Array.from(bias);
  for (let i = 0; i < layer.inputs; i++) {
    const start = i * layer.outputs;
    for (let j = 0; j < layer.outputs; j++) out[j] += h[i] * kernel[start + j];
  }
  return out;
}

/** A transposed convolution of stride 2: cell (r, c) adds its kernel around (2r, 2c). */
function doubled(layer, h, kernel, bias) {
  const { rows, columns, inputs, outputs, kernel: size } = layer;
  const before = Math.floor((size - 2) / 2); // kernel cells above and left of (2r, 2c)
  const out = new Float32Array(4 * rows * columns * outputs);
  for (let i = 0; i < out.length; i++) out[i] = bias[i % outputs];
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      const cell = h.subarray((r * columns + c) * inputs, (r * columns + c + 1) * inputs);
      for (let a = 0; a < size; a++) {
        for (let b = 0; b < size; b++) {
          const y = 2 * r + a - before;
          const x = 2 * c + b - before;
          if (y < 0 || x < 0 || y >= 2 * rows || x >= 2 * columns) continue;
          addProduct(out, (y * 2 * columns + x) * outputs, cell, kernel, (a * size + b) * outputs);
        }
      }
    }
  }
  return out;

  /** out[o] += Σ_i cell[i] kernel[…, o, i]; a kernel is size x size x outputs x inputs. */
  function addProduct(target, place, cell, numbers, first) {
    for (let o = 0; o < outputs; o++) {
      let sum = 0;
      const start = (first + o) * inputs;
      for (let i = 0; i < inputs; i++) sum += cell[i] * numbers[start + i];
      target[place + o] += sum;
    }
  }
}

function activated(h, name) {
  if (name === "gated") {
    const half = h.length / 2;
    return Float32Array.from({ length: half }, (_, i) => h[i] * sigmoid(h[half + i]));
  }
  return h.map(ACTIVATIONS[name]);
}

/** A bound that is v itself within one of [-7, 7]: distributions.soft_clip of a log-scale. */
function softClip(v) {
  if (v > 6) return 7 - 1 / (v - 5);
  if (v < -6) return -7 + 1 / (-5 - v);
  return v;
}

/** The mean of a logistic clipped to [-1, 1], as a grey level in [0, 1]. */
function logisticMean(mu, logScale) {
  const s = Math.exp(softClip(logScale));
  return (s * (softplus((mu + 1) / s) - softplus((mu - 1) / s))) / 2;
}

/** The mean of channel c of the pixel whose outputs begin at ``place``. */
function pixelMean(out, place, c) {
  const { mean, shape } = data.decoder;
  const value = out[place + c];
  if (mean === "logistic") return logisticMean(value, out[place + shape[2] + c]);
  if (mean === "sigmoid") return sigmoid(value);
  return value;
}

/** What the layers make of a code: rows x columns x outputs of data.decoder.grid. */
function runLayers(code) {
  const weights = readWeights();
  let h = Float32Array.from(code);
  let place = 0;
  for (const layer of data.decoder.layers) {
    const run = layer.kind === "up" ? doubled : affine;
    const cells = layer.kind === "up" ? layer.kernel ** 2 : 1;
    const size = cells * layer.inputs * layer.outputs;
    const kernel = weights.subarray(place, place + size);
    const bias = weights.subarray(place + size, place + size + layer.outputs);
    place += size + layer.outputs;
    h = activated(run(layer, h, kernel, bias), layer.activation);
  }
  return h;
}

/** The weights, read at the first use: half a million numbers take some ten milliseconds. */
function readWeights() {
  const { decoder } = data;
  if (typeof decoder.weights === "string") decoder.weights = readHalves(decoder.weights);
  return decoder.weights;
}

/** The mean of p(x|z) as H x W x C numbers in [0, 1]. */
function decode(code) {
  const [height, width, channels] = data.decoder.shape;
  const [, columns, outputs] = data.decoder.grid;
  const out = runLayers(code);
  const image = new Float32Array(height * width * channels);
  for (let i = 0; i < image.length; i++) {
    const pixel = Math.floor(i / channels);
    const place = (Math.floor(pixel / width) * columns + (pixel % width)) * outputs;
    image[i] = clip(pixelMean(out, place, i % channels));
  }
  return image;
}

let codes = null; // of all images, read at the first use

/** The code of image i. */
function codeOf(i) {
  codes ??= readHalves(data.codes);
  const size = codes.length / data.count;
  return codes.slice(i * size, (i + 1) * size);
}

// --- images -------------------------------------------------------------------------------------

function loadSprite(uri) {
  const image = new Image();
  image.src = uri;
  return image;
}

const sprites = {};

/** Call ``draw`` with the sprite of this name once it is decoded. */
function withSprite(name, draw) {
  sprites[name] ??= loadSprite(data[name]);
  sprites[name].decode().then(() => draw(sprites[name]));
}

/** Draw tile i of a sprite, a pixel for a pixel; the style sheet enlarges it. */
function drawTile(canvas, name, i) {
  canvas.width = data.width;
  canvas.height = data.height;
  canvas.dataset.image = i;
  withSprite(name, (sprite) => {
    if (Number(canvas.dataset.image) !== i) return; // another image was asked for meanwhile
    const x = (i % data.columns) * data.width;
    const y = Math.floor(i / data.columns) * data.height;
    const context = canvas.getContext("2d");
    context.drawImage(sprite, x, y, data.width, data.height, 0, 0, data.width, data.height);
  });
}

/** Draw an image of numbers in [0, 1]; three channels are RGB, of others the mean is drawn. */
function drawNumbers(canvas, image) {
  const [height, width, channels] = data.decoder.shape;
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  for (let p = 0; p < width * height; p++) {
    const values = image.subarray(p * channels, (p + 1) * channels);
    const mean = values.reduce((sum, v) => sum + v, 0) / channels;
    for (let c = 0; c < 3; c++) {
      const value = channels === 3 ? values[c] : mean;
      pixels.data[4 * p + c] = Math.round(255 * value);
    }
    pixels.data[4 * p + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
}

function drawReconstruction(canvas, i) {
  if (data.decoder) drawNumbers(canvas, decode(codeOf(i)));
  else if (data.reconstructions) drawTile(canvas, "reconstructions", i);
}

// --- words --------------------------------------------------------------------------------------

const className = (y) => data.classes[y] ?? String(y);
const labelOf = (i) => (data.labels ? data.labels[i] : -1);
const percent = (share) => `${(100 * share).toFixed(1)} %`;

function isError(i) {
  return Boolean(data.predicted) && labelOf(i) >= 0 && data.predicted[i] !== labelOf(i);
}

function describe(i) {
  const words = [`Test image ${data.rows[i].toLocaleString("en")}`];
  if (labelOf(i) >= 0) words.push(`true class ${className(labelOf(i))}`);
  if (data.predicted) {
    const confidence = percent(data.confidence[i]);
    words.push(`predicted ${className(data.predicted[i])}, confidence ${confidence}`);
  }
  return words.join("; ");
}

// --- the latent map -----------------------------------------------------------------------------

const map = { selected: 0, hidden: new Set(), onlyErrors: false, plane: null, limits: null };

function isVisible(i) {
  if (map.onlyErrors && !isError(i)) return false;
  return !map.hidden.has(labelOf(i));
}

/** The place of point i on the canvas, in CSS pixels. */
function placeOf(i) {
  const { limits, plane } = map;
  const { x, y } = plane;
  const canvas = element("map-canvas");
  const margin = 10;
  const across = (x[i] - limits[0]) / (limits[1] - limits[0]);
  const up = (y[i] - limits[2]) / (limits[3] - limits[2]);
  return [
    margin + across * (canvas.clientWidth - 2 * margin),
    canvas.clientHeight - margin - up * (canvas.clientHeight - 2 * margin),
  ];
}

/** The least and the greatest number; one more where they are equal. */
function span(numbers) {
  const low = Math.min(...numbers);
  const high = Math.max(...numbers);
  return [low, high > low ? high : low + 1];
}

const colourOf = (y) => (y < 0 ? "#88919c" : data.colours[y % data.colours.length]);

function drawMap() {
  const canvas = element("map-canvas");
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(canvas.clientWidth * scale);
  canvas.height = Math.round(canvas.clientHeight * scale);
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  const radius = data.count > 600 ? 2.5 : 4;
  for (let i = data.count - 1; i >= 0; i--) { // errors come first in the data and lie on top
    if (!isVisible(i)) continue;
    drawDot(context, placeOf(i), radius, colourOf(labelOf(i)));
  }
  drawRing(context, placeOf(map.selected), radius + 4);
}

function drawDot(context, [x, y], radius, colour) {
  context.globalAlpha = 0.85;
  context.fillStyle = colour;
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
}

function drawRing(context, [x, y], radius) {
  context.globalAlpha = 1;
  context.strokeStyle = getComputedStyle(document.body).color; // light or dark, as the page is
  context.lineWidth = 2;
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.stroke();
}

/** The visible point that is nearest to (x, y) by ``distance``; -1 where there is none. */
function nearest(distance) {
  let best = -1;
  let least = Infinity;
  for (let i = 0; i < data.count; i++) {
    const d = isVisible(i) ? distance(...placeOf(i)) : Infinity;
    if (d < least) {
      least = d;
      best = i;
    }
  }
  return best;
}

function select(i) {
  if (i < 0) return;
  map.selected = i;
  drawTile(element("map-image"), "images", i);
  drawReconstruction(element("map-reconstruction"), i);
  element("map-text").textContent = `${describe(i)}.`;
  element("map-text").classList.toggle("error", isError(i));
  drawMap();
}

function selectAt(event) {
  const box = element("map-canvas").getBoundingClientRect();
  const x = event.clientX - box.left;
  const y = event.clientY - box.top;
  select(nearest((px, py) => Math.hypot(px - x, py - y)));
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** An arrow goes to the nearest point that way; a step aside counts double. */
function selectByKey(event) {
  const arrow = ARROWS[event.key];
  if (!arrow) return;
  event.preventDefault();
  const [x, y] = placeOf(map.selected);
  select(
    nearest((px, py) => {
      const along = (px - x) * arrow[0] + (py - y) * arrow[1];
      const aside = Math.abs((px - x) * arrow[1]) + Math.abs((py - y) * arrow[0]);
      return along > 0.01 ? along + 2 * aside : Infinity;
    }),
  );
}

function makeButton(text, press) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  button.addEventListener("click", () => press(button));
  return button;
}

/** A button that is pressed or not, and says so. */
function makeToggle(text, pressed, change) {
  const button = makeButton(text, () => {
    const now = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(now));
    change(now);
    drawMap();
  });
  button.setAttribute("aria-pressed", String(pressed));
  return button;
}

function addClassToggles() {
  const classes = [...new Set(data.labels ?? [])].filter((y) => y >= 0).sort((a, b) => a - b);
  for (const y of classes.length <= 20 ? classes : []) {
    const button = makeToggle(className(y), true, (on) => {
      if (on) map.hidden.delete(y);
      else map.hidden.add(y);
    });
    button.style.setProperty("--colour", colourOf(y));
    button.className = "class";
    element("map-classes").append(button);
  }
  if (data.predicted && data.labels) {
    const errors = makeToggle("Errors only", false, (on) => {
      map.onlyErrors = on;
    });
    element("map-classes").append(errors);
  }
}

function startMap() {
  element("map-still").hidden = true;
  element("map").hidden = false;
  showPlane(data.plane, data.plane.axes.join(", "));
  addClassToggles();
  const canvas = element("map-canvas");
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerType === "mouse") selectAt(event); // a finger scrolls; it selects by a tap
  });
  canvas.addEventListener("pointerdown", selectAt);
  canvas.addEventListener("keydown", selectByKey);
  new ResizeObserver(drawMap).observe(canvas);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMap);
  element("map-reconstruction").parentElement.hidden = !data.decoder && !data.reconstructions;
  select(0);
  if (data.features) addPlanes();
}

function showPlane(plane, words) {
  map.plane = plane;
  map.limits = [...span(plane.x), ...span(plane.y)];
  element("map-axes").textContent = words;
}

// --- t-SNE beside PCA ---------------------------------------------------------------------------

const tsne = { state: null, chosen: false, running: false };

function showTsne() {
  const { step, points } = tsne.state;
  const plane = { x: points.filter((_, i) => i % 2 === 0), y: points.filter((_, i) => i % 2) };
  const words = tsne.running
    ? `t-SNE, step ${step} of ${TSNE.steps}`
    : `t-SNE, perplexity ${TSNE.perplexity}, ${step} steps: neighbours are alike; ` +
      "distances between groups mean little";
  showPlane(plane, words);
  drawMap();
}

/** Steps for 50 ms, then the page's turn; stops after TSNE.seconds. */
function runTsne(end) {
  const until = performance.now() + 50;
  while (tsne.state.step < TSNE.steps && performance.now() < until) stepTsne(tsne.state);
  tsne.running = tsne.state.step < TSNE.steps && performance.now() < end;
  if (tsne.chosen) showTsne();
  if (tsne.running) setTimeout(() => runTsne(end), 0);
}

function chooseTsne() {
  tsne.chosen = true;
  if (tsne.state) {
    showTsne();
    return;
  }
  tsne.state = startTsne(readHalves(data.features), data.plane);
  runTsne(performance.now() + 1000 * TSNE.seconds);
}

function choosePca() {
  tsne.chosen = false;
  showPlane(data.plane, data.plane.axes.join(", "));
  drawMap();
}

/** Two buttons, of which one is pressed. */
function addPlanes() {
  const buttons = [];
  for (const [name, choose] of [["PCA", choosePca], ["t-SNE", chooseTsne]]) {
    const button = makeButton(name, () => {
      for (const one of buttons) one.setAttribute("aria-pressed", String(one === button));
      choose();
    });
    button.setAttribute("aria-pressed", String(name === "PCA"));
    buttons.push(button);
  }
  element("map-planes").append(...buttons);
  element("map-planes").hidden = false;
}

// --- the images of a cell of the confusion matrix -----------------------------------------------

const MOST = 60; // images of a cell at once

function showCell(y, predicted) {
  const every = [...Array(data.count).keys()];
  const images = every.filter((i) => labelOf(i) === y && data.predicted[i] === predicted);
  const few = images.slice(0, MOST);
  const words = `true class ${className(y)}, predicted ${className(predicted)}`;
  const count = `${few.length} of the ${images.length} images in this page`;
  element("cell-text").textContent = `${count}: ${words}.`;
  element("cell-images").replaceChildren(...few.map(makeTile));
  element("cell").hidden = false;
}

/** A small image that selects its point of the map. */
function makeTile(i) {
  const canvas = document.createElement("canvas");
  drawTile(canvas, "images", i);
  const button = makeButton("", () => select(i));
  button.className = "tile";
  button.setAttribute("aria-label", describe(i));
  button.title = describe(i);
  button.append(canvas);
  const item = document.createElement("li");
  item.append(button);
  return item;
}

/** Each count of the matrix becomes a button. */
function startConfusion() {
  document.querySelectorAll("table.matrix tbody tr").forEach((row, y) => {
    row.querySelectorAll("td[style]").forEach((cell, predicted) => {
      const count = cell.textContent;
      if (count === "0") return;
      const button = makeButton(count, () => showCell(y, predicted));
      const words = `${count} images of ${className(y)} predicted ${className(predicted)}`;
      button.setAttribute("aria-label", words);
      cell.replaceChildren(button);
    });
  });
}

// --- sliders over z, and a walk between two images ----------------------------------------------

let code = null; // of the sliders' image

function showCode() {
  drawNumbers(element("code-image"), decode(code));
}

function addSlider({ dim, low, high }) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  const output = document.createElement("output");
  label.append(`z ${dim + 1} `, output, input);
  Object.assign(input, { id: `z-${dim}`, type: "range", min: low, max: high, step: "any" });
  label.htmlFor = input.id; // or it would be the label of its first part, the output
  input.dataset.dim = dim;
  input.addEventListener("input", () => {
    code[dim] = Number(input.value);
    output.textContent = code[dim].toFixed(2);
    showCode();
  });
  element("sliders").append(label);
}

/** Put a code into the sliders and the picture. */
function setCode(numbers) {
  code = Float32Array.from(numbers);
  for (const input of element("sliders").querySelectorAll("input")) {
    const value = code[Number(input.dataset.dim)];
    input.value = value;
    input.previousElementSibling.textContent = value.toFixed(2);
  }
  showCode();
}

/** A draw of N(0, 1) by Box and Muller. */
function normal() {
  const radius = Math.sqrt(-2 * Math.log(1 - Math.random()));
  return radius * Math.cos(2 * Math.PI * Math.random());
}

function startSliders() {
  element("code").hidden = false;
  if (element("traversals-still")) element("traversals-still").hidden = true;
  data.sliders.forEach(addSlider);
  const zeros = codeOf(0).fill(0);
  element("code-buttons").append(
    makeButton("Code of the image selected on the map", () => setCode(codeOf(map.selected))),
    makeButton("All zero", () => setCode(zeros)),
    makeButton("A draw from N(0, 1)", () => setCode(zeros.map(normal))),
  );
  setCode(codeOf(0));
}

const walk = [0, 1]; // the two images

function showWalk() {
  const t = Number(element("walk-place").value);
  const [a, b] = walk.map(codeOf);
  drawNumbers(element("walk-image"), decode(a.map((v, d) => (1 - t) * v + t * b[d])));
  element("walk-text").textContent = `${percent(t)} of the way`;
}

function setEnd(end, i) {
  walk[end] = i;
  const canvas = element(`walk-end-${end}`);
  drawTile(canvas, "images", i);
  canvas.setAttribute("aria-label", describe(i));
  showWalk();
}

function startWalk() {
  element("walk-place").addEventListener("input", showWalk);
  const other = [...Array(data.count).keys()].findIndex((i) => labelOf(i) !== labelOf(0));
  setEnd(0, 0);
  setEnd(1, Math.max(other, 0));
  for (const end of [0, 1]) {
    element(`walk-take-${end}`).addEventListener("click", () => setEnd(end, map.selected));
  }
}

// --- sliders over images that Python has computed -----------------------------------------------

/** Copy tile i of a sprite of ``columns`` tiles in a row to (x, y) of a canvas. */
function copyTile(context, sprite, columns, i, x, y) {
  const { width, height } = data;
  const left = (i % columns) * width;
  const top = Math.floor(i / columns) * height;
  context.drawImage(sprite, left, top, width, height, x, y, width, height);
}

function addStrip({ dim, kl, values }, row) {
  const figure = document.createElement("figure");
  const canvas = document.createElement("canvas");
  const label = document.createElement("label");
  const input = document.createElement("input");
  const output = document.createElement("output");
  const middle = (values.length - 1) / 2;
  Object.assign(canvas, { width: data.width, height: data.height });
  Object.assign(input, { id: `strip-${dim}`, type: "range", min: 0, max: values.length - 1 });
  input.step = 1;
  input.value = middle;
  label.htmlFor = input.id;
  canvas.setAttribute("role", "img");
  const rate = kl === null ? "" : `, ${kl.toFixed(2)} nats`;
  label.append(`z ${dim + 1}${rate}: `, output, input);
  const draw = () => {
    const stop = Number(input.value);
    const value = values[stop].toFixed(2);
    output.textContent = value;
    input.setAttribute("aria-valuetext", value);
    canvas.setAttribute("aria-label", `The image at z ${dim + 1} = ${value}`);
    const place = row * values.length + stop;
    copyTile(canvas.getContext("2d"), sprites.traversals, values.length, place, 0, 0);
  };
  input.addEventListener("input", draw);
  figure.append(canvas, label);
  element("strips-images").append(figure);
  draw();
}

async function startStrips() {
  sprites.traversals = loadSprite(data.traversals.image);
  await sprites.traversals.decode();
  element("strips").hidden = false;
  if (element("traversals-still")) element("traversals-still").hidden = true;
  data.traversals.sliders.forEach(addStrip);
}

/** Row 0 of the sprite has the test images; a row follows for each count and temperature. */
function showLevels() {
  const { counts, temperatures, columns } = data.levels;
  const j = Number(element("levels-first").value);
  const t = Number(element("levels-heat").value);
  const gap = Math.ceil(data.height / 8);
  const canvas = element("levels-image");
  canvas.width = columns * data.width;
  canvas.height = 2 * data.height + gap;
  const context = canvas.getContext("2d");
  const row = 1 + j * temperatures.length + t;
  for (let i = 0; i < columns; i++) {
    copyTile(context, sprites.levels, columns, i, i * data.width, 0);
    copyTile(context, sprites.levels, columns, row * columns + i, i * data.width, data.height + gap);
  }
  const count = `${counts[j]} of ${counts.at(-1)}`;
  const value = temperatures[t].toFixed(1);
  element("levels-count").textContent = count;
  element("levels-value").textContent = value;
  element("levels-first").setAttribute("aria-valuetext", count);
  element("levels-heat").setAttribute("aria-valuetext", value);
  const words = `${count} levels from the image, the others at temperature ${value}`;
  canvas.setAttribute("aria-label", `Test images, and below them images with ${words}`);
}

async function startLevels() {
  sprites.levels = loadSprite(data.levels.image);
  await sprites.levels.decode();
  const inputs = { "levels-first": data.levels.counts, "levels-heat": data.levels.temperatures };
  for (const [id, values] of Object.entries(inputs)) {
    element(id).max = values.length - 1;
    element(id).value = Math.floor((values.length - 1) / 2);
    element(id).addEventListener("input", showLevels);
  }
  element("levels").hidden = false;
  if (element("levels-still")) element("levels-still").hidden = true;
  showLevels();
}

// --- training as a film -------------------------------------------------------------------------

/** The still picture has a row of tiles for each validation; the film shows one row. */
function startFilm() {
  const still = element("film-still");
  const input = element("film-place");
  const steps = input.dataset.steps.split(" ");
  const canvas = element("film-image");
  const draw = () => {
    const width = still.naturalWidth;
    const height = still.naturalHeight / steps.length;
    const row = Number(input.value);
    Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    context.drawImage(still, 0, row * height, width, height, 0, 0, width, height);
    element("film-step").textContent = `step ${Number(steps[row]).toLocaleString("en")}`;
    canvas.setAttribute("aria-label", `Reconstructions and samples at step ${steps[row]}`);
  };
  element("film").hidden = false;
  input.addEventListener("input", draw);
  still.decode().then(() => {
    draw();
    element("film-rows").hidden = true;
  });
}

// --- start --------------------------------------------------------------------------------------

function startCopy() {
  const button = element("copy");
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(element("command").textContent);
    button.textContent = "Copied";
  });
}

if (element("copy")) startCopy();
if (data) {
  startMap();
  if (data.labels && data.predicted) startConfusion();
  if (data.decoder) {
    startSliders();
    startWalk();
  }
  if (data.traversals) startStrips();
  if (data.levels) startLevels();
}
if (element("film-still")) startFilm();
