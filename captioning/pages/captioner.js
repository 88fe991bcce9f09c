"use strict";
// A captioner's page: pictures go to the worker, captions come back as cards. See captioner_worker.mjs.
const settings = JSON.parse(byId("settings").textContent);
const list = byId("pictures");
const cards = []; // {element, name, url, caption}
let worker = null, next = 0, ready = false;

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
  for (const card of cards.filter((each) => !each.caption && !each.problem)) refuse(card, "The model could not be loaded.");
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
    ready = true;
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

// --------------------------------------------------------------------------------------------------------- the cards

const make = (tag, className, text) => Object.assign(document.createElement(tag), { className, textContent: text ?? "" });

function take(files) {
  for (const file of files) add(file, file.name || `picture ${next + 1}`);
}

function add(picture, name) {
  const element = make("li", "card"), url = URL.createObjectURL(picture);
  element.dataset.place = next;
  const frame = make("div", "picture"), figure = make("figure"), image = new Image();
  Object.assign(image, { src: url, alt: name });
  image.onerror = () => {
    figure.remove();
    frame.classList.add("none");
  };
  figure.append(image);
  frame.append(figure);
  const words = make("div", "words");
  words.append(make("p", "busy", "Captioning…"), make("p", "name", name));
  element.append(frame, words);
  list.prepend(element);
  cards.push({ element, name, image, figure, words, picture });
  worker.postMessage({ id: next++, picture });
}

function refuse(card, problem) {
  card.problem = problem;
  card.words.firstChild.replaceWith(make("p", "error", `No caption: ${problem}`));
  say(`${card.name}: no caption. ${problem}`);
}

const percent = (share) => `${share >= 0.995 && share < 0.9995 ? ">99" : (share * 100).toFixed(share < 0.0995 ? 1 : 0)}%`;

function show(card, caption) {
  card.caption = caption;
  card.image.alt = `${card.name}: ${caption.text}`;
  const chain = make("ul", "chain");
  chain.setAttribute("role", "toolbar");
  chain.setAttribute("aria-label", "Words: where the model looked");
  caption.words.forEach((word, i) => chain.append(wordButton(card, word, i)));
  const log_probability = caption.log_probability.toFixed(3).replace("-", "−");
  const numbers = make("p", "numbers"), number = make("data", "", "log p ");
  number.value = caption.log_probability.toPrecision(6);
  number.append(make("b", "", log_probability));
  numbers.append(number);
  card.words.replaceChildren(make("p", "caption", caption.text), chain, numbers, make("p", "name", card.name));
  chain.addEventListener("keydown", (event) => moveBetweenWords(card, event));
  say(`${card.name}: ${caption.text}`);
  for (const id of ["copy", "save"]) byId(id).removeAttribute("aria-disabled");
}

function wordButton(card, { text, probability }, i) {
  const button = make("button", "word");
  Object.assign(button, { type: "button", tabIndex: i ? -1 : 0, ariaPressed: "false" });
  button.ariaLabel = `${text ?? "end of the caption"}, ${percent(probability)} likely`;
  const chance = make("span", "chance", percent(probability)), meter = make("meter");
  Object.assign(meter, { value: probability });
  meter.ariaHidden = "true";
  chance.prepend(meter);
  button.append(text === null ? make("span", "text end", "end") : make("span", "text", text), chance);
  button.addEventListener("click", () => choose(card, card.chosen === i ? null : i));
  button.addEventListener("focus", () => button.matches(":focus-visible") && choose(card, i));
  return button;
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

// The word's map over the part of the picture that the model saw: as bright as the picture where it looked most, and
// darker elsewhere. A map is scaled so that its greatest weight is brightest: it shows where, not how much.
function heatMap({ image, caption: { looks, words, part } }, i) {
  const [rows, columns] = settings.grid, size = looks.length / words.length;
  const weights = looks.subarray(i * size, (i + 1) * size), most = Math.max(...weights, 1e-12);
  const small = Object.assign(document.createElement("canvas"), { width: columns, height: rows });
  const map = new ImageData(columns, rows);
  weights.forEach((weight, patch) => map.data.set([12, 14, 18, 215 * (1 - weight / most)], patch * 4));
  small.getContext("2d").putImageData(map, 0, 0);
  const canvas = Object.assign(document.createElement("canvas"), { width: image.naturalWidth, height: image.naturalHeight });
  const scale = Math.min(1, 800 / Math.max(canvas.width, canvas.height));
  canvas.width = Math.max(1, Math.round(canvas.width * scale));
  canvas.height = Math.max(1, Math.round(canvas.height * scale));
  canvas.ariaHidden = "true";
  const context = canvas.getContext("2d");
  const [x, y, wide, high] = [part[0] * canvas.width, part[1] * canvas.height, part[2] * canvas.width, part[3] * canvas.height];
  context.fillStyle = "rgb(12 14 18 / .84)"; // what it did not see
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.clearRect(x, y, wide, high);
  context.imageSmoothingQuality = "high";
  context.drawImage(small, x, y, wide, high);
  return canvas;
}

// ------------------------------------------------------------------------------------------------ giving pictures

function watch() {
  byId("choose").addEventListener("click", () => byId("files").click());
  byId("files").addEventListener("change", ({ target }) => {
    take(target.files);
    target.value = ""; // so that the same file can be chosen again
  });
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    byId("give").classList.add("over");
  });
  addEventListener("dragleave", (event) => event.relatedTarget || byId("give").classList.remove("over"));
  addEventListener("drop", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    byId("give").classList.remove("over");
    take(event.dataTransfer.files);
  });
  addEventListener("paste", (event) => {
    const { files } = event.clipboardData;
    if (files.length) take(files);
    else say("There is no picture in the clipboard.");
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
    byId("privacy").textContent = CAMERA[error.name] ?? `The camera can’t be used: ${error.message || error.name}.`;
    say(byId("privacy").textContent);
    return;
  }
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
  if (byId("copy").ariaDisabled) return;
  try {
    await navigator.clipboard.writeText(cards.filter((card) => card.caption).map((card) => card.caption.text).join("\n"));
    say("Copied.");
    byId("copy").textContent = "Copied";
    setTimeout(() => byId("copy").textContent = "Copy captions", 1500);
  } catch {
    byId("copy").textContent = "Not allowed here";
  }
}

function saveCaptions(event) {
  if (byId("save").ariaDisabled) return event.preventDefault();
  byId("save").href = URL.createObjectURL(new Blob([lines().join("\n") + "\n"], { type: "application/jsonl" }));
}

const problem = obstacle();
if (problem) {
  fail(problem);
} else {
  watch();
  start();
  for (const id of ["give", "loading", "controls", "keys"]) byId(id).hidden = false;
  byId("amount").textContent = `Loading the model: 0 of ${megabytes(total)} MB`;
}
