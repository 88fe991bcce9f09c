"use strict";
// A captioner's page: pictures go to the worker, captions come back as cards. See captioner_worker.mjs.
const byId = (id) => document.getElementById(id);
const settings = JSON.parse(byId("settings").textContent);
const list = byId("pictures");
const cards = []; // in the order in which pictures were given
let worker = null, waiting = 0; // pictures without a caption or a sentence

// ------------------------------------------------------------------------------------------------ what can't be done

// Of WebAssembly with 128-bit vectors: a function that makes one. https://github.com/GoogleChromeLabs/wasm-feature-detect
const VECTORS = Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11);

function obstacle() {
  if (location.protocol === "file:") {
    return "A browser lets no page that is opened as a file read the model beside it. In this folder, run "
      + "“python -m http.server”, and open http://localhost:8000.";
  }
  if (typeof WebAssembly !== "object") {
    return "This browser has no WebAssembly, in which the model runs, or it is switched off (a “lockdown mode” does "
      + "that). Switch it on, or open the page in another browser.";
  }
  if (!WebAssembly.validate(VECTORS)) {
    return "This browser’s WebAssembly lacks the vector instructions (SIMD) that the model needs. Use Chrome or Edge 91, "
      + "Firefox 89, Safari 16.4, or newer.";
  }
  if (typeof OffscreenCanvas !== "function") {
    return "This browser can’t read pictures in the background (OffscreenCanvas). Use Chrome or Edge 91, Firefox 105, "
      + "Safari 16.4, or newer.";
  }
  return null;
}

function fail(sentence) {
  byId("problem").textContent = sentence;
  byId("problem").hidden = false;
  byId("give").hidden = byId("loading").hidden = true;
  for (const card of cards.filter((each) => !each.caption && !each.problem)) refuse(card, "The model does not run.");
}

// ------------------------------------------------------------------------------------------------------- the worker

// A worker from a blob is under this page's Content-Security-Policy; one from a file would be under none.
function start() {
  const source = new Blob([byId("worker").textContent], { type: "text/javascript" });
  worker = new Worker(URL.createObjectURL(source), { type: "module" });
  worker.onmessage = ({ data }) => answered(data);
  worker.onerror = (event) => fail(`The model’s script ended: ${event.message || "unknown reason"}. Reload the page.`);
  worker.postMessage({ settings, base: new URL("./", location).href });
}

const megabytes = (bytes) => (bytes / 1e6).toLocaleString("en", { maximumFractionDigits: bytes < 1e7 ? 1 : 0 });
const total = Object.values(settings.files).reduce((sum, size) => sum + size, 0);

function answered({ id, caption, problem, loaded, ready: isReady, failed }) {
  if (loaded !== undefined) {
    byId("progress").value = loaded / total;
    byId("amount").textContent = loaded < total
      ? `Loading the model: ${megabytes(loaded)} of ${megabytes(total)} MB` : "Starting the model…";
  } else if (isReady) {
    byId("loading").hidden = true;
    say("The model is ready.");
  } else if (failed !== undefined) {
    fail(`The model can’t be loaded: ${failed}`);
  } else if (problem !== undefined) {
    refuse(cards[id], problem);
  } else {
    show(cards[id], caption);
  }
}

const say = (text) => byId("status").textContent = text;

// One sentence where pictures are given; none removes it.
function note(sentence) {
  byId("note").textContent = sentence;
  byId("note").hidden = !sentence;
}

// --------------------------------------------------------------------------------------------------------- the cards

const make = (tag, className, text) => Object.assign(document.createElement(tag), { className, textContent: text ?? "" });

function take(files) {
  note("");
  for (const file of files) add(file, file.name);
}

function add(picture, name) {
  const element = make("li", "card"), frame = make("div", "picture"), figure = make("figure"), image = new Image();
  const words = make("div", "words"), card = { name, image, figure, words };
  image.onload = () => figure.style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
  image.onerror = () => {
    figure.remove();
    frame.classList.add("none");
  };
  Object.assign(image, { src: URL.createObjectURL(picture), alt: name, decoding: "async" });
  figure.append(image);
  frame.append(figure);
  words.append(make("p", "busy", "Captioning…"), make("p", "name", name));
  element.append(frame, words);
  list.prepend(element);
  worker.postMessage({ id: cards.push(card) - 1, picture });
  waiting++;
  count();
}

function count() {
  const done = cards.length - waiting, all = `${cards.length.toLocaleString("en")} picture${cards.length === 1 ? "" : "s"}`;
  byId("count").textContent = waiting ? `${done.toLocaleString("en")} of ${all}` : all;
  byId("controls").hidden = false;
}

// A card has what it will have: tell those who do not see it; of several pictures, once, at the end.
function settled(card, words) {
  waiting--;
  count();
  if (waiting) return;
  say(cards.length - told === 1 ? `${card.name}: ${words}` : `All ${cards.length} pictures are captioned.`);
  told = cards.length;
}
let told = 0; // of the cards

function refuse(card, problem) {
  card.problem = problem;
  card.words.firstChild.replaceWith(make("p", "error", `No caption: ${problem}`));
  settled(card, `no caption. ${problem}`);
}

function show(card, caption) {
  card.caption = caption;
  card.image.alt = `${card.name}: ${caption.text}`;
  const chain = make("div", "chain"), about = make("div", "about"), numbers = make("p", "numbers"), number = make("data");
  chain.role = "toolbar";
  chain.ariaLabel = "Where the model looked, word by word";
  caption.words.forEach((word, i) => chain.append(wordButton(card, word, i)));
  chain.addEventListener("keydown", (event) => moveBetweenWords(card, event));
  number.value = caption.log_probability.toPrecision(6);
  number.append("log p ", make("b", "", caption.log_probability.toFixed(3).replace("-", "−")));
  numbers.append(number);
  about.append(numbers, make("p", "name", card.name));
  card.words.replaceChildren(make("p", "caption", caption.text), chain, about);
  settled(card, caption.text);
}

const percent = (share) => share < 0.0995 ? `${(share * 100).toFixed(1)}%` : share > 0.995 ? ">99%" : `${Math.round(share * 100)}%`;

function wordButton(card, { text, probability }, i) {
  const button = make("button", "word");
  Object.assign(button, { type: "button", tabIndex: i ? -1 : 0, ariaPressed: "false" });
  button.style.setProperty("--share", probability);
  const of = text === null ? make("em", "", "end") : make("span", "", text);
  const unseen = make("span", "unseen", `probable, looked ${whereabouts(mapOf(card, i))}`);
  button.append(of, " ", make("small", "", percent(probability)), " ", unseen);
  button.addEventListener("click", () => choose(card, card.chosen === i ? null : i));
  return button;
}

// The weights of a word's patches, row by row.
function mapOf({ caption: { looks, words } }, i) {
  const size = looks.length / words.length;
  return looks.subarray(i * size, (i + 1) * size);
}

// Where a map weighs most, in words: for those who do not see it.
function whereabouts(weights) {
  const [rows, columns] = settings.grid, ninths = new Float64Array(9);
  weights.forEach((weight, patch) => {
    const row = Math.floor(patch / columns) + 0.5, column = (patch % columns) + 0.5;
    ninths[Math.floor((row * 3) / rows) * 3 + Math.floor((column * 3) / columns)] += weight;
  });
  return ["at the top left", "at the top", "at the top right", "at the left", "at the middle", "at the right",
    "at the bottom left", "at the bottom", "at the bottom right"][ninths.indexOf(Math.max(...ninths))];
}

const buttonsOf = (card) => Array.from(card.words.querySelectorAll(".word"));

// Show where the model looked as it chose a word; null shows the picture alone.
function choose(card, i) {
  card.chosen = i;
  buttonsOf(card).forEach((button, j) => {
    button.ariaPressed = String(i === j);
    if (i !== null) button.tabIndex = i === j ? 0 : -1;
  });
  card.figure.querySelector("canvas")?.remove();
  if (i !== null) card.figure.append(heatMap(card, i));
}

function moveBetweenWords(card, event) {
  const buttons = buttonsOf(card), at = buttons.indexOf(event.target);
  const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
  if (event.key === "Escape") choose(card, null);
  if (to === undefined) return;
  event.preventDefault();
  const button = buttons[Math.max(0, Math.min(buttons.length - 1, to))];
  button.focus();
  choose(card, buttons.indexOf(button));
}

// From unattended to attended, as in the strips of predict.py, but paler: how dark the picture gets, and how much of GLOW it gets.
const SHADE = 0.7, GLOW = [255, 140, 0], GLOW_SHARE = 0.3;

// The word's map over the part of the picture that the model saw. It is scaled so that its own greatest weight is
// brightest: it shows where, not how much.
function heatMap(card, i) {
  const { image, caption: { part } } = card, weights = mapOf(card, i), [rows, columns] = settings.grid;
  const most = Math.max(...weights, 1e-12), map = new ImageData(columns, rows);
  weights.forEach((weight, patch) => {
    const share = weight / most, glow = GLOW_SHARE * share ** 1.5;
    const cover = 1 - (1 - SHADE * (1 - share)) * (1 - glow); // of both, the shade below the glow
    map.data.set([...GLOW.map((colour) => (colour * glow) / (cover || 1)), cover * 255], patch * 4);
  });
  const small = Object.assign(document.createElement("canvas"), { width: columns, height: rows });
  small.getContext("2d").putImageData(map, 0, 0);
  const scale = Math.min(1, 800 / Math.max(image.naturalWidth, image.naturalHeight));
  const [width, height] = [image.naturalWidth, image.naturalHeight].map((side) => Math.max(96, Math.round(side * scale)));
  const canvas = Object.assign(document.createElement("canvas"), { width, height, ariaHidden: "true" });
  const context = canvas.getContext("2d");
  const seen = [part[0] * width, part[1] * height, part[2] * width, part[3] * height];
  context.fillStyle = "rgb(0 0 0 / .82)"; // over what it did not see
  context.fillRect(0, 0, width, height);
  context.clearRect(...seen);
  context.imageSmoothingQuality = "high";
  context.drawImage(small, ...seen);
  return canvas;
}

// ------------------------------------------------------------------------------------------------ giving pictures

function watch() {
  byId("choose").addEventListener("click", () => byId("files").click());
  byId("files").addEventListener("change", ({ target }) => {
    take(target.files);
    target.value = ""; // so that the same file can be chosen again
  });
  addEventListener("dragover", (event) => {
    event.preventDefault(); // or the browser would leave the page for what is dropped
    byId("give").classList.add("over");
  });
  addEventListener("dragleave", (event) => event.relatedTarget || byId("give").classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    byId("give").classList.remove("over");
    take(event.dataTransfer.files);
    if (!event.dataTransfer.files.length) note("That is a link or a text, not a picture’s file; save the picture first.");
  });
  addEventListener("paste", ({ clipboardData }) => {
    take(clipboardData.files);
    if (!clipboardData.files.length) note("There is no picture in the clipboard.");
  });
  byId("camera").addEventListener("click", startCamera);
  byId("stop").addEventListener("click", stopCamera);
  byId("take").addEventListener("click", takePicture);
  byId("copy").addEventListener("click", copyCaptions);
  byId("save").addEventListener("click", saveCaptions);
}

async function startCamera() {
  try {
    if (!navigator.mediaDevices) throw Object.assign(new Error(), { name: "InsecureContext" });
    byId("video").srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    await byId("video").play();
  } catch (error) {
    note(CAMERA[error.name] ?? `The camera can’t be used: ${error.message || error.name}. Choose a picture instead.`);
    return;
  }
  note("");
  byId("view").hidden = false;
  byId("camera").hidden = true;
  byId("take").focus();
}

const CAMERA = {
  InsecureContext: "The camera needs a page from https:// or localhost; choose a picture instead.",
  NotAllowedError: "The camera is not allowed here; allow it in the browser’s settings of this page, or choose a picture.",
  NotFoundError: "There is no camera; choose a picture instead.",
  NotReadableError: "Another program uses the camera; end it, or choose a picture.",
};

function stopCamera() {
  for (const track of byId("video").srcObject?.getTracks() ?? []) track.stop();
  byId("video").srcObject = null;
  byId("view").hidden = true;
  byId("camera").hidden = false;
  byId("camera").focus();
}

let taken = 0;
function takePicture() {
  const { videoWidth: width, videoHeight: height } = byId("video");
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  canvas.getContext("2d").drawImage(byId("video"), 0, 0);
  canvas.toBlob((blob) => add(blob, `camera ${++taken}.png`), "image/png");
}

// As predict.py writes them, in the order in which pictures were given.
const lines = () => cards.filter((card) => card.caption || card.problem).map(({ name, caption, problem }) =>
  JSON.stringify(caption ? { path: name, caption: caption.text, log_probability: caption.log_probability } : { path: name, error: problem }));

async function copyCaptions() {
  try {
    await navigator.clipboard.writeText(cards.filter((card) => card.caption).map((card) => card.caption.text).join("\n"));
    say("Copied.");
    byId("copy").textContent = "Copied";
    setTimeout(() => byId("copy").textContent = "Copy captions", 1500);
  } catch {
    note("The browser doesn’t let this page copy: that needs https:// or localhost. Save the captions instead.");
  }
}

function saveCaptions() {
  URL.revokeObjectURL(byId("save").href);
  byId("save").href = URL.createObjectURL(new Blob([lines().join("\n") + "\n"], { type: "application/jsonl" }));
}

const problem = obstacle();
if (problem) {
  fail(problem);
} else {
  watch();
  start();
  for (const id of ["give", "loading", "keys"]) byId(id).hidden = false;
  byId("amount").textContent = `Loading the model: 0 of ${megabytes(total)} MB`;
}
