// The page of vae_jax.tools.explore: it asks its own server, and nobody else.
"use strict";

const at = (id) => document.getElementById(id);
const FIRST = 16; // sliders before "more"
let model = null;
let code = null; // of the image
let z = null; // of the sliders
const ends = { a: null, b: null };

function say(text) {
  at("error").textContent = text;
}

async function ask(path, question) {
  const options = question && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(question),
  };
  const response = await fetch(path, options);
  if (!response.ok) {
    throw new Error((await response.json()).error);
  }
  say("");
  const isImage = response.headers.get("Content-Type") === "image/png";
  return isImage ? response.blob() : response.json();
}

function guarded(action) {
  return (...words) => action(...words).catch((error) => say(error.message));
}

// Only the newest of several questions is asked while one is under way.
function newest(action) {
  let busy = false;
  let again = false;
  return async function run() {
    if (busy) {
      again = true;
      return;
    }
    busy = true;
    try {
      await action();
    } finally {
      busy = false;
    }
    if (again) {
      again = false;
      await run();
    }
  };
}

function show(id, blob) {
  const image = at(id);
  if (image.src.startsWith("blob:")) {
    URL.revokeObjectURL(image.src);
  }
  image.src = URL.createObjectURL(blob);
  image.hidden = false;
}

function element(name, text) {
  const node = document.createElement(name);
  node.textContent = text;
  return node;
}

function label() {
  return model.labelled ? Number(at("label").value) : null;
}

const decode = guarded(newest(async () => {
  show("decoded", await ask("decode", { z, label: label() }));
}));

function setSliders(values) {
  z = values.slice();
  for (const input of at("sliders").querySelectorAll("input")) {
    const value = z[Number(input.dataset.dimension)];
    input.min = Math.min(input.min, value);
    input.max = Math.max(input.max, value);
    input.value = value;
    input.nextElementSibling.textContent = value.toFixed(2);
  }
}

function buildSliders() {
  model.sliders.forEach(({ dimension, low, high }, place) => {
    const row = element("label", `z ${dimension + 1}`);
    const input = document.createElement("input");
    Object.assign(input, { type: "range", min: low, max: high, step: "any" });
    input.dataset.dimension = dimension;
    const output = element("output", "0.00");
    input.addEventListener("input", () => {
      z[dimension] = Number(input.value);
      output.textContent = z[dimension].toFixed(2);
      decode();
    });
    row.append(input, output);
    row.hidden = place >= FIRST;
    at("sliders").append(row);
  });
  const rest = model.sliders.length - FIRST;
  at("more").hidden = rest <= 0;
  at("more").textContent = `${rest} more`;
  at("more").addEventListener("click", () => {
    for (const row of at("sliders").children) {
      row.hidden = false;
    }
    at("more").hidden = true;
  });
}

const encode = guarded(async (question) => {
  const answer = await ask("encode", question);
  code = answer.z;
  at("answer").hidden = false;
  at("input").src = answer.input;
  at("restored").hidden = !answer.reconstruction;
  at("reconstruction").src = answer.reconstruction || "";
  at("classified").hidden = !answer.classes;
  at("classes").replaceChildren(...(answer.classes || []).map(({ name, p }) => {
    const row = element("li", "");
    row.style.setProperty("--p", `${100 * p}%`);
    row.append(element("span", name), element("span", `${(100 * p).toFixed(1)} %`));
    return row;
  }));
  at("known").hidden = answer.familiarity === null;
  at("familiarity").textContent = `${(100 * answer.familiarity).toFixed(0)} %`;
  at("near").hidden = !answer.neighbours;
  at("neighbours").replaceChildren(...(answer.neighbours || []).map(({ image, name }) => {
    const row = element("li", "");
    const picture = document.createElement("img");
    Object.assign(picture, { src: image, alt: `A training image ${name}` });
    row.append(picture, element("span", name));
    return row;
  }));
  if (model.labelled) {
    at("label").value = answer.label;
  }
  if (model.decoder) {
    at("codes").hidden = false;
    at("mixing").hidden = false;
    setSliders(code);
    await decode();
  }
});

function encodeFile(file) {
  const reader = new FileReader();
  reader.addEventListener("load", () => encode({ image: reader.result.split(",")[1] || "" }));
  reader.readAsDataURL(file);
}

const keep = guarded(async (name) => {
  ends[name] = z.slice();
  const names = Object.keys(ends).filter((key) => ends[key]).map((key) => key.toUpperCase());
  at("kept").textContent = `${names.join(" and ")} kept`;
  if (ends.a && ends.b) {
    show("mix", await ask("mix", { ...ends, steps: 10, label: label() }));
  }
});

const draw = guarded(async () => {
  const [n, seed, temperature] = ["count", "seed", "temperature"].map((id) => Number(at(id).value));
  show("samples", await ask("sample", { n, seed, temperature }));
});

function listen() {
  at("file").addEventListener("change", (event) => {
    if (event.target.files.length) {
      encodeFile(event.target.files[0]);
    }
  });
  const drop = at("drop");
  for (const name of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragover");
    });
  }
  drop.addEventListener("drop", (event) => {
    if (event.dataTransfer.files.length) {
      encodeFile(event.dataTransfer.files[0]);
    }
  });
  at("test").addEventListener("click", () => {
    encode({ test: Math.floor(Math.random() * model.tests) });
  });
  at("reset").addEventListener("click", () => {
    setSliders(code);
    decode();
  });
  at("label").addEventListener("change", () => decode());
  at("keep-a").addEventListener("click", () => keep("a"));
  at("keep-b").addEventListener("click", () => keep("b"));
  at("draw").addEventListener("click", () => draw());
}

const start = guarded(async () => {
  model = await ask("model");
  const parts = [model.objective, model.data, `step ${model.step}`, `${model.latent} latent dimensions`];
  at("about").textContent = parts.join(" · ");
  say(model.why && `Without neighbours and familiarity: ${model.why}`);
  at("test").hidden = model.tests === 0;
  at("sampling").hidden = !model.decoder;
  at("heat").hidden = !model.temperature;
  at("labels").hidden = !model.labelled;
  at("label").replaceChildren(...model.classes.map((name, y) => {
    const option = element("option", name);
    option.value = y;
    return option;
  }));
  buildSliders();
  listen();
  document.body.dataset.ready = "yes";
});

start();
